"""The development embedder: vLLM's HTTP interface before a model that runs on the CPU.

It exists so that the whole system runs on a machine without a GPU. The model is a trained sentence model
(`stream.local.sentences`) or, without weights, a stand-in that hashes words (`stream.local.hashing`). The HTTP
interface follows the source of vLLM 0.32.0.

    python -m stream.local.embedder --port 18000 --weights FOLDER
"""

import asyncio
import base64
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import orjson
import typer
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel, Field, ValidationError

from stream.errors import ConfigurationError
from stream.local import hashing
from stream.vectors import Vector

BYTE_ORDERS = {"native": "=f4", "little": "<f4", "big": ">f4"}


class Model(Protocol):
    """What the server needs of a model. `owner` says what it is."""

    owner: str
    max_model_len: int

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""

    def truncated(self, text: str, limit: int) -> str:
        """The beginning of the text that has at most `limit` tokens."""

    def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        """The vectors of the texts, unit norm."""


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`; fields that are not listed are ignored, as in vLLM.

    Token ids, `bytes` formats and smaller types, which vLLM accepts, are refused.
    """

    model: str | None = None
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little", "big"] = "native"
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    normalize: Any = None


class Server:
    """The HTTP interface for a model under one name. Run `application()` once, in one event loop."""

    def __init__(self, name: str, model: Model) -> None:
        self._name = name
        self._model = model
        self._lock = asyncio.Lock()
        self._registry = CollectorRegistry()
        self._waiting = self._gauge("vllm:num_requests_waiting", "Texts that wait to be embedded.")
        self._running = self._gauge("vllm:num_requests_running", "Texts that are being embedded.")

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(name, description, ["model_name"], registry=self._registry).labels(self._name)

    def application(self) -> web.Application:
        """The application. It does not listen yet."""
        application = web.Application(client_max_size=0)  # no limit: vLLM has none
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/embeddings", self._embeddings)
        return application

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self._name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": self._model.owner,
            "max_model_len": self._model.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _embeddings(self, http: web.Request) -> web.Response:
        request = self._checked(http.content_type, await http.read())
        texts = [request.input] if isinstance(request.input, str) else request.input
        if (limit := request.truncate_prompt_tokens) is not None:
            most = self._model.max_model_len if limit == -1 else limit
            texts = [self._model.truncated(text, most) for text in texts]
        if not texts:
            raise _refusal(web.HTTPBadRequest, "You must pass at least one prompt")
        self._waiting.inc(len(texts))
        async with self._lock:
            self._waiting.dec(len(texts))
            self._running.inc(len(texts))
            try:
                body = await asyncio.to_thread(self._answer, texts, request)
            finally:
                self._running.dec(len(texts))
        return web.Response(body=body, content_type="application/json")

    def _checked(self, content_type: str, body: bytes) -> EmbeddingRequest:
        if content_type != "application/json":
            raise _refusal(web.HTTPBadRequest, "Unsupported Media Type: Only 'application/json' is allowed")
        try:
            request = EmbeddingRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise _refusal(web.HTTPBadRequest, f"{field or 'body'}: {first['msg']}", field or None) from None
        if "normalize" in request.model_fields_set:
            raise _refusal(web.HTTPBadRequest, "Parameter `normalize` was removed", "normalize")
        if request.model and request.model != self._name:
            raise _refusal(web.HTTPNotFound, f"The model `{request.model}` does not exist.", "model")
        if request.dimensions is not None:
            raise _refusal(
                web.HTTPBadRequest,
                f"Model {self._name!r} does not support Matryoshka embeddings; dimensions must be unset "
                f"(received dimensions={request.dimensions}).",
            )
        return request

    def _answer(self, texts: Sequence[str], request: EmbeddingRequest) -> bytes:
        lengths, most = self._model.tokens(texts), self._model.max_model_len
        if max(lengths) > most:
            raise _refusal(
                web.HTTPBadRequest,
                f"This model's maximum context length is {most} tokens. However, your prompt contains "
                f"{max(lengths)} input tokens. Please reduce the length of the input prompt.",
                "input_tokens",
            )
        encode = _as_base64 if request.encoding_format == "base64" else _as_floats
        answer = {
            "id": f"embd-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self._name,
            "data": [
                {"index": index, "object": "embedding", "embedding": encode(vector, request.endianness)}
                for index, vector in enumerate(self._model.embed(texts))
            ],
            "usage": {
                "prompt_tokens": sum(lengths),
                "total_tokens": sum(lengths),
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _as_floats(vector: Vector, _: str) -> Vector:
    return vector


def _as_base64(vector: Vector, endianness: str) -> str:
    return base64.b64encode(vector.astype(BYTE_ORDERS[endianness]).tobytes()).decode()


def _refusal(kind: type[web.HTTPClientError], message: str, param: str | None = None) -> web.HTTPClientError:
    """An HTTP error with the body that vLLM sends."""
    name = "NotFoundError" if kind is web.HTTPNotFound else "BadRequestError"
    error = {"message": message, "type": name, "param": param, "code": kind.status_code}
    return kind(text=orjson.dumps({"error": error}).decode(), content_type="application/json")


def serve(name: str, model: Model, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT. Raises `ConfigurationError` if it cannot listen on the address."""
    greeting = f"development embedder as {name} on http://{host}:{port}: {model.owner}"
    try:
        web.run_app(
            Server(name, model).application(),
            host=host,
            port=port,
            print=lambda _: typer.echo(greeting),
            access_log=None,
            shutdown_timeout=5,
        )
    except OSError as error:
        raise ConfigurationError(
            f"the embedder cannot listen on {host}:{port}: {error.strerror}; free it or choose another port with --port"
        ) from error


def _model(weights: Path | None, dimensions: int) -> Model:
    if weights is None:
        return hashing.HashedWords(dimensions)
    from stream.local.sentences import SentenceModel  # noqa: PLC0415 - torch takes seconds to import

    return SentenceModel(weights)


def main(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 18000,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    model: Annotated[str, typer.Option(help="The model name that clients see.")] = "Qwen/Qwen3-Embedding-8B",
    weights: Annotated[Path | None, typer.Option(help="Folder of a model; without it, words are hashed.")] = None,
    dimensions: Annotated[int, typer.Option(min=4, help="Length of a vector of hashed words.")] = hashing.DIMENSIONS,
) -> None:
    """An OpenAI-compatible embedding server for development, on the CPU."""
    try:
        serve(model, _model(weights, dimensions), host, port)
    except ConfigurationError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
