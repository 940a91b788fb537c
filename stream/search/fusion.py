"""Fuses the ranked hits of several legs into one ranking. Each leg's share of a score stays with the hit."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from stream.search.answer import Part
from stream.search.request import LEGS, Leg

RRF_CONSTANT = 60  # Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (SIGIR 2009)

Ranked = Sequence[tuple[str, float]]  # chunk_id and raw score, the best first


class Fused(NamedTuple):
    """A chunk. `legs` has the legs that found it, in the order of `LEGS`; `score` is the sum of their contributions."""

    chunk_id: str
    score: float
    legs: dict[Leg, Part]


def at_least(ranked: Mapping[Leg, Ranked], min_score: Mapping[Leg, float]) -> dict[Leg, Ranked]:
    """Removes the hits of each leg whose raw score is below the leg's minimum. Other legs keep their hits."""
    return {
        leg: [(chunk_id, score) for chunk_id, score in hits if score >= min_score.get(leg, -math.inf)]
        for leg, hits in ranked.items()
    }


def fuse(ranked: Mapping[Leg, Ranked], weights: Mapping[Leg, float], method: Literal["min-max", "rrf"]) -> list[Fused]:
    """The hits of all legs, the best first; equal scores are in the order of the chunk IDs.

    `weights` has the legs that were asked, also those that failed, and only their ratio matters. If one leg was asked,
    scores are its raw scores. Otherwise a leg that finds a chunk contributes its weight (the weights add up to 1) times

    - `min-max`: (score - lowest) / (highest - lowest) of the leg's hits: 0 to 1;
    - `rrf`: 1 / (60 + rank).
    """
    if len(weights) == 1:
        return summed(ranked, weights)
    total = math.fsum(weights.values())  # exact, so that the order of the legs does not matter
    shares = _min_max if method == "min-max" else _reciprocal_ranks
    return _added(ranked, {leg: [weights[leg] / total * share for share in shares(ranked[leg])] for leg in ranked})


def summed(ranked: Mapping[Leg, Ranked], weights: Mapping[Leg, float]) -> list[Fused]:
    """As `fuse`, but each of several legs contributes its weight times its raw score."""
    if len(weights) == 1:
        weights = dict.fromkeys(weights, 1.0)
    return _added(ranked, {leg: [weights[leg] * score for _, score in hits] for leg, hits in ranked.items()})


def _min_max(hits: Ranked) -> list[float]:
    scores = [score for _, score in hits]
    lowest, highest = min(scores, default=0.0), max(scores, default=0.0)
    if lowest == highest:  # the formula divides by 0; each of these hits is the leg's best one, which contributes 1
        return [1.0] * len(scores)
    return [(score - lowest) / (highest - lowest) for score in scores]


def _reciprocal_ranks(hits: Ranked) -> list[float]:
    return [1 / (RRF_CONSTANT + rank) for rank in range(1, len(hits) + 1)]


def _added(ranked: Mapping[Leg, Ranked], contributions: Mapping[Leg, Sequence[float]]) -> list[Fused]:
    found: dict[str, dict[Leg, Part]] = {}
    for leg in LEGS["hybrid"]:
        pairs = zip(ranked.get(leg, ()), contributions.get(leg, ()), strict=True)
        for rank, ((chunk_id, score), contribution) in enumerate(pairs, start=1):
            found.setdefault(chunk_id, {})[leg] = Part(rank, score, contribution)
    fused = [
        Fused(chunk_id, sum(part.contribution for part in legs.values()), legs) for chunk_id, legs in found.items()
    ]
    return sorted(fused, key=lambda hit: (-hit.score, hit.chunk_id))
