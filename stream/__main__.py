"""Entry point of `stream` and `python -m stream`. It sets the signal handlers before the slow imports."""

import os
import signal
import sys
from collections.abc import Sequence

from stream import signals


def main() -> None:
    """Runs the command line and exits.

    Until a worker takes records, SIGTERM and SIGINT end it at once with exit code 0. For every other command, SIGTERM
    has the same effect as Ctrl-C.
    """
    # OpenMP's threads spin while they wait, which takes the core from whoever else computes on this machine. PyTorch
    # reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _command(sys.argv[1:]) == "worker":
        signals.end_at_once(0)
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from stream.cli import main as run  # noqa: PLC0415 - takes seconds; signals must not wait for it

        run()
    except KeyboardInterrupt:
        print("stream: interrupted before the command started", file=sys.stderr)  # noqa: T201
        sys.exit(signals.INTERRUPTED)


def _command(arguments: Sequence[str]) -> str | None:
    """The first argument that is neither an option nor the value of one."""
    words = iter(arguments)
    for word in words:
        if word == "--set":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


if __name__ == "__main__":
    main()
