"""`stream`, and `python -m stream`: the command line, with its signals handled from the first moment."""

import signal
import sys
from collections.abc import Sequence

from stream import signals


def main() -> None:
    """Runs the command line and exits.

    A worker ends with 0 at once until it takes records; every other command ends at SIGTERM as it does at Ctrl-C.
    """
    if _command(sys.argv[1:]) == "worker":
        signals.end_at_once(0)
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from stream.cli import main as run  # noqa: PLC0415 - it takes seconds, which a signal must not wait for

        run()
    except KeyboardInterrupt:
        print("stream: interrupted before anything was done", file=sys.stderr)  # noqa: T201
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
