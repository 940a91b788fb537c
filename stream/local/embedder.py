"""The development embedder: a server with vLLM's HTTP interface that hashes words. Lexical, not semantic.

It exists so that the whole system runs on a machine without a GPU. A search finds texts that share words with the
query, never texts that share only its meaning. The vector is a signed feature hash (Weinberger et al. 2009, arXiv
0902.2206) of words and of pairs of adjacent words. The HTTP interface follows the source of vLLM 0.32.0.

    python -m stream.local.embedder --port 18000
"""

import asyncio
import base64
import math
import re
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, pairwise
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import typer
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel, Field, ValidationError

from stream.errors import ConfigurationError

DIMENSIONS = 4096
MAX_MODEL_LEN = 32_768  # of Qwen3-Embedding-8B
BUCKETS = 4  # a word has one in each quarter of the vector: words that collide in one quarter differ in the other three
PAIR_WEIGHT = 0.5
STOP_WEIGHT = 0.1  # with full weight, words of every text would decide which texts are similar
STOP_WORDS = frozenset(
    "a an and are as at be by for from if in into is it its of on or that the this to with".split()  # noqa: SIM905
)
BYTE_ORDERS = {"native": "=f4", "little": "<f4", "big": ">f4"}
OWNER = "stream.local.embedder: hashes words, lexical not semantic"

TOKEN = re.compile(r"\w+|[^\w\s]")
WORD = re.compile(r"\w+")
BOUNDARY = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # inside snake_case and camelCase

Vector = npt.NDArray[np.float32]


def embed(text: str, dimensions: int = DIMENSIONS) -> Vector:
    """The vector (dimensions,) of a text, unit norm, the same on every machine.

    The weight of a word is 1 + log(occurrences); an adjacent pair has half, a stop word a tenth of that. An identifier
    counts as itself and as its parts. If a text has no words, its characters count. Of a query in the format of
    Qwen3-Embedding ("Instruct: {task}\\nQuery:{query}") only the part after "Query:" counts.
    """
    if text.startswith("Instruct: "):
        text = text.partition("\nQuery:")[2] or text
    words = WORD.findall(text)
    parts = [part for word in words for part in _parts(word)]
    identifiers = [word.lower() for word in words if len(_parts(word)) > 1]
    features = Counter(parts + identifiers) or Counter(text) or Counter([""])
    pairs = Counter(f"{first} {second}" for first, second in pairwise(parts))
    weights = [_weight(n) * (STOP_WEIGHT if feature in STOP_WORDS else 1) for feature, n in features.items()]
    weights += [PAIR_WEIGHT * _weight(n) for n in pairs.values()]

    hashes = np.frombuffer(b"".join(map(_digest, [*features, *pairs])), "<u2").reshape(-1, BUCKETS)
    width = dimensions // BUCKETS
    buckets = hashes % width + np.arange(BUCKETS) * width
    signed = np.where(hashes >> 15, -1.0, 1.0) * np.array(weights)[:, None]
    vector = np.bincount(buckets.ravel(), signed.ravel(), dimensions)
    return (vector / math.sqrt(math.fsum((vector * vector).tolist()))).astype(np.float32)


def tokens(text: str) -> int:
    """The number of tokens of a text: words, other characters that are not white space, and one end token."""
    return len(TOKEN.findall(text)) + 1


def truncated(text: str, limit: int) -> str:
    """The beginning of the text that has at most `limit` tokens, with the end token included."""
    ends = [match.end() for match in islice(TOKEN.finditer(text), limit)]
    return text if len(ends) < limit else text[: ends[limit - 2]] if limit > 1 else ""


def _weight(count: int) -> float:
    return 1 + round(math.log(count), 6)  # the last bits of a logarithm differ between machines


@lru_cache(maxsize=2**16)
def _parts(word: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in BOUNDARY.split(word) if part)


@lru_cache(maxsize=2**18)
def _digest(feature: str) -> bytes:
    return blake2b(feature.encode(), digest_size=2 * BUCKETS).digest()


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
    """The HTTP interface for one model name. Run `application()` once, in one event loop."""

    def __init__(self, model: str, dimensions: int = DIMENSIONS) -> None:
        self._model = model
        self._dimensions = dimensions
        self._lock = asyncio.Lock()
        self._registry = CollectorRegistry()
        self._waiting = self._gauge("vllm:num_requests_waiting", "Texts that wait to be embedded.")
        self._running = self._gauge("vllm:num_requests_running", "Texts that are being embedded.")

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(name, description, ["model_name"], registry=self._registry).labels(self._model)

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
            "id": self._model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": OWNER,
            "max_model_len": MAX_MODEL_LEN,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _embeddings(self, http: web.Request) -> web.Response:
        request = self._checked(http.content_type, await http.read())
        texts = [request.input] if isinstance(request.input, str) else request.input
        if (limit := request.truncate_prompt_tokens) is not None:
            texts = [truncated(text, MAX_MODEL_LEN if limit == -1 else limit) for text in texts]
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
        if request.model and request.model != self._model:
            raise _refusal(web.HTTPNotFound, f"The model `{request.model}` does not exist.", "model")
        if request.dimensions is not None:
            raise _refusal(
                web.HTTPBadRequest,
                f"Model {self._model!r} does not support Matryoshka embeddings; dimensions must be unset "
                f"(received dimensions={request.dimensions}).",
            )
        return request

    def _answer(self, texts: Sequence[str], request: EmbeddingRequest) -> bytes:
        lengths = [tokens(text) for text in texts]
        if max(lengths) > MAX_MODEL_LEN:
            raise _refusal(
                web.HTTPBadRequest,
                f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your prompt contains "
                f"{max(lengths)} input tokens. Please reduce the length of the input prompt.",
                "input_tokens",
            )
        encode = _as_base64 if request.encoding_format == "base64" else _as_floats
        answer = {
            "id": f"embd-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self._model,
            "data": [
                {"index": index, "object": "embedding", "embedding": encode(vector, request.endianness)}
                for index, vector in enumerate(embed(text, self._dimensions) for text in texts)
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


def serve(model: str, dimensions: int, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT. Raises `ConfigurationError` if it cannot listen on the address."""
    greeting = f"development embedder as {model} on http://{host}:{port}: hashes words, lexical not semantic"
    try:
        web.run_app(
            Server(model, dimensions).application(),
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


def main(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 18000,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    model: Annotated[str, typer.Option(help="The model name that clients see.")] = "Qwen/Qwen3-Embedding-8B",
    dimensions: Annotated[int, typer.Option(min=BUCKETS, help="The length of a vector.")] = DIMENSIONS,
) -> None:
    """An OpenAI-compatible embedding server for development: it hashes words, lexical not semantic."""
    try:
        serve(model, dimensions, host, port)
    except ConfigurationError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
