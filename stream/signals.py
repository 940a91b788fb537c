"""Handles signals while there is nothing to finish. Imports only the standard library, because it is imported first.

The kernel drops a signal to process 1 of a container if the process has no handler, so the command line sets one first.
"""

import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # exit code of a command that a signal ended: 128 + SIGINT, the convention of shells


def end_at_once(code: int) -> None:
    """From now on SIGTERM and SIGINT end the process at once with this exit code."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))
