"""What is found: hits with each leg's part in them, and what the answer lacks."""

from dataclasses import dataclass, field
from typing import Any, Self

from stream.records import Position, Scalar
from stream.search.request import Leg, Model
from stream.stores.base import Shown


@dataclass(frozen=True, slots=True)
class Part:
    """A leg's part in a hit: its rank in the leg (from 1), its raw score, and its share of the fused score."""

    rank: int
    score: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Snippet:
    """The best place of a text. `highlights` are [start, end) of the words in `text` that the query explains."""

    text: str
    highlights: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Hit:
    """A found chunk. The contributions of its legs add up to its score.

    `terms`, only with `explain`: by leg, the words and terms that the query and the chunk share, with their scores, the
    highest first.
    """

    chunk_id: str
    doc_id: str
    version: int
    score: float
    legs: dict[Leg, Part]
    text: str
    snippet: Snippet
    metadata: dict[str, Any] | None = None
    facet_json: dict[str, Any] | None = None
    terms: dict[Leg, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a step began and how long it took, in milliseconds since the request began."""

    step: str
    start: float
    took: float


@dataclass(frozen=True, slots=True)
class Answer:
    """`degraded`: the legs that are missing, each with the reason, in a sentence. `reachable`: the hits (documents, if
    grouped) that pages can reach; `offset`: those before this page. `cursor` asks for the next page; None at the last
    one. `expansion`: the terms that SPLADE has searched for, with the query's raw weights, the heaviest first.
    """

    hits: list[Hit]
    generation: int
    offset: int
    reachable: int
    cursor: str | None
    degraded: dict[Leg, str]
    timings: list[Timing]
    expansion: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """A model, as it is recorded with each vector or expansion that it makes."""

    model: str
    revision: str
    parameters: dict[str, Scalar]


@dataclass(frozen=True, slots=True)
class Detail(Shown):
    """A chunk, the models of its vector and its terms, and the record of the last topic from which it was written.

    A model is None if its store does not have this version of the chunk, or does not answer. The position is None for
    a chunk that an earlier release has stored; a replay changes it.
    """

    provenance: dict[Model, Made | None]
    position: Position | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a chunk stands in a leg: its rank from 1, None if the leg does not return it, and its raw score."""

    rank: int | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Why:
    """Why a request finds a chunk, or does not.

    `matches_filter` is None without a filter or without a stored chunk. `rank` and `score` are those of the fused
    hits, None if the chunk is not among them. `terms`: as in `Hit`. `reasons` are sentences without a full stop.
    """

    chunk_id: str
    stored: bool
    matches_filter: bool | None
    legs: dict[Leg, Standing]
    rank: int | None
    score: float | None
    terms: dict[Leg, dict[str, float]]
    reasons: list[str]

    @classmethod
    def unknown(cls, chunk_id: str) -> Self:
        """For a chunk that is not stored."""
        return cls(chunk_id, False, None, {}, None, None, {}, ["the searched stores do not have it"])
