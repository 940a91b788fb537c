"""Makes a chunk of a record whose fields have other names, by a JMESPath expression (jmespath.org/specification).

A field that the record lacks is null in JMESPath. A field of the chunk that is null is left out.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jmespath
import orjson
from jmespath.exceptions import JMESPathError, JMESPathTypeError
from jmespath.functions import Functions

from stream.contracts import problem

VALID = {"chunk_id": "-", "doc_id": "-", "text": "-", "facet_json": {}, "table_lines": [], "metadata": {}, "version": 0}


class NotMapped(ValueError):
    """The expression cannot be applied to a record."""


def checked(expression: str) -> str:
    """Returns the expression, for the settings; raises `ValueError` if it is wrong or can never make a chunk.

    An empty expression means no mapping.
    """
    if not expression:
        return expression
    try:
        tree = jmespath.compile(expression).parsed
        for name, arguments in _calls(tree):
            with suppress(JMESPathTypeError):  # the types depend on the record
                Functions().call_function(name, [None] * arguments)
    except JMESPathError as error:
        sentence = str(error).partition("\n")[0].removesuffix(":").removesuffix(", for expression")
        raise ValueError(f"is not a valid JMESPath expression: {sentence}") from None
    if tree["type"] == "multi_select_dict":
        names = [pair["value"] for pair in tree["children"]]
        if wrong := problem({name: VALID.get(name) for name in names}, "chunk"):
            raise ValueError(f"can never make a valid chunk: {wrong}")
    return expression


def mapped(content: Any, expression: str) -> Any:
    """What the expression makes of a record's JSON, as JSON; raises `NotMapped`."""
    try:
        chunk = jmespath.search(expression, content)  # which keeps compiled expressions
        if isinstance(chunk, dict):
            chunk = {name: value for name, value in chunk.items() if value is not None}
        return orjson.loads(orjson.dumps(chunk))  # functions may return what JSON cannot hold, such as huge integers
    except JMESPathTypeError as error:
        why = f"{error.function_name}() got {error.actual_type}, and takes {' or '.join(error.expected_types)}"
    except Exception as error:  # a function may fail in any way on what a producer sends
        why = type(error).__name__  # a message may quote the record
    raise NotMapped(f"STREAM_FIELD_MAPPING cannot be applied to the record: {why}")


def explained(wrong: str, expression: str) -> str:
    """A sentence about what is wrong with a chunk, which says so if a mapping has made the chunk."""
    return f"{wrong} (in the chunk that STREAM_FIELD_MAPPING makes of the record)" if expression else wrong


def _calls(node: Any) -> Iterator[tuple[str, int]]:
    """The functions that an expression calls, and the number of arguments of each call."""
    if node["type"] == "function_expression":
        yield node["value"], len(node["children"])
    for child in node["children"]:
        yield from _calls(child)
