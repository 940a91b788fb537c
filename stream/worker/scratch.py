"""Files that need not outlast a reboot."""

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """A folder of this user alone, for locks and for what Faust wants to write."""
    made = Path(tempfile.gettempdir()) / f"stream-worker-{os.getuid()}"
    made.mkdir(mode=0o700, exist_ok=True)
    return made
