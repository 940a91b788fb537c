"""The interface of the two stores: every write is idempotent and guarded by version.

The guard: a store applies a write unless it holds a higher version of the chunk. The order of arrival does not matter.
Of two writes of one version the later wins. A delete counts as a version, and both stores remember it.
"""

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stream.config import Settings
from stream.errors import ConfigurationError
from stream.records import Placed, Position, Provenance, Rejected, Tombstone


@dataclass(frozen=True, slots=True)
class Put:
    """A chunk to store, with its unpacked vector (dimensions,)."""

    chunk: Placed
    vector: npt.NDArray[np.float32]

    @property
    def chunk_id(self) -> str:
        """The chunk's ID."""
        return self.chunk["chunk_id"]

    @property
    def version(self) -> int:
        """The chunk's version."""
        return self.chunk["version"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds of a chunk and shows to searchers: a version and the hash of its text, or a delete."""

    version: int
    text_sha256: str | None  # None: the chunk was deleted at this version and the store remembers it
    complete: bool  # the store's own part (vector or terms) exists and belongs to this version and text


@dataclass(frozen=True, slots=True)
class Near:
    """A chunk, and the cosine of its vector and the query's."""

    chunk_id: str
    doc_id: str
    cosine: float


@dataclass(frozen=True, slots=True)
class Shown:
    """What a store shows of a chunk to a searcher."""

    chunk_id: str
    doc_id: str
    version: int
    text: str
    metadata: dict[str, Any] | None
    facet_json: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a store's part of a chunk, its vector or its terms, was made by, and from which record of the last topic.

    An earlier release has stored no position, and one before it no provenance.
    """

    version: int
    provenance: Provenance | None
    position: Position | None


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter for Neo4j: as a query of the full-text index over `facets`, and as an expression about a `node`."""

    lucene: str
    cypher: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation of a flow.

    `live_in`: the stores in which it serves readers and writers that name no generation. `swapping`: the swap that made
    it live has not ended. `built`: its index in OpenSearch exists.
    """

    number: int
    flow: str
    live_in: frozenset[str] = frozenset()
    swapping: bool = False
    built: bool = True

    @property
    def live(self) -> bool:
        """Whether it is live in at least one store."""
        return bool(self.live_in)


Older = dict[str, tuple[int, int | None]]  # by chunk_id: the version in `than`, the lower one (None: no chunk)


class NoGeneration(ConfigurationError):
    """The flow has no live generation yet."""


FIRST = 1  # the generation that the first worker creates

Result = TypeVar("Result")


async def together(*writes: Awaitable[Result]) -> list[Result]:
    """The results of writes that run at the same time; raises an error of one of them after all have ended.

    A write that is still in progress could overtake its retry.
    """
    results: list[Result] = []
    for result in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


class Store(Protocol):
    """A store that can be searched for chunks. Every call raises `Outage` if it is down or overloaded."""

    name: str

    async def set_up(self) -> None:
        """Creates missing constraints and indexes and waits until they are online."""

    async def version(self) -> str:
        """The server's version."""

    async def examine(self) -> str:
        """Version and index, in one line; raises a `StreamError` if one is wrong. Creates nothing."""

    async def write(self, writes: Sequence[Put | Tombstone]) -> dict[str, Rejected]:
        """Puts and deletes, each chunk at most once a call; returns the rejections, by chunk_id.

        A write of a lower version than the stored one is not applied; `stream_outranked_total` counts it.
        """

    async def count(self) -> int:
        """Chunks that the store holds, all finished writes included."""

    async def unfiltered(self, generation: int | None = None) -> int:
        """Chunks that an earlier release stored without `facets`, in this generation or the configured one.

        Filters do not find them.
        """

    async def origins(self) -> dict[str, int]:
        """The number of chunks of each provenance (as JSON with sorted keys)."""

    async def stored(self, chunk_ids: Sequence[str]) -> dict[str, Stored]:
        """What the store holds of these chunks, all finished writes included; unknown chunks are left out."""

    async def live(self) -> int:
        """The generation that readers use; raises `NoGeneration` if there is none."""

    async def shown(self, chunk_ids: Sequence[str], generation: int) -> dict[str, Shown]:
        """The texts of these chunks in a generation; those that it does not show are left out."""

    async def origin(self, chunk_id: str, generation: int) -> Origin | None:
        """The origin of its part of a chunk in a generation; None if it has none."""

    async def go_live(self, generation: int) -> None:
        """Makes this the flow's live generation: readers and writers of the live one use it from their next request."""

    async def drop(self, generation: int) -> None:
        """Deletes the generation's own data; idempotent, also after an interruption."""

    async def older(self, generation: int, than: int) -> Older:
        """Chunks that a generation lacks, or holds in a lower version than the generation `than`."""


def require_first(settings: Settings) -> None:
    """Raises `NoGeneration` if the flow has a name: only the flow without a name begins without a reindex."""
    if settings.flow:
        raise NoGeneration(
            f"the flow {settings.flow} has no live generation: run `stream reindex start`, or unset STREAM_FLOW"
        )


def nothing_yet(settings: Settings, what: str, other: str) -> ConfigurationError:
    """The error for a missing search index: what creates it, and which setting names another."""
    require_first(settings)
    return ConfigurationError(
        f"there is nothing to search yet: {what} does not exist; start `stream worker index`, which creates it, or set "
        f"{other} to the name of another"
    )


def require_version(name: str, version: str, oldest: str) -> None:
    """Raises `ConfigurationError` for a version like 5.26.3 or 5.26-aura that comes before the oldest, like 5.26."""
    if _numbers(version) < _numbers(oldest):
        raise ConfigurationError(f"{name} {version} is older than {oldest}, the oldest supported version: update it")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]
