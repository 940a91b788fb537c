"""The log of a worker or of the service on standard error: one line for people, or one JSON object for machines.

It never has a payload.
"""

import logging
import sys

from cachetools import TTLCache
from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from stream.config import Settings
from stream.terminal import printable

CHATTY = ("faust", "botocore", "mode", "aiokafka", "httpx", "opensearch", "neo4j", "mcp", "uvicorn")
REPEAT_AFTER = 60.0  # seconds

_logged: TTLCache[tuple[str, str], bool] = TTLCache(maxsize=1000, ttl=REPEAT_AFTER)


def configure(settings: Settings) -> None:
    """Configures logging for the whole process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_not_repeated)
    handler.addFilter(_with_trace_ids)
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
    logging.getLogger("opensearch").setLevel(logging.ERROR)  # it raises what it warns of


class _OneLine(logging.Formatter):
    """Escapes line feeds and control sequences, so that a record's content cannot forge a log line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        return printable(super().formatMessage(record))


def _not_repeated(record: logging.LogRecord) -> bool:
    """Passes each message of aiokafka once a minute: without a broker aiokafka logs a hundred lines a second."""
    if not record.name.startswith("aiokafka"):
        return True
    message = record.name, str(record.msg)
    new = message not in _logged
    if new:
        _logged[message] = True
    return new


def _with_trace_ids(record: logging.LogRecord) -> bool:
    """Adds the ids of the current span to the line."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = trace.format_trace_id(context.trace_id)
        record.span_id = trace.format_span_id(context.span_id)
    return True
