"""The Model Context Protocol (modelcontextprotocol.io): `stream mcp` on standard input and output, the service at /mcp.

docs/mcp.md describes it for users.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from stream import __version__, logs, signals, tracing
from stream.config import Settings
from stream.errors import StreamError
from stream.search.searcher import Searcher
from stream.serve.access import EVERYONE, Key
from stream.serve.service import Service, open_service
from stream.serve.tools import FETCH, INSTRUCTIONS, SEARCH, Asked, Fetched, Found, Tools, Wanted

Context = ServerRequestContext[Any, Request]

log = logging.getLogger(__name__)

LONGEST_ERROR = 1000  # bytes


def server(searcher: Searcher, caller: Callable[[Context], Key]) -> Server[Any]:
    """A server of both tools. `caller` says who sent a request."""
    tools = Tools(searcher)
    calls: dict[str, Callable[[Key, dict[str, Any]], Awaitable[CallToolResult]]] = {
        "search": tools.search,
        "fetch": tools.fetch,
    }

    async def on_list(_: Context, __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_tool("search", SEARCH, Asked, Found), _tool("fetch", FETCH, Wanted, Fetched)])

    async def on_call(context: Context, params: CallToolRequestParams) -> CallToolResult:
        if params.name not in calls:
            raise MCPError(INVALID_PARAMS, f"there is no such tool: the tools are {' and '.join(calls)}")
        try:
            return await calls[params.name](caller(context), params.arguments or {})
        except StreamError as error:
            return _error(str(error))
        except Exception as error:  # the SDK would send its text to the client
            log.exception("%s failed", params.name)
            return _error(f"the service has a fault ({type(error).__name__}): its log has the place")

    return Server(
        "chunk-stream", version=__version__, instructions=INSTRUCTIONS, on_list_tools=on_list, on_call_tool=on_call
    )


def _tool(name: str, description: str, asked: type[BaseModel], answer: type[BaseModel]) -> Tool:
    return Tool(
        name=name,
        description=description,
        input_schema=asked.model_json_schema(),
        output_schema=answer.model_json_schema(),
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )


class _Named(Route):
    """A route that guards can name in logs and metrics: FastAPI sets `scope["route"]` for its own routes only."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self}


def route(service: Service) -> Route:
    """The tools at /mcp, for an application behind `stream.serve.guards`: without them every call fails."""
    return _Named("/mcp", _OverHttp(service), methods=["POST"])


class _OverHttp:
    """An ASGI application: streamable HTTP without sessions, and answers in JSON."""

    def __init__(self, service: Service) -> None:
        self._server = server(service.searcher, _caller)
        self._body_bytes = service.settings.serve_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A manager works while its `run()` is open. It keeps nothing from one request to the next without sessions.
        manager = StreamableHTTPSessionManager(
            self._server, json_response=True, stateless=True, max_request_body_size=self._body_bytes
        )
        async with manager.run():
            await manager.handle_request(scope, receive, send)


def _caller(context: Context) -> Key:
    assert context.request
    key: Key = context.request.scope["state"]["key"]
    return key


def run(settings: Settings) -> None:
    """Serves the tools on standard input and output until the input ends."""
    signals.end_at_once(0)
    logs.configure(settings)
    with tracing.exported(settings, "mcp"):
        asyncio.run(_over_stdio(settings))


async def _over_stdio(settings: Settings) -> None:
    """Answers at once; the models are loaded meanwhile."""
    async with open_service(settings) as service, stdio_server() as (read, write):
        warming = asyncio.create_task(_warm(service))
        tools = server(service.searcher, lambda _: EVERYONE)
        await tools.run(read, write, tools.create_initialization_options())
        warming.cancel()


async def _warm(service: Service) -> None:
    with suppress(StreamError):  # a search says it too
        await service.warm()


def _error(sentence: str) -> CallToolResult:
    text = sentence.encode()[:LONGEST_ERROR].decode(errors="ignore")
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)
