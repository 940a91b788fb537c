"""What a worker says on standard error: a line for a person, or a JSON object for a machine. Neither has a payload."""

import logging
import sys

from cachetools import TTLCache
from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from stream.config import Settings
from stream.terminal import printable

CHATTY = ("faust", "mode", "aiokafka", "httpx", "opensearch", "neo4j")
SELDOM = 60.0  # seconds

_said: TTLCache[tuple[str, str], bool] = TTLCache(maxsize=1000, ttl=SELDOM)


def configure(settings: Settings) -> None:
    """For the whole process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_seldom)
    handler.addFilter(_traced)
    if settings.log_format == "json":
        names = {"levelname": "level", "name": "logger"}
        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="time", json_ensure_ascii=False
            )
        )
    else:
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("opensearch").setLevel(logging.ERROR)  # what it warns of is raised too


class _OneLine(logging.Formatter):
    """What a record holds can neither command a terminal nor begin a line that looks like ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        return printable(super().formatMessage(record))


def _seldom(record: logging.LogRecord) -> bool:
    """Lets a complaint of aiokafka's through once a minute: without a broker it makes one a hundred times a second."""
    if not record.name.startswith("aiokafka"):
        return True
    what = record.name, str(record.msg)
    new = what not in _said
    if new:
        _said[what] = True
    return new


def _traced(record: logging.LogRecord) -> bool:
    """Gives the line the ids of the span that it was said in."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = trace.format_trace_id(context.trace_id)
        record.span_id = trace.format_span_id(context.span_id)
    return True
