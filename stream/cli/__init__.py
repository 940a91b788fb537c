"""The command line. An error is one sentence on standard error and an exit code of `stream.errors`."""

import logging
import sys

from aiokafka.errors import KafkaError

from stream.cli.bench import bench
from stream.cli.commands import app
from stream.cli.dlq import dlq
from stream.cli.local import local
from stream.cli.reference import reference
from stream.cli.reindex import reindex
from stream.cli.replay import replay
from stream.errors import Outage, StreamError
from stream.signals import INTERRUPTED
from stream.terminal import printable

app.add_typer(local)
app.add_typer(dlq)
app.add_typer(replay)
app.add_typer(reindex)
app.add_typer(bench)
app.add_typer(reference)


def main() -> None:
    """Runs the command line and exits."""
    for library in ("aiokafka", "neo4j", "opensearch"):  # the user gets the same errors as one sentence
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        app()
    except StreamError as error:
        _end(str(error), error.exit_code)
    except KafkaError as error:
        _end(f"a Kafka request failed: {error}", Outage.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _end("interrupted: finished work is kept; run the command again to do the rest", INTERRUPTED)
        raise


def _end(sentence: str, code: int) -> None:
    print(printable(f"stream: {sentence}", lines=True), file=sys.stderr)  # noqa: T201
    sys.exit(code)
