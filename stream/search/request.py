"""What is asked: one model for the library, the command line and every other interface."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stream.config import SearchMode
from stream.errors import InvalidRequest
from stream.search.filters import Filter

Leg = Literal["bm25", "splade", "dense"]
Model = Literal["dense", "splade"]
Fusion = Literal["min-max", "rrf"]
LEGS: Mapping[SearchMode, tuple[Leg, ...]] = {
    "bm25": ("bm25",),
    "splade": ("splade",),
    "dense": ("dense",),
    "lexical": ("bm25", "splade"),
    "hybrid": ("bm25", "splade", "dense"),
}

# Other weights are 1. docs/search.md has what was measured.
WEIGHTS: Mapping[SearchMode, Mapping[Leg, float]] = {"hybrid": {"splade": 0.5, "dense": 1.5}}
MOST_HITS = 1000
LONGEST_QUERY = 2**17  # characters
MOST_NAMED = 3  # invalid fields
LONGEST_NAME = 100  # characters
MOST_TERMS = 500  # that a request leaves out
DEPTH = 100  # the hits of each leg that are fused, and that pages can reach


class Group(BaseModel):
    """Groups hits by document: `k` counts documents, and each has its `size` best chunks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["doc_id"] = "doc_id"
    size: int = Field(default=3, ge=1, le=100)


class Request(BaseModel):
    """A search.

    `weights` and `min_score` are by leg. A leg that `weights` leaves out has the default weight; a leg with weight 0 is
    not asked. `min_score` compares raw scores (BM25, the dot product, the cosine) and removes only that leg's hits.
    `without_terms` are terms of the query's expansion that SPLADE does not search for. `deadline` is in seconds. If
    `strict`, a leg that fails or is late is an error. `cursor` is the one of an earlier answer to the same request: it
    asks for the next page.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = Field(max_length=LONGEST_QUERY)
    mode: SearchMode = "hybrid"
    k: int = Field(default=10, ge=1, le=MOST_HITS)
    filter: Filter | None = None
    weights: dict[Leg, Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]] = Field(default_factory=dict)
    fusion: Fusion = "min-max"
    min_score: dict[Leg, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    without_terms: frozenset[Annotated[str, Field(max_length=LONGEST_NAME)]] = Field(
        default_factory=frozenset, max_length=MOST_TERMS
    )
    group: Group | None = None
    deadline: float = Field(default=5.0, gt=0, le=600, allow_inf_nan=False)
    strict: bool = False
    explain: bool = False
    cursor: str | None = None

    @field_validator("query")
    @classmethod
    def _not_blank(cls, query: str) -> str:
        if not query.strip():
            raise ValueError("must not be empty")
        try:
            query.encode()
        except UnicodeEncodeError:
            raise ValueError("must be Unicode text without lone surrogates") from None
        return query

    @model_validator(mode="after")
    def _some_leg(self) -> Self:
        if not self.legs:
            raise ValueError(f"the weights leave out each leg of the mode {self.mode}")
        return self

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs that are asked: those of the mode whose weight is not 0."""
        return tuple(leg for leg in LEGS[self.mode] if self.weight(leg) != 0)

    def weight(self, leg: Leg) -> float:
        """The weight of a leg; by default 1, except for a few that were measured."""
        return self.weights.get(leg, WEIGHTS.get(self.mode, {}).get(leg, 1.0))

    @property
    def depth(self) -> int:
        """The hits that each leg returns. It depends on `k` in two steps, so that pages of one search agree."""
        return DEPTH if self.k <= DEPTH else MOST_HITS


def request(**fields: Any) -> Request:
    """A request of these fields; raises `InvalidRequest` with a sentence for each of the first invalid fields."""
    try:
        return Request(**fields)
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_url=False)) from None


def invalid(errors: Sequence[Mapping[str, Any]], what: str = "search") -> InvalidRequest:
    """What pydantic has found, as one error. The input is left out, because a query may be long."""
    found: dict[str, str] = {}
    for one in errors:
        found.setdefault(_name(*one["loc"]), one["msg"].removeprefix("Value error, "))
    wrong = [f"{name:.{LONGEST_NAME}}: {reason}" for name, reason in found.items()]
    more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    return InvalidRequest(f"invalid {what}: {'; '.join(wrong[:MOST_NAMED])}{more}")


def _name(*place: str | int) -> str:
    """The name of a field. In a filter, pydantic puts the name of the class before the fields of each condition."""
    if not place:
        return "combination"
    *outer, last = map(str, place)
    if "filter" in outer[:1]:
        outer = [part for part in outer if not part[:1].isupper()]
    return ".".join([*outer, last])
