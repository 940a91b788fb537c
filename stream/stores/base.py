"""What the two stores have in common: guarded by version, every write idempotent.

The guard: a write takes effect unless the store holds a higher version of its chunk, whatever order they come in. Of
two writes of one version the later wins. A delete counts as a version, and neither store forgets it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stream.config import Settings
from stream.errors import ConfigurationError
from stream.records import Expanded, Rejected, Tombstone


@dataclass(frozen=True, slots=True)
class Put:
    """A chunk to be stored, its vector (dimensions,) unpacked."""

    chunk: Expanded
    vector: npt.NDArray[np.float32]

    @property
    def chunk_id(self) -> str:
        """The chunk's name."""
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
    complete: bool  # its own share (vector or terms) is there and is of this very version and text


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result; `score` compares only within one search."""

    chunk_id: str
    doc_id: str
    score: float
    text: str


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation of a flow. `live_in` names the stores that show it to readers and writers who name no generation.

    `swapping`: the swap that made it live has not ended. `built`: it has its index in OpenSearch.
    """

    number: int
    flow: str
    live_in: frozenset[str] = frozenset()
    swapping: bool = False
    built: bool = True

    @property
    def live(self) -> bool:
        """Whether either store shows it."""
        return bool(self.live_in)


Older = dict[str, tuple[int, int | None]]  # by chunk_id the version that is shown, and the lower one; None: no chunk


class NoGeneration(ConfigurationError):
    """The flow has no live generation yet."""


FIRST = 1  # the generation that the first worker makes


class Store(Protocol):
    """A place where chunks can be found. Every call raises `Outage` if the store is down or overloaded."""

    name: str

    async def set_up(self) -> None:
        """Makes constraints and indexes that are missing and waits until they are online."""

    async def examine(self) -> str:
        """What is there, in a few words; raises what is wrong with it and makes nothing."""

    async def write(self, writes: Sequence[Put | Tombstone]) -> dict[str, Rejected]:
        """Stores and deletes, each chunk at most once a call; returns what the store refuses, by chunk_id.

        What a higher version outranks is not applied, and counted in `stream_outranked_total`.
        """

    async def count(self) -> int:
        """Chunks that the store holds, all finished writes included."""

    async def origins(self) -> dict[str, int]:
        """How many chunks have a vector of which provenance (as JSON with sorted keys)."""

    async def stored(self, chunk_ids: Sequence[str]) -> dict[str, Stored]:
        """What the store holds of these chunks, all finished writes included; one that it never had is left out."""

    async def go_live(self, generation: int) -> None:
        """What reads and writes the flow's live generation has this one from its next request on."""

    async def drop(self, generation: int) -> None:
        """Deletes what the generation has of its own; may be interrupted and run again."""

    async def older(self, generation: int, than: int) -> Older:
        """Chunks of which a generation holds a lower version than the generation `than`, or none at all."""


def require_first(settings: Settings) -> None:
    """Raises `NoGeneration` if the flow is not the usual one: only that begins without a reindex."""
    if settings.flow:
        raise NoGeneration(
            f"the flow {settings.flow} has no live generation: `stream reindex start` makes one, or unset STREAM_FLOW"
        )


def nothing_yet(settings: Settings, what: str, other: str) -> ConfigurationError:
    """Says that nobody has made the index that is searched, what makes it, and which setting names another."""
    require_first(settings)
    return ConfigurationError(
        f"there is nothing to search yet: {what} is not there; `stream worker index` makes it at its start, and "
        f"{other} names another"
    )


def require_version(name: str, version: str, oldest: str) -> None:
    """Raises `ConfigurationError` for a version like 5.26.3 or 5.26-aura that comes before the oldest, like 5.26."""
    if _numbers(version) < _numbers(oldest):
        raise ConfigurationError(f"{name} {version} is older than {oldest}, the oldest it was tried with: update it")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]
