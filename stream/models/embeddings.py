"""A client of vLLM's OpenAI-compatible `/v1/embeddings`.

The wire format is base64 of little-endian float32. A request has neither `dimensions`, which vLLM rejects for this
model, nor `normalize`, which newer versions reject: vLLM returns normalised vectors. vLLM ignores unknown fields
silently, so the client checks every response: count, order, length, finite numbers, unit norm.
"""

import asyncio
import base64
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
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
CAUSES = ("connection", "time-out", "answer", "429", "500", "503")  # the frequent ones, exported as 0 at the start
MAX_RETRY_AFTER = 30.0  # seconds; a longer `Retry-After` is cut to this
BYTES_A_TOKEN = 3
TRUNCATE_TO_CONTEXT = -1  # `truncate_prompt_tokens`: vLLM cuts each text to the model's context length
PROBE = "probe"  # a text that every healthy server embeds


class _RequestFailed(Outage):
    """A request failed: its cause in a word, whether to retry it, and the server's `Retry-After` in seconds."""

    def __init__(self, message: str, cause: str, *, retryable: bool = True, retry_after: float = 0) -> None:
        super().__init__(message, cause)
        self.retryable, self.retry_after = retryable, retry_after


class EmbeddingClient:
    """Embeds texts on one server or on several replicas, with one connection pool. Use as an async context manager."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        key = settings.embed_api_key
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx.Timeout(settings.embed_timeout, connect=5),
            limits=httpx.Limits(keepalive_expiry=60),
            verify=tls.context(*settings.tls_files("embed")),
            trust_env=False,  # HTTP_PROXY is ignored: the server is internal
            transport=transport,
        )
        self._replicas = Replicas(settings.embed_urls)
        self._contexts: dict[str, int | None] = {}  # the model's context length, by server; None where it is not known
        for cause in CAUSES:
            metrics.embed_retries.labels(cause)
        self._pause = wait_random_exponential(multiplier=0.2, max=5)
        # One timeout bounds all retries: a server that hangs is an outage after one timeout, not after four.
        self._retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, _RequestFailed) and error.retryable),
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
        """The model, its revision and the parameters, recorded with each vector."""
        settings = self._settings
        return {
            "model": settings.embed_model,
            "revision": settings.embed_revision,
            "parameters": {"dimensions": settings.embed_dimensions, "long_texts": settings.embed_long_texts},
        }

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """Vectors of the texts, in order: `embed_dimensions` little-endian float32 each, unit norm.

        Raises `Refused` if one of the texts cannot be embedded (the server does not say which: split the batch).
        Raises `Outage` if the server does not answer, is overloaded, does not serve the model, returns an invalid
        response, or rejects the probe too. Up to three retries come first; they start within `embed_timeout` seconds.
        """
        started = time.monotonic()
        try:
            vectors = await self._with_retries(self._request, list(texts))
        except Refused:
            if len(texts) > 1:  # the caller splits the batch; only a single text needs the probe
                raise
            vectors = await self._with_retries(self._request_after_probe, list(texts))
        seconds = time.monotonic() - started
        metrics.embed_latency_ms.observe(seconds * 1000)
        metrics.embed_batch_size.observe(len(texts))
        metrics.embed_chunks_sec.set(len(texts) / seconds)
        return vectors

    async def embed_queries(self, queries: Sequence[str]) -> list[Vector]:
        """The vectors (embed_dimensions,) of queries. The instruction, if any, has the form of Qwen3-Embedding.

        Raises as `embed` does.
        """
        instruction = self._settings.embed_instruction
        texts = [f"Instruct: {instruction}\nQuery:{query}" if instruction else query for query in queries]
        return [unpack(vector) for vector in await self.embed(texts)]

    async def answer(self) -> None:
        """Returns if at least one server passes `examine`; otherwise raises the last server's error."""
        found = await asyncio.gather(*map(self.examine, self._settings.embed_urls), return_exceptions=True)
        wrong = [one for one in found if isinstance(one, BaseException)]
        for address, one in zip(self._settings.embed_urls, found, strict=True):
            metrics.embed_server_up.labels(address).set(not isinstance(one, BaseException))
        if len(wrong) == len(found):
            raise wrong[-1]

    async def examine(self, address: str) -> str:
        """The model and its context length, in one line. Raises `Outage` or `ConfigurationError` if the check fails."""
        try:
            models = await self._http.get(f"{address}/v1/models", timeout=5)
            self._require_authenticated(address, models)
            served = {model["id"]: model.get("max_model_len") for model in models.raise_for_status().json()["data"]}
            health = await self._http.get(f"{address}/health", timeout=5)
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise _unreachable(address, error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise Outage(
                f"{address}/v1/models does not list models as vLLM does ({error!r}): check STREAM_EMBED_URL"
            ) from None
        if health.status_code != 200:
            raise Outage(
                f"the embedding server at {address} is unhealthy: /health answers {health.status_code}, not 200"
            )
        wanted = self._settings.embed_model
        if wanted not in served:
            raise Outage(f"the embedding server at {address} serves {', '.join(served) or 'nothing'}, not {wanted}")
        self._contexts[address] = served[wanted]
        return f"{wanted}, at most {served[wanted]} tokens a text"

    async def version(self, address: str) -> str | None:
        """The version of vLLM at this address; None if the server is something else, or does not answer."""
        with suppress(httpx.HTTPError, ssl.SSLError, ValueError, KeyError, TypeError):
            return str((await self._http.get(f"{address}/version", timeout=5)).raise_for_status().json()["version"])
        return None

    async def _with_retries(
        self, request: Callable[[list[str]], Awaitable[list[bytes]]], texts: list[str]
    ) -> list[bytes]:
        metrics.embed_in_flight.inc()
        try:
            return await self._retrying.copy()(request, texts)
        finally:
            metrics.embed_in_flight.dec()

    async def _request(self, texts: list[str]) -> list[bytes]:
        with self._replicas.one() as address:
            return await self._post(address, texts)

    async def _request_after_probe(self, texts: list[str]) -> list[bytes]:
        """Sends the probe to the same server first: if the server rejects it too, the texts are not the cause."""
        with self._replicas.one() as address:
            try:
                await self._post(address, [PROBE])
            except Refused as error:
                raise _RequestFailed(str(error), "probe") from error
            return await self._post(address, texts)

    async def _post(self, address: str, texts: list[str]) -> list[bytes]:
        body: dict[str, Any] = {
            "model": self._settings.embed_model,
            "input": texts,
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }
        if self._settings.embed_long_texts == "truncate":
            body["truncate_prompt_tokens"] = await self._longest(address)
        try:
            response = await self._http.post(
                f"{address}/v1/embeddings", content=orjson.dumps(body), headers={"Content-Type": "application/json"}
            )
        except (httpx.TransportError, ssl.SSLError) as error:  # httpx does not wrap all of OpenSSL's errors
            raise _unreachable(address, error) from error
        finally:
            progress.made()
        self._require_authenticated(address, response)
        status = response.status_code
        if status in (400, 413, 422):
            raise Refused(f"the embedding server rejected the input: {_message(response)}")
        if status != 200:
            message = f"the embedding server at {address} answers {status}: {_message(response)}"
            raise _RequestFailed(message, str(status), retryable=status != 404, retry_after=_retry_after(response))
        return self._checked(response.content, len(texts))

    async def _longest(self, address: str) -> int:
        """The number of tokens to which this server cuts a text: one less than the model reads.

        vLLM before 0.32 does not answer for a text of exactly the context length that it reads in several steps
        (github.com/vllm-project/vllm/issues/47971).
        """
        if address not in self._contexts:
            await self.examine(address)
        context = self._contexts[address]
        return context - 1 if context else TRUNCATE_TO_CONTEXT

    def _wait(self, state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.retry_after if isinstance(fault, _RequestFailed) else 0
        return max(self._pause(state), min(asked, MAX_RETRY_AFTER))

    def _require_authenticated(self, address: str, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise ConfigurationError(
                f"the embedding server at {address}: authentication failed ({response.status_code}): "
                "set STREAM_EMBED_API_KEY"
            )

    def _checked(self, content: bytes, count: int) -> list[bytes]:
        try:
            answer = orjson.loads(content)
            items = sorted(answer["data"], key=lambda item: item["index"])
            tokens = int(answer.get("usage", {}).get("prompt_tokens", 0))
            vectors = [base64.b64decode(item["embedding"], validate=True) for item in items]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _RequestFailed(f"the embedding server's response cannot be parsed: {error!r}", "answer") from error
        dimensions = self._settings.embed_dimensions
        if [item["index"] for item in items] != list(range(count)):
            message = f"the embedding server returned {len(items)} vectors for {count} texts, or wrong indexes"
            raise _RequestFailed(message, "answer")
        if lengths := {len(vector) / 4 for vector in vectors} - {dimensions}:
            message = (
                f"the embedding server returned a vector of {lengths.pop():g} numbers, not {dimensions}: "
                "check the served model and STREAM_EMBED_DIMENSIONS"
            )
            raise _RequestFailed(message, "answer")
        if not has_unit_norm(np.frombuffer(b"".join(vectors), "<f4").reshape(count, dimensions)).all():
            raise Refused("the embedding server returned a vector that is not finite or does not have unit norm")
        metrics.embed_tokens.inc(tokens)
        return vectors


def estimated_tokens(text: str) -> int:
    """A fast upper estimate of the tokens that Qwen's tokenizer makes of ordinary text."""
    return len(text.encode()) // BYTES_A_TOKEN + 1


def _count(state: RetryCallState) -> None:
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, _RequestFailed)
    metrics.embed_retries.labels(fault.cause).inc()


def _unreachable(address: str, error: httpx.HTTPError | ssl.SSLError) -> StreamError:
    if refusal := tls.refusal(error, "STREAM_EMBED"):
        return ConfigurationError(f"the embedding server cannot be reached at {address}, {refusal}")
    cause = "time-out" if isinstance(error, httpx.TimeoutException) else "connection"
    return _RequestFailed(f"the embedding server at {address} does not answer: {error!r}", cause)


def _retry_after(response: httpx.Response) -> float:
    """`Retry-After` in seconds: the header is a number or a date (RFC 9110, 10.2.3); 0 if it is neither."""
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
