"""Temporary files, which a reboot may delete."""

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """A folder that only this user can read, for locks and for Faust's files."""
    made = Path(tempfile.gettempdir()) / f"stream-worker-{os.getuid()}"
    made.mkdir(mode=0o700, exist_ok=True)
    return made
