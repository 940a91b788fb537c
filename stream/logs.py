"""What a worker says on standard error: a line for a person, or a JSON object for a machine. Neither has a payload."""

import logging
import sys

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from stream.config import Settings

CHATTY = ("faust", "mode", "aiokafka", "httpx", "opensearch", "neo4j")


def configure(settings: Settings) -> None:
    """For the whole process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_traced)
    if settings.log_format == "json":
        names = {"levelname": "level", "name": "logger"}
        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="time", json_ensure_ascii=False
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _traced(record: logging.LogRecord) -> bool:
    """Gives the line the ids of the span that it was said in."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = trace.format_trace_id(context.trace_id)
        record.span_id = trace.format_span_id(context.span_id)
    return True
