"""The contracts of `schemas/` as compiled validators (JSON Schema 2020-12)."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs

Contract = Literal["chunk", "embedded", "expanded", "dead-letter", "redriven"]

_INSTALLED = Path(__file__).parent / "schemas"
SCHEMAS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "schemas"

_MESSAGES = {  # in place of those that quote a regular expression or a list of alternatives
    ("Pattern", "chunk_id"): "must not contain control characters",
    ("Pattern", "doc_id"): "must not contain control characters",
    ("Pattern", "text"): "must contain more than white space",
    (
        "AnyOf",
        "facet_json",
    ): "must contain scalars, lists of scalars, or objects of them nested at most three deep",
    ("AnyOf", "metadata"): "must contain scalars or lists of scalars",
}


@cache
def _validator(contract: Contract) -> jsonschema_rs.Validator:
    documents = {path.stem: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    registry = jsonschema_rs.Registry([(document["$id"], document) for document in documents.values()])
    # The mask keeps a record's values out of the messages: they may be large or private.
    return jsonschema_rs.validator_for(documents[contract], registry=registry, mask="the value")


def problem(value: Any, contract: Contract) -> str | None:
    """How a parsed JSON value breaks the contract, in one sentence without its values; None if it does not."""
    validator = _validator(contract)
    try:
        if validator.is_valid(value):
            return None
        error = next(validator.iter_errors(value))
    except ValueError:  # the validator's recursion limit
        return "the record: is nested too deep"
    path = ".".join(str(step) for step in error.instance_path)
    field = str(error.instance_path[0]) if error.instance_path else ""
    message = _MESSAGES.get((type(error.kind).__name__, field)) or error.message.removeprefix("the value ")
    return f"{path}: {message}" if path else f"the record: {message}"
