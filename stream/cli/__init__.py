"""The command line. An error is one sentence on standard error and an exit code of `stream.errors`.

Each command is imported when it is called: `stream worker embed` does not pay for what `stream search` needs.
"""

import logging
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from aiokafka.errors import KafkaError
from typer.core import TyperGroup

from stream import __version__
from stream.cli.options import utf8
from stream.errors import NO_PYTORCH, ConfigurationError, Outage, StreamError
from stream.signals import INTERRUPTED
from stream.terminal import printable

MODULES = {  # of each command, in the order of the help
    "worker": "worker",
    "doctor": "doctor",
    "encode": "search",
    "publish": "records",
    "validate": "records",
    "delete": "records",
    "status": "state",
    "verify": "state",
    "search": "search",
    "serve": "serve",
    "mcp": "serve",
    "keys": "serve",
    "eval": "evaluate",
    "topics": "state",
    "local": "local",
    "dlq": "dlq",
    "replay": "replay",
    "reindex": "reindex",
    "bench": "bench",
    "settings": "reference",
    "metrics": "reference",
}


class _Commands(TyperGroup):
    """Click's pattern of a group that loads its commands lazily."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in MODULES:
            return None
        found = typer.main.get_command(import_module(f"stream.cli.{MODULES[cmd_name]}").app)
        if isinstance(found, TyperGroup) and found.name != cmd_name:
            return found.commands[cmd_name]
        return found


app = typer.Typer(
    name="stream",
    cls=_Commands,
    help="Turns text chunks into searchable knowledge in seconds and loses none of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _configure(
    context: typer.Context,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            parser=utf8,
            metavar="NAME=VALUE",
            help="Set a setting; it overrides the environment. Repeatable. `stream settings` lists the names.",
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pairs = [assignment.partition("=") for assignment in assignments or []]
    if not all(equals for _, equals, _ in pairs):
        raise typer.BadParameter("expected NAME=VALUE", param_hint="--set")  # not printed: it may be a secret
    context.obj = {name.lower(): value for name, _, value in pairs}


def main() -> None:
    """Runs the command line and exits."""
    for library in ("aiokafka", "neo4j", "opensearch"):  # the user gets the same errors as one sentence
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        app()
    except StreamError as error:
        _end(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if error.name != "torch":  # the image's target `lean` has none
            raise
        _end(NO_PYTORCH, ConfigurationError.exit_code)
    except KafkaError as error:
        _end(f"a Kafka request failed: {error}", Outage.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _end("interrupted: finished work is kept; run the command again to do the rest", INTERRUPTED)
        raise


def _end(sentence: str, code: int) -> None:
    print(printable(f"stream: {sentence}", lines=True), file=sys.stderr)  # noqa: T201
    sys.exit(code)
