"""Errors of the library as HTTP answers: `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from stream.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, Outage, Refused, StreamError
from stream.search.cursor import OtherGeneration

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "1"  # seconds

STATUSES: Mapping[type[StreamError], HTTPStatus] = {  # an error has the status of its nearest class
    OtherGeneration: HTTPStatus.CONFLICT,
    InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refused: HTTPStatus.UNPROCESSABLE_ENTITY,
    DeadlineExceeded: HTTPStatus.REQUEST_TIMEOUT,  # the caller chose the time; the servers may be healthy
    Outage: HTTPStatus.SERVICE_UNAVAILABLE,
    ConfigurationError: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Problem(BaseModel):
    """An error. `detail` is a sentence that says what is wrong and what to do."""

    title: str
    status: int
    detail: str


def of(error: StreamError) -> Problem:
    """An error of the library."""
    kinds = (kind for kind in type(error).__mro__ if kind in STATUSES)
    return problem(STATUSES.get(next(kinds, StreamError), HTTPStatus.INTERNAL_SERVER_ERROR), str(error))


def problem(status: HTTPStatus, detail: str) -> Problem:
    """An error with a sentence."""
    return Problem(title=status.phrase, status=status.value, detail=detail)


def response(found: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer. One that is worth another try says when."""
    again = {"Retry-After": RETRY_AFTER} if found.status in (429, 503) else {}
    body = orjson.dumps(found.model_dump())
    return Response(body, found.status, {**again, **(headers or {})}, media_type=MEDIA_TYPE)
