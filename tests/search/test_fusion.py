"""If these fail, hits are in the wrong order, or their scores do not say why."""

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stream.search.answer import Part
from stream.search.fusion import Ranked, at_least, fuse, summed
from stream.search.request import LEGS, Leg

METHODS = st.sampled_from(["min-max", "rrf"])
CHUNKS = [f"c{n}" for n in range(8)]


def best_first(scores: dict[str, float]) -> Ranked:
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))


# Whole numbers, so that equal scores are drawn and a sum of two of them is exact.
scores = st.dictionaries(st.sampled_from(CHUNKS), st.integers(-20, 20).map(float))
found = st.dictionaries(st.sampled_from(LEGS["hybrid"]), scores.map(best_first))
weights = st.fixed_dictionaries({leg: st.floats(0.01, 1000) for leg in LEGS["hybrid"]})


@given(found, weights, METHODS)
def test_a_score_is_the_sum_of_its_legs_and_each_found_chunk_is_there_once(ranked, weights, method):
    for fused in (fuse(ranked, weights, method), summed(ranked, weights)):
        assert sorted(hit.chunk_id for hit in fused) == sorted({chunk for hits in ranked.values() for chunk, _ in hits})
        for hit in fused:
            assert hit.score == sum(part.contribution for part in hit.legs.values())
            assert list(hit.legs) == [leg for leg in LEGS["hybrid"] if hit.chunk_id in dict(ranked.get(leg, ()))]
            for leg, part in hit.legs.items():
                assert ranked[leg][part.rank - 1] == (hit.chunk_id, part.score)
        assert fused == sorted(fused, key=lambda hit: (-hit.score, hit.chunk_id))


@given(found, weights, METHODS, st.randoms())
def test_the_order_of_the_legs_does_not_matter(ranked, weights, method, order: random.Random):
    def shuffled(legs: dict) -> dict:
        return dict(order.sample(list(legs.items()), len(legs)))

    assert fuse(shuffled(ranked), shuffled(weights), method) == fuse(ranked, weights, method)
    assert summed(shuffled(ranked), shuffled(weights)) == summed(ranked, weights)


@given(found, weights, METHODS, st.sampled_from(LEGS["hybrid"]), st.integers(-20, 20))
def test_the_unit_of_a_leg_s_scores_does_not_matter(ranked, weights, method, leg: Leg, power):
    factor = 2.0**power  # a power of two rounds nothing
    other = {**ranked, leg: [(chunk, factor * score) for chunk, score in ranked.get(leg, ())]}
    assert [hit[:2] for hit in fuse(other, weights, method)] == [hit[:2] for hit in fuse(ranked, weights, method)]


@given(found, weights, METHODS, st.integers(1, 30), st.data())
def test_a_hit_that_one_leg_finds_better_does_not_fall(ranked, weights, method, gain, data):
    legs = [leg for leg, hits in ranked.items() if hits]
    assume(legs)
    leg = data.draw(st.sampled_from(legs))
    chunk = data.draw(st.sampled_from([chunk for chunk, _ in ranked[leg]]))
    before = dict(ranked[leg])
    better = {**ranked, leg: best_first({**before, chunk: before[chunk] + gain})}
    for way in (lambda ranked: fuse(ranked, weights, method), lambda ranked: summed(ranked, weights)):
        old, new = ([hit.chunk_id for hit in way(each)] for each in (ranked, better))
        assert new.index(chunk) <= old.index(chunk)


@given(found, st.dictionaries(st.sampled_from(LEGS["hybrid"]), st.integers(-20, 20).map(float)))
def test_a_minimum_removes_only_the_hits_of_its_leg_that_are_below_it(ranked, minimum):
    kept = at_least(ranked, minimum)
    for leg, hits in ranked.items():
        assert kept[leg] == [hit for hit in hits if leg not in minimum or hit[1] >= minimum[leg]]


@given(found, weights)
def test_min_max_scores_are_between_0_and_1(ranked, weights):
    assert all(0 <= hit.score <= 1 + 1e-12 for hit in fuse(ranked, weights, "min-max"))


def test_a_chunk_that_each_leg_finds_best_has_the_score_1():
    ranked = {"bm25": [("a", 20.0), ("b", 10.0)], "splade": [("a", 9.0)], "dense": [("a", 0.9), ("c", 0.1), ("b", 0.1)]}
    fused = fuse(ranked, {"bm25": 1, "splade": 1, "dense": 2}, "min-max")
    assert [hit[:2] for hit in fused] == [("a", 1.0), ("b", 0.0), ("c", 0.0)]
    assert fused[0].legs == {"bm25": Part(1, 20.0, 0.25), "splade": Part(1, 9.0, 0.25), "dense": Part(1, 0.9, 0.5)}


@pytest.mark.parametrize("scores", [[7.0], [7.0, 7.0]])
def test_hits_of_equal_scores_are_not_lost_among_those_of_another_leg(scores):
    ranked = {"bm25": list(zip("xy", scores, strict=False)), "dense": [("a", 0.9), ("b", 0.1)]}
    fused = fuse(ranked, {"bm25": 1, "dense": 1}, "min-max")
    assert {hit.chunk_id: hit.score for hit in fused if "bm25" in hit.legs} == dict.fromkeys("xy"[: len(scores)], 0.5)


def test_reciprocal_ranks_are_those_of_the_paper():
    fused = fuse({"bm25": [("a", 3.0), ("b", 2.0)], "dense": [("b", 0.5)]}, {"bm25": 3, "dense": 1}, "rrf")
    assert [(hit.chunk_id, hit.score) for hit in fused] == [("b", 0.75 / 62 + 0.25 / 61), ("a", 0.75 / 61)]


@given(scores, METHODS)
def test_a_search_by_one_leg_shows_its_raw_scores(scores, method):
    ranked = {"dense": best_first(scores)}
    for fused in (fuse(ranked, {"dense": 0.3}, method), summed(ranked, {"dense": 0.3})):
        assert [hit[:2] for hit in fused] == best_first(scores)
        assert all(hit.legs["dense"].contribution == hit.score for hit in fused)


def test_a_leg_that_failed_does_not_raise_what_the_others_contribute():
    weights = {"bm25": 1, "splade": 1, "dense": 2}
    assert fuse({"dense": [("a", 0.9)]}, weights, "min-max")[0].score == 0.5


def test_summed_scores_are_the_weighted_raw_ones():
    fused = summed({"bm25": [("a", 12.0)], "splade": [("b", 40.0), ("a", 8.0)]}, {"bm25": 1, "splade": 0.5})
    assert [hit[:2] for hit in fused] == [("b", 20.0), ("a", 16.0)]
    assert fused[1].legs == {"bm25": Part(1, 12.0, 12.0), "splade": Part(2, 8.0, 4.0)}
