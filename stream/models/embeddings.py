"""A client of vLLM's OpenAI-compatible `/v1/embeddings`.

The wire format is base64 of little-endian float32. Neither `dimensions` nor `normalize` is sent: vLLM refuses the first
for this model and newer versions the second; vectors come normalised. Unknown fields are ignored silently there, so
every answer is checked: count, order, length, finite, unit norm.
"""

import base64
import ssl
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import orjson
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from stream import metrics, tls
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, Refused, StreamError
from stream.records import Provenance

RETRIES = 3
PROBE = "probe"
NORM_TOLERANCE = 1e-2  # bfloat16 keeps 8 bits

Vector = npt.NDArray[np.float32]


def _may_pass_soon(error: BaseException) -> bool:
    # Of a server that hangs whoever waits must learn after one time-out, not after four.
    return isinstance(error, Outage) and not isinstance(error.__cause__, httpx.TimeoutException)


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
        it does not answer, is overloaded, does not serve the model or answers nonsense, the same to a harmless text
        too; three retries first, but none of a time-out.
        """
        started = time.monotonic()
        try:
            vectors = await self._request(list(texts))
        except Refused:
            if len(texts) > 1:  # whose fault it is will be asked of the one that is left when the batch is split
                raise
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
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise Outage(f"{self._settings.embed_url} is no embedding server: {error!r}") from None

    async def _suspected(self, texts: list[str]) -> list[str]:
        """Whether the text or the server is to blame is found out with a text beyond suspicion."""
        try:
            await self._request([PROBE])
        except Refused as error:
            raise Outage(str(error)) from error
        return await self._request(texts)

    @retry(
        retry=retry_if_exception(_may_pass_soon),
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
        except (httpx.TransportError, ssl.SSLError) as error:  # httpx lets some of OpenSSL's through
            raise self._unreachable(error) from error
        self._let_in(response)
        if response.status_code in (400, 413, 422):
            raise Refused(f"the embedding server refuses it: {_message(response)}")
        if response.status_code != 200:
            raise Outage(f"the embedding server answers {response.status_code}: {_message(response)}")
        return self._checked(response.content, len(texts))

    def _unreachable(self, error: httpx.HTTPError | ssl.SSLError) -> StreamError:
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
            items = sorted(orjson.loads(content)["data"], key=lambda item: item["index"])
            vectors = [item["embedding"] for item in items]
            packed = [base64.b64decode(vector, validate=True) for vector in vectors]
        except (ValueError, KeyError, TypeError) as error:
            raise Outage(f"the embedding server's answer cannot be read: {error!r}") from error
        dimensions = self._settings.embed_dimensions
        if [item["index"] for item in items] != list(range(count)):
            raise Outage(f"the embedding server gave {len(items)} vectors for {count} texts, or numbered them wrongly")
        if lengths := {len(vector) / 4 for vector in packed} - {dimensions}:
            raise Outage(f"the embedding server gave a vector of {lengths.pop():g} numbers, not {dimensions}")
        if not has_unit_norm(np.frombuffer(b"".join(packed), "<f4").reshape(count, dimensions)).all():
            raise Refused("the embedding server gave a vector that is not finite or not of unit norm")
        return vectors


def unpack(vector: str) -> Vector:
    """A vector as it travels (base64 of little-endian float32) as numbers; raises `ValueError` if it is none."""
    return np.frombuffer(base64.b64decode(vector, validate=True), "<f4")


def has_unit_norm(vectors: Vector) -> npt.NDArray[np.bool_]:
    """Which of the vectors (..., d) are finite and of unit norm, as closely as bfloat16 can say it."""
    norms: npt.NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    return np.abs(norms - 1) < NORM_TOLERANCE  # false of a NaN and of an infinity


def _message(response: httpx.Response) -> str:
    try:
        body: Any = response.json()
        return str(body["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase
