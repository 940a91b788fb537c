"""What every request passes before it is answered, as ASGI middleware: access, limits, security headers, the log.

None of it reads a query or an answer, so neither can be in a log, a metric or a trace.
"""

import logging
import time
from http import HTTPStatus

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream import metrics
from stream.serve.access import Keys
from stream.serve.problems import problem, response

log = logging.getLogger("stream.serve")

OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/favicon.ico")  # without a key: neither texts nor ids
PAGE = "/page/"
LONG = "/flow/events"  # lasts until the reader closes it
LOOPBACK_NAMES = {"127.0.0.1", "localhost", "[::1]"}
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
NOT_STORED = "no-store"  # answers depend on the key and on what is indexed

_tracer = trace.get_tracer("stream")
_propagator = TraceContextTextMapPropagator()


def is_open(path: str) -> bool:
    """Whether a path needs no key: the page itself, the probes and the description of the interface."""
    return path == "/" or path in OPEN or path.startswith(PAGE)


class Observed:
    """Logs, counts and traces each request by its route, never by its path: a path may have a chunk_id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", NOT_STORED)
            await send(message)

        parent = _propagator.extract(dict(Headers(scope=scope)))
        with _tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:
            try:
                await self._app(scope, receive, watched)
            finally:
                route, seconds = _route(scope), time.perf_counter() - began
                metrics.http_requests.labels(route, str(status)).inc()
                if route != LONG:
                    metrics.http_seconds.labels(route).observe(seconds)
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": status})
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))
                who = key.name if (key := scope.get("state", {}).get("key")) else "-"
                line = {"route": route, "status": status, "ms": round(1000 * seconds, 1), "key": who}
                level = logging.DEBUG if is_open(scope["path"]) else logging.INFO
                log.log(level, "%s %s %d %.1f ms %s", scope["method"], *line.values(), extra=line)
        return None


def _route(scope: Scope) -> str:
    """The template of the route, /chunks/{chunk_id} for example; a path without a route may have anything in it."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "-"


class Access:
    """Requires a bearer key (RFC 6750) on every path but the open ones; `scope["state"]["key"]` is who calls.

    Without keys only this machine's own names are accepted as `Host`: otherwise any web page could read the service
    through a DNS name that it points at this machine (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if not self._keys.required and _name(headers.get("host", "")) not in LOOPBACK_NAMES:
            detail = "without keys the service answers to the names localhost and 127.0.0.1 only"
            return await response(problem(HTTPStatus.MISDIRECTED_REQUEST, detail))(scope, receive, send)
        if not is_open(scope["path"]):
            scheme, _, secret = headers.get("authorization", "").partition(" ")
            key = self._keys.find(secret.strip() if scheme.lower() == "bearer" else None)
            if key is None:
                detail = "this needs a key that the service knows: send the header Authorization: Bearer KEY"
                refusal = response(problem(HTTPStatus.UNAUTHORIZED, detail), {"WWW-Authenticate": "Bearer"})
                return await refusal(scope, receive, send)
            scope.setdefault("state", {})["key"] = key
        return await self._app(scope, receive, send)


def _name(host: str) -> str:
    """A `Host` header without its port."""
    return host if host.endswith("]") else host.rsplit(":", 1)[0]


class Bounded:
    """Refuses a request that is too large, and every request beyond the maximum at once; open paths always pass."""

    def __init__(self, app: ASGIApp, in_flight: int, body_bytes: int) -> None:
        self._app = app
        self._most, self._body_bytes = in_flight, body_bytes
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]) or scope["path"] == LONG:
            return await self._app(scope, receive, send)
        if self._now >= self._most:
            detail = f"the service is answering {self._most} requests: try again in a second"
            return await response(problem(HTTPStatus.TOO_MANY_REQUESTS, detail))(scope, receive, send)
        self._now += 1
        metrics.http_in_flight.set(self._now)
        try:
            body = await _body(scope, receive, self._body_bytes)
            if body is None:
                detail = f"a request has at most {self._body_bytes:,} bytes: send less at once"
                refusal = response(problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail), {"Connection": "close"})
                return await refusal(scope, receive, send)
            return await self._app(scope, _replayed(body, receive), send)
        finally:
            self._now -= 1
            metrics.http_in_flight.set(self._now)


async def _body(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The whole body; None if it is larger than `most`, or says that it will be."""
    announced = Headers(scope=scope).get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        return None
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False) and message["type"] != "http.disconnect"
        if len(body) > most:
            return None
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def guarded(app: ASGIApp, keys: Keys, in_flight: int, body_bytes: int) -> ASGIApp:
    """The application behind all guards."""
    return Observed(Access(Bounded(app, in_flight, body_bytes), keys))
