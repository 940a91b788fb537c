"""Who calls, for routes that depend on it."""

from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from stream.serve.access import EVERYONE, Key


def _caller(http: Request) -> Key:
    return getattr(http.state, "key", EVERYONE)


Caller = Annotated[Key, Depends(_caller)]


def require_all_chunks(key: Caller) -> None:
    """Refuses a key with a filter (403): what a route says of the whole flow is also about chunks it may not see."""
    if key.filter is not None:
        raise HTTPException(
            HTTPStatus.FORBIDDEN, "this is about all chunks, and the key sees only some: use a key without a filter"
        )
