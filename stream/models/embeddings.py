"""A client of vLLM's OpenAI-compatible `/v1/embeddings`.

The wire format is base64 of little-endian float32. Neither `dimensions` nor `normalize` is sent: vLLM refuses the first
for this model and newer versions the second; vectors come normalised. Unknown fields are ignored silently there, so
every answer is checked: count, order, length, finite, unit norm.
"""

import base64
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import orjson
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from stream import metrics, tls
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, Refused, StreamError
from stream.records import Provenance

RETRIES = 3
PROBE = "probe"
NORM_TOLERANCE = 1e-2  # bfloat16 keeps 8 bits

Vector = npt.NDArray[np.float32]


class _NoVector(Exception):
    """Numbers came back, but not a vector of unit norm."""


class EmbeddingClient:
    """Embeds texts on a server; one connection pool. Use as an async context manager."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        key = settings.embed_api_key
        self._http = httpx.AsyncClient(
            base_url=settings.embed_url,
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx.Timeout(settings.embed_timeout, connect=5),
            verify=tls.context(settings.embed_ca_file),
            trust_env=False,  # a proxy for the way out is none for the way to a neighbour
            transport=transport,
        )

    async def __aenter__(self) -> "EmbeddingClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def provenance(self) -> Provenance:
        """What each vector says of its origin."""
        settings = self._settings
        return {
            "model": settings.embed_model,
            "revision": settings.embed_revision,
            "parameters": {"dimensions": settings.embed_dimensions},
        }

    async def embed(self, texts: Sequence[str]) -> list[str]:
        """Vectors of the texts, in order: base64 of `embed_dimensions` little-endian float32 each, unit norm.

        Raises `Refused` if the server will never embed one of them (nobody says which: split the batch), `Outage` if
        it does not answer, is overloaded, does not serve the model or answers nonsense; three retries first.
        """
        started = time.monotonic()
        try:
            vectors = await self._request(list(texts))
        except _NoVector:
            vectors = await self._suspected(list(texts))
        seconds = time.monotonic() - started
        metrics.embed_latency_ms.observe(seconds * 1000)
        metrics.embed_batch_size.observe(len(texts))
        metrics.embed_chunks_sec.set(len(texts) / seconds)
        return vectors

    async def embed_query(self, query: str) -> Vector:
        """The vector (embed_dimensions,) of a query, told apart from a document as Qwen3-Embedding's card says."""
        (vector,) = await self.embed([f"Instruct: {self._settings.embed_instruction}\nQuery:{query}"])
        return unpack(vector)

    async def served_models(self) -> dict[str, int | None]:
        """Names of the models that the server serves, each with the tokens that it takes at most."""
        try:
            response = await self._http.get("/v1/models", timeout=5)
            self._let_in(response)
            response.raise_for_status()
            return {model["id"]: model.get("max_model_len") for model in response.json()["data"]}
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise Outage(f"{self._settings.embed_url} is no embedding server: {error!r}") from None

    async def _suspected(self, texts: list[str]) -> list[str]:
        """Whether texts or server are to blame for what is no vector is found out with a text beyond suspicion."""
        try:
            await self._request([PROBE])
        except _NoVector as error:
            raise Outage(str(error)) from error
        try:
            return await self._request(texts)
        except _NoVector as error:
            raise Refused(str(error)) from error

    @retry(
        retry=retry_if_exception_type(Outage),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=stop_after_attempt(1 + RETRIES),
        reraise=True,
    )
    async def _request(self, texts: list[str]) -> list[str]:
        body = {
            "model": self._settings.embed_model,
            "input": texts,
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }
        try:
            response = await self._http.post(
                "/v1/embeddings", content=orjson.dumps(body), headers={"Content-Type": "application/json"}
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._let_in(response)
        if response.status_code in (400, 413, 422):
            raise Refused(f"the embedding server refuses it: {_message(response)}")
        if response.status_code != 200:
            raise Outage(f"the embedding server answers {response.status_code}: {_message(response)}")
        return self._checked(response.content, len(texts))

    def _unreachable(self, error: httpx.HTTPError) -> StreamError:
        where = self._settings.embed_url
        if refusal := tls.refusal(error):
            return ConfigurationError(
                f"the embedding server cannot be reached at {where}, {refusal}: set STREAM_EMBED_CA_FILE"
            )
        return Outage(f"the embedding server at {where} does not answer: {error!r}")

    def _let_in(self, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise ConfigurationError(
                f"the embedding server at {self._settings.embed_url} does not let us in "
                f"({response.status_code}): set STREAM_EMBED_API_KEY"
            )

    def _checked(self, content: bytes, count: int) -> list[str]:
        try:
            vectors = [item["embedding"] for item in sorted(orjson.loads(content)["data"], key=lambda i: i["index"])]
            packed = b"".join(base64.b64decode(vector, validate=True) for vector in vectors)
        except (ValueError, KeyError, TypeError) as error:
            raise Outage(f"the embedding server's answer cannot be read: {error!r}") from error
        dimensions = self._settings.embed_dimensions
        if len(vectors) != count or len(packed) != 4 * count * dimensions:
            raise Outage(
                f"the embedding server gave {len(vectors)} vectors of {len(packed) / 4 / max(len(vectors), 1):g} "
                f"numbers for {count} texts; {dimensions} each were expected"
            )
        norms = np.linalg.norm(np.frombuffer(packed, "<f4").reshape(count, dimensions), axis=1)
        if not np.all(np.abs(norms - 1) < NORM_TOLERANCE):  # a NaN or an infinity fails this too
            raise _NoVector("the embedding server gave a vector that is not finite or not of unit norm")
        return vectors


def unpack(vector: str) -> Vector:
    """A vector as it travels (base64 of little-endian float32) as numbers; raises `ValueError` if it is none."""
    return np.frombuffer(base64.b64decode(vector, validate=True), "<f4")


def _message(response: httpx.Response) -> str:
    try:
        body: Any = response.json()
        return str(body["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase
