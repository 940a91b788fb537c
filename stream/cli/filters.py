"""Short filters for the command line: `metadata.lang=en` instead of `{"field": "metadata.lang", "equal": "en"}`.

    FIELD=VALUE   FIELD!=VALUE                              equal, not equal (or missing)
    FIELD=[VALUE, VALUE]   FIELD!=[VALUE, VALUE]            one of a JSON list, none of it
    FIELD<VALUE   FIELD<=VALUE   FIELD>VALUE   FIELD>=VALUE a range
    FIELD   !FIELD                                          the field exists, is missing
    {…}                                                     the JSON form, for everything else

A value that is a JSON number, `true`, `false` or a JSON string in double quotes is that. Any other value is text.
"""

import re
from collections.abc import Sequence
from typing import Any

import orjson

from stream.errors import InvalidRequest

OPERATOR = re.compile(r"!=|<=|>=|=|<|>")
RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def all_of(texts: Sequence[str]) -> dict[str, Any] | None:
    """The JSON form of a filter that requires all of these; None without any. Raises `InvalidRequest`."""
    conditions = [condition(text) for text in texts]
    return {"all": conditions} if len(conditions) > 1 else next(iter(conditions), None)


def condition(text: str) -> dict[str, Any]:
    """The JSON form of one filter; raises `InvalidRequest`. Whether the field can be filtered is not checked here."""
    text = text.strip()
    if text.startswith("{"):
        return dict(_json(text, "a filter that begins with { must be JSON"))
    operator = OPERATOR.search(text)
    if not operator:
        missing = text.startswith("!")
        return {"field": _field(text.removeprefix("!"), text), "exists": not missing}
    field, value = _field(text[: operator.start()], text), _value(text[operator.end() :].strip(), text)
    if operator[0] in RANGES:
        return {"field": field, RANGES[operator[0]]: value}
    same = {"field": field, "in" if isinstance(value, list) else "equal": value}
    return {"not": same} if operator[0] == "!=" else same


def _field(name: str, text: str) -> str:
    name = name.strip()
    if not name:
        raise InvalidRequest(f"the filter {_short(text)} names no field: write FIELD=VALUE, such as metadata.lang=en")
    if name.startswith("!"):
        raise InvalidRequest(f"the filter {_short(text)} begins with !, which stands before a field alone: write !=")
    return name


def _value(value: str, text: str) -> Any:
    if value.startswith(('"', "[")):
        return _json(value, 'a value that begins with " or [ must be JSON')
    if not value or value[0] in "=<>":
        raise InvalidRequest(
            f"the filter {_short(text)} has no value after its operator: write FIELD=VALUE, and a value that is empty "
            'or begins with =, < or > in double quotes, such as metadata.sign=">"'
        )
    try:
        read = orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    return read if isinstance(read, bool | int | float) else value


def _json(text: str, rule: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{rule}; {_short(text)} is not: {error}") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
