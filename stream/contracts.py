"""The contracts of `schemas/` as compiled validators (JSON Schema 2020-12)."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs

Contract = Literal["chunk", "embedded", "expanded", "dead-letter", "redriven"]

_INSTALLED = Path(__file__).parent / "schemas"
SCHEMAS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "schemas"

_PLAINER = {
    ("Pattern", "chunk_id"): "must not hold control characters",
    ("Pattern", "doc_id"): "must not hold control characters",
    ("Pattern", "text"): "must hold more than white space",
    (
        "AnyOf",
        "facet_json",
    ): "must hold scalars, lists of scalars, or objects of them nested at most three deep",
    ("AnyOf", "metadata"): "must hold scalars or lists of scalars",
}


@cache
def _validator(contract: Contract) -> jsonschema_rs.Validator:
    documents = {path.stem: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    registry = jsonschema_rs.Registry([(document["$id"], document) for document in documents.values()])
    # The mask keeps a record's values, which may be large or private, out of what people read.
    return jsonschema_rs.validator_for(documents[contract], registry=registry, mask="the value")


def problem(value: Any, contract: Contract) -> str | None:
    """What is wrong with a parsed JSON value, in one sentence without its values; None if it keeps the contract."""
    validator = _validator(contract)
    try:
        if validator.is_valid(value):
            return None
        error = next(validator.iter_errors(value))
    except ValueError:  # the validator's own limit of recursion
        return "the record: is nested too deep"
    path = ".".join(str(step) for step in error.instance_path)
    field = str(error.instance_path[0]) if error.instance_path else ""
    message = _PLAINER.get((type(error.kind).__name__, field)) or error.message.removeprefix("the value ")
    return f"{path}: {message}" if path else f"the record: {message}"
