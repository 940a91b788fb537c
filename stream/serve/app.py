"""The HTTP interface: every route hands its request to the library, and every error is a problem with a sentence.

docs/serve.md describes it for users, docs/openapi.json for programs.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from stream import __version__, metrics
from stream.config import SearchMode
from stream.errors import StreamError
from stream.search.answer import Answer, Detail, Why
from stream.search.request import LONGEST_QUERY, invalid, request
from stream.search.request import Request as Search
from stream.serve import about, facets, flow, mcp, page, problems
from stream.serve.access import Key, Keys
from stream.serve.callers import Caller
from stream.serve.guards import guarded
from stream.serve.problems import MEDIA_TYPE, Problem, problem
from stream.serve.service import Service, count_degraded

MOST_REQUESTS = 64  # of a batch
NOT_JSON = "the body of the request must be one JSON document in UTF-8"
EXAMPLES = {
    "words, terms and vectors": {"value": {"query": "listen on a socket"}},
    "a filter": {
        "value": {
            "query": "listen on a socket",
            "k": 5,
            "filter": {"all": [{"field": "metadata.lang", "equal": "en"}, {"field": "metadata.year", "gte": 2020}]},
        }
    },
    "documents, explained": {
        "value": {"query": "listen on a socket", "mode": "lexical", "group": {"size": 2}, "explain": True}
    },
}


class Batch(BaseModel):
    """Several searches, which are encoded together."""

    model_config = ConfigDict(extra="forbid")

    requests: Annotated[list[Search], Field(min_length=1, max_length=MOST_REQUESTS)]


class Answered(BaseModel):
    """The outcome of one search of a batch: its answer, or its problem."""

    answer: Answer | None = None
    problem: Problem | None = None


class Answers(BaseModel):
    """The outcomes of a batch, in the order of its requests."""

    answers: list[Answered]


ChunkId = Annotated[str, Field(max_length=1024)]
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
NOT_FOUND: dict[str, Any] = {"description": "there is no such chunk", "content": _PROBLEM}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": _PROBLEM}
    for status, description in (
        (400, "the request is not JSON"),
        (401, "the key is missing or unknown"),
        (403, "the key sees only some chunks"),
        (408, "the deadline has passed and no leg has answered"),
        (409, "the cursor is one of an earlier generation"),
        (413, "the request is too large"),
        (422, "the request cannot be answered"),
        (429, "too many requests at once"),
        (503, "a store or a model does not answer"),
    )
}


def application(service: Service) -> FastAPI:
    """The routes, without the guards."""
    app = FastAPI(
        title="stream",
        version=__version__,
        summary="Searches text chunks by words, learned terms and vectors.",
        docs_url=None,  # FastAPI's own pages load scripts from other hosts
        redoc_url=None,
        responses=PROBLEMS,
    )
    _searches(app, service)
    about.routes(app, service)
    facets.routes(app, service)
    flow.routes(app, service)
    app.router.routes.append(mcp.route(service))
    _probes(app, service)
    page.routes(app)
    _errors(app)
    return app


def served(service: Service, keys: Keys) -> ASGIApp:
    """The application as it is served, behind its guards."""
    settings = service.settings
    return guarded(application(service), keys, settings.serve_in_flight, settings.serve_body_bytes)


def json(value: Any) -> Response:
    """An answer of the library as `stream search --json` prints it."""
    return Response(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")


def _searches(app: FastAPI, service: Service) -> None:
    searcher = service.searcher

    @app.post("/search", response_model=Answer, summary="Search")
    async def search(key: Caller, asked: Annotated[Search, Body(openapi_examples=EXAMPLES)]) -> Response:
        """Answers one search. The same request gives the same hits as in the library and on the command line."""
        answer = await searcher.search(key.narrowed(asked))
        count_degraded(answer)
        return json(answer)

    @app.post("/search/batch", response_model=Answers, summary="Search for several queries at once")
    async def batch(key: Caller, asked: Batch) -> Response:
        """Answers several searches; each model encodes their queries in one call. One that fails has a problem."""
        answers = await searcher.search_all([key.narrowed(one) for one in asked.requests])
        return json({"answers": [_answered(answer) for answer in answers]})

    async def reasons(key: Key, asked: Search, chunk_id: str) -> Response:
        if key.filter is not None and not ((chunk := await searcher.chunk(chunk_id)) and key.sees(chunk)):
            return json(Why.unknown(chunk_id))  # that it exists is not the caller's to know
        return json(await searcher.why(key.narrowed(asked), chunk_id))

    @app.post("/chunks/{chunk_id:path}/why", response_model=Why, summary="Why a search finds a chunk, or does not")
    async def why(key: Caller, chunk_id: ChunkId, asked: Search) -> Response:
        """The rank and the score of a chunk in each leg of a search, and the reasons why it is not found."""
        return await reasons(key, asked, chunk_id)

    @app.get("/chunks/{chunk_id:path}/why", response_model=Why, summary="Why a query finds a chunk, or does not")
    async def why_query(
        key: Caller,
        chunk_id: ChunkId,
        q: Annotated[str, Query(max_length=LONGEST_QUERY, examples=["listen on a socket"])],
        mode: SearchMode = "hybrid",
    ) -> Response:
        """The same for a query with a mode and nothing else."""
        return await reasons(key, request(query=q, mode=mode), chunk_id)

    @app.get("/chunks/{chunk_id:path}", response_model=Detail, summary="A chunk", responses={404: NOT_FOUND})
    async def chunk(key: Caller, chunk_id: ChunkId) -> Response:
        """A chunk of the live index, the models of its vector and its terms, and the record that it comes from."""
        found = await searcher.detail(chunk_id, key.filter)
        if found is None:
            return problems.response(problem(HTTPStatus.NOT_FOUND, "there is no such chunk"))
        return json(found)


def _answered(answer: Answer | StreamError) -> Mapping[str, Any]:
    if isinstance(answer, StreamError):
        return {"answer": None, "problem": problems.of(answer).model_dump()}
    count_degraded(answer)
    return {"answer": answer, "problem": None}


def _probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        return Response(f"{service.unready or 'ok'}\n", 503 if service.unready else 200, media_type="text/plain")

    @app.get("/metrics", include_in_schema=False)
    async def prometheus(http: Request) -> Response:
        body, content_type = metrics.exposed(http.headers.get("Accept", ""))
        return Response(body, headers={"Content-Type": content_type})


def _errors(app: FastAPI) -> None:
    @app.exception_handler(StreamError)
    async def known(_: Request, error: StreamError) -> Response:
        return problems.response(problems.of(error))

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        if any(one["type"] == "json_invalid" for one in error.errors()):
            return problems.response(problem(HTTPStatus.BAD_REQUEST, NOT_JSON))
        found = [{**one, "loc": one["loc"][1:]} for one in error.errors()]  # without "body", "query" or "path"
        return problems.response(problems.of(invalid(found)))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        detail = NOT_JSON if error.status_code == 400 else str(error.detail)  # FastAPI's own sentence says less
        return problems.response(problem(HTTPStatus(error.status_code), detail), error.headers)

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        detail = f"the service has a fault ({type(error).__name__}): its log has the place"
        return problems.response(problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail))
