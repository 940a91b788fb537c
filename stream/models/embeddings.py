"""A client of vLLM's OpenAI-compatible `/v1/embeddings`.

The wire format is base64 of little-endian float32. Neither `dimensions` nor `normalize` is sent: vLLM refuses the first
for this model and newer versions the second; vectors come normalised. Unknown fields are ignored silently there, so
every answer is checked: count, order, length, finite, unit norm.
"""

import asyncio
import base64
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx
import numpy as np
import orjson
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from stream import metrics, progress, tls
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, Refused, StreamError
from stream.models.replicas import Replicas
from stream.records import Provenance
from stream.vectors import Vector, has_unit_norm, unpack

RETRIES = 3
CAUSES = ("connection", "time-out", "answer", "429", "500", "503")  # of a request made again; others are rare
LONGEST_PAUSE = 30.0  # seconds that `Retry-After` may ask for
BYTES_A_TOKEN = 3
WHOLE = -1  # as many tokens as the model reads: what vLLM cuts a text to when it is asked to
PROBE = "probe"


class _Fault(Outage):
    """One request that failed: why in a word, whether another may do better, and when the server wants it."""

    def __init__(self, message: str, cause: str, *, again: bool = True, after: float = 0) -> None:
        super().__init__(message, cause)
        self.again, self.after = again, after


class EmbeddingClient:
    """Embeds texts on one server or on several that serve the same; one connection pool.

    Use as an async context manager.
    """

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        key = settings.embed_api_key
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx.Timeout(settings.embed_timeout, connect=5),
            limits=httpx.Limits(keepalive_expiry=60),
            verify=tls.context(settings.embed_ca_file),
            trust_env=False,  # a proxy for the way out is none for the way to a neighbour
            transport=transport,
        )
        self._replicas = Replicas(settings.embed_urls)
        for cause in CAUSES:
            metrics.embed_retries.labels(cause)
        self._pause = wait_random_exponential(multiplier=0.2, max=5)
        # Of a server that hangs whoever waits must learn after one time-out, not after four.
        self._retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, _Fault) and error.again),
            wait=self._wait,
            stop=stop_after_attempt(1 + RETRIES) | stop_after_delay(settings.embed_timeout),
            before_sleep=_count,
            reraise=True,
        )

    async def __aenter__(self) -> Self:
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
            "parameters": {"dimensions": settings.embed_dimensions, "long_texts": settings.embed_long_texts},
        }

    async def embed(self, texts: Sequence[str]) -> list[str]:
        """Vectors of the texts, in order: base64 of `embed_dimensions` little-endian float32 each, unit norm.

        Raises `Refused` if the server will never embed one of them (nobody says which: split the batch), `Outage` if
        it does not answer, is overloaded, does not serve the model or answers nonsense, the same to a harmless text
        too. Three retries come first, within `embed_timeout` seconds.
        """
        started = time.monotonic()
        try:
            vectors = await self._patiently(self._ask_one, list(texts))
        except Refused:
            if len(texts) > 1:  # whose fault it is will be asked of the one that is left when the batch is split
                raise
            vectors = await self._patiently(self._suspect, list(texts))
        seconds = time.monotonic() - started
        metrics.embed_latency_ms.observe(seconds * 1000)
        metrics.embed_batch_size.observe(len(texts))
        metrics.embed_chunks_sec.set(len(texts) / seconds)
        return vectors

    async def embed_query(self, query: str) -> Vector:
        """The vector (embed_dimensions,) of a query, told apart from a document as Qwen3-Embedding's card says."""
        (vector,) = await self.embed([f"Instruct: {self._settings.embed_instruction}\nQuery:{query}"])
        return unpack(vector)

    async def answer(self) -> None:
        """Returns if one of the servers at least is as it should be; raises what is wrong with the last otherwise."""
        found = await asyncio.gather(*map(self.examine, self._settings.embed_urls), return_exceptions=True)
        wrong = [one for one in found if isinstance(one, BaseException)]
        for address, one in zip(self._settings.embed_urls, found, strict=True):
            metrics.embed_server_up.labels(address).set(not isinstance(one, BaseException))
        if len(wrong) == len(found):
            raise wrong[-1]

    async def examine(self, address: str) -> str:
        """What a server says of itself, in a few words; raises what is wrong with it."""
        try:
            models = await self._http.get(f"{address}/v1/models", timeout=5)
            self._let_in(address, models)
            served = {model["id"]: model.get("max_model_len") for model in models.raise_for_status().json()["data"]}
            health = await self._http.get(f"{address}/health", timeout=5)
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise _unreachable(address, error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise Outage(f"{address} is no embedding server: {error!r}") from None
        if health.status_code != 200:
            raise Outage(f"the embedding server at {address} says of its health: {health.status_code}")
        wanted = self._settings.embed_model
        if wanted not in served:
            raise Outage(f"the embedding server at {address} serves {', '.join(served) or 'nothing'}, not {wanted}")
        return f"{wanted}, at most {served[wanted]} tokens a text"

    async def _patiently(self, ask: Callable[[list[str]], Awaitable[list[str]]], texts: list[str]) -> list[str]:
        metrics.embed_in_flight.inc()
        try:
            return await self._retrying.copy()(ask, texts)
        finally:
            metrics.embed_in_flight.dec()

    async def _ask_one(self, texts: list[str]) -> list[str]:
        with self._replicas.one() as address:
            return await self._ask(address, texts)

    async def _suspect(self, texts: list[str]) -> list[str]:
        """Whether the text or the server is to blame is found out with a text beyond suspicion, on the same server."""
        with self._replicas.one() as address:
            try:
                await self._ask(address, [PROBE])
            except Refused as error:
                raise _Fault(str(error), "probe") from error
            return await self._ask(address, texts)

    async def _ask(self, address: str, texts: list[str]) -> list[str]:
        body: dict[str, Any] = {
            "model": self._settings.embed_model,
            "input": texts,
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }
        if self._settings.embed_long_texts == "truncate":
            body["truncate_prompt_tokens"] = WHOLE
        try:
            response = await self._http.post(
                f"{address}/v1/embeddings", content=orjson.dumps(body), headers={"Content-Type": "application/json"}
            )
        except (httpx.TransportError, ssl.SSLError) as error:  # httpx lets some of OpenSSL's through
            raise _unreachable(address, error) from error
        finally:
            progress.made()
        self._let_in(address, response)
        status = response.status_code
        if status in (400, 413, 422):
            raise Refused(f"the embedding server refuses it: {_message(response)}")
        if status != 200:
            said = f"the embedding server at {address} answers {status}: {_message(response)}"
            raise _Fault(said, str(status), again=status != 404, after=_retry_after(response))
        return self._checked(response.content, len(texts))

    def _wait(self, state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.after if isinstance(fault, _Fault) else 0
        return max(self._pause(state), min(asked, LONGEST_PAUSE))

    def _let_in(self, address: str, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise ConfigurationError(
                f"the embedding server at {address} does not let us in "
                f"({response.status_code}): set STREAM_EMBED_API_KEY"
            )

    def _checked(self, content: bytes, count: int) -> list[str]:
        try:
            answer = orjson.loads(content)
            items = sorted(answer["data"], key=lambda item: item["index"])
            tokens = int(answer.get("usage", {}).get("prompt_tokens", 0))
            vectors = [item["embedding"] for item in items]
            packed = [base64.b64decode(vector, validate=True) for vector in vectors]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Fault(f"the embedding server's answer cannot be read: {error!r}", "answer") from error
        dimensions = self._settings.embed_dimensions
        if [item["index"] for item in items] != list(range(count)):
            said = f"the embedding server gave {len(items)} vectors for {count} texts, or numbered them wrongly"
            raise _Fault(said, "answer")
        if lengths := {len(vector) / 4 for vector in packed} - {dimensions}:
            said = f"the embedding server gave a vector of {lengths.pop():g} numbers, not {dimensions}"
            raise _Fault(said, "answer")
        if not has_unit_norm(np.frombuffer(b"".join(packed), "<f4").reshape(count, dimensions)).all():
            raise Refused("the embedding server gave a vector that is not finite or not of unit norm")
        metrics.embed_tokens.inc(tokens)
        return vectors


def estimated_tokens(text: str) -> int:
    """More than Qwen's tokenizer makes of ordinary text, and quickly known."""
    return len(text.encode()) // BYTES_A_TOKEN + 1


def _count(state: RetryCallState) -> None:
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, _Fault)
    metrics.embed_retries.labels(fault.cause).inc()


def _unreachable(address: str, error: httpx.HTTPError | ssl.SSLError) -> StreamError:
    if refusal := tls.refusal(error):
        return ConfigurationError(
            f"the embedding server cannot be reached at {address}, {refusal}: set STREAM_EMBED_CA_FILE"
        )
    cause = "time-out" if isinstance(error, httpx.TimeoutException) else "connection"
    return _Fault(f"the embedding server at {address} does not answer: {error!r}", cause)


def _retry_after(response: httpx.Response) -> float:
    """Seconds, given as such or as a date (RFC 9110, 10.2.3); 0 if neither."""
    value = response.headers.get("Retry-After", "")
    try:
        return float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0


def _message(response: httpx.Response) -> str:
    try:
        body: Any = response.json()
        return str(body["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase
