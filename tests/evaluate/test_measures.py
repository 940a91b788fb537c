"""If these fail, a figure of quality is wrong, or looks more certain than it is."""

import math

import numpy as np
import pytest
import pytrec_eval

from stream.evaluate.measures import MEASURES, interval, measure, p_value
from stream.evaluate.runs import ranked

RANDOM = np.random.default_rng(7)
CHUNKS = [f"c{n:03}" for n in range(300)]
QRELS = {
    f"q{n}": {str(chunk): int(RANDOM.integers(4)) for chunk in RANDOM.choice(CHUNKS, 40, replace=False)}
    for n in range(30)
}
RUN = {query: ranked([str(chunk) for chunk in RANDOM.permutation(CHUNKS)[:100]]) for query in QRELS}


def test_the_measures_are_those_of_trec_eval():
    found = measure(QRELS, RUN)
    theirs = pytrec_eval.RelevanceEvaluator(QRELS, {"ndcg_cut.10", "map", "recall.100"}).evaluate(RUN)
    for ours, name in (("nDCG@10", "ndcg_cut_10"), ("AP", "map"), ("R@100", "recall_100")):
        assert found[ours] == pytest.approx([theirs[query][name] for query in QRELS], abs=1e-6)
    cut = {query: dict(list(hits.items())[:10]) for query, hits in RUN.items()}
    theirs = pytrec_eval.RelevanceEvaluator(QRELS, {"recip_rank"}).evaluate(cut)
    assert found["RR@10"] == pytest.approx([theirs[query]["recip_rank"] for query in QRELS], abs=1e-6)


def test_a_ranking_that_one_can_check_by_hand():
    """Relevant: a with grade 3, b and c with 1; a comes second and c fourth, b is not found."""
    found = measure({"q": {"a": 3, "b": 1, "c": 1, "x": 0}}, {"q": ranked(["x", "a", "y", "c"])})
    gained = 3 / math.log2(1 + 2) + 1 / math.log2(1 + 4)
    ideal = 3 / math.log2(1 + 1) + 1 / math.log2(1 + 2) + 1 / math.log2(1 + 3)
    assert found["nDCG@10"] == pytest.approx([gained / ideal], abs=1e-9)
    assert found["RR@10"] == pytest.approx([1 / 2])
    assert found["AP"] == pytest.approx([(1 / 2 + 2 / 4) / 3])
    assert found["R@100"] == pytest.approx([2 / 3])


@pytest.mark.parametrize("run", [{}, {"q1": {}}, {"q2": ranked(["b"])}, {"q2": ranked(["b"]), "unjudged": {"a": 1.0}}])
def test_a_query_without_hits_counts_as_0_and_one_without_judgements_does_not_count(run):
    found = measure({"q1": {"a": 1}, "q2": {"b": 1}}, run)
    assert {name: list(values) for name, values in found.items()} == {
        name: [0, 1 if run.get("q2") else 0] for name in MEASURES
    }


def test_chunks_of_equal_score_keep_the_order_of_the_store():
    """trec_eval alone would sort z, with the same score as a, before a."""
    hits = ["a", "z"]
    assert measure({"q": {"a": 1}}, {"q": ranked(hits)})["RR@10"] == [1]
    assert measure({"q": {"a": 1}}, {"q": ranked(hits[::-1])})["RR@10"] == [0.5]
    assert measure({"q": {"a": 1}}, {"q": dict.fromkeys(hits, 1.0)})["AP"] == [0.5]


# How certain


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    samples = np.random.default_rng(3).random((200, 60))
    covered = sum(low <= 0.5 <= high for low, high in map(interval, samples))
    assert 0.90 <= covered / len(samples) <= 0.99


def test_the_interval_is_that_of_the_normal_distribution_for_many_queries():
    values = np.random.default_rng(3).random(2000)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 20)


def test_the_same_values_always_have_the_same_interval_and_p():
    values, others = np.random.default_rng(3).random((2, 50))
    assert interval(values) == interval(values.copy())
    assert p_value(values, others) == p_value(values.copy(), others.copy())


def test_an_interval_of_equal_values_is_that_value():
    assert interval(np.full(52, 0.25)) == (0.25, 0.25)
    assert interval(np.array([0.7])) == (0.7, 0.7)


def test_a_mode_does_not_differ_from_itself():
    values = np.random.default_rng(3).random(50)
    assert p_value(values, values) == 1


def test_p_is_small_if_one_mode_is_better_for_every_query_and_counts_both_sides():
    values = np.random.default_rng(3).random(50)
    assert p_value(values + 0.1, values) == p_value(values, values + 0.1) <= 0.001


def test_p_of_few_queries_is_the_share_of_all_signs():
    """With four queries and equal differences, 2 of 16 assignments of signs are as extreme."""
    assert p_value(np.full(4, 0.5), np.zeros(4)) == pytest.approx(2 / 16, abs=0.01)


def test_p_is_uniform_if_nothing_differs():
    pairs = np.random.default_rng(5).random((200, 2, 30))
    small = sum(p_value(one, other) <= 0.1 for one, other in pairs)
    assert 0.04 <= small / len(pairs) <= 0.17
