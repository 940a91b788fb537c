"""If these fail, OpenSearch rejects a long query, or a search loses words for which it has room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.search import dsl

LONG = [
    " ".join(f"word{n}" for n in range(2000)),
    " ".join(f"a-b{n}.c" for n in range(2000)),
    " ".join("語" * (1 + n % 9) + str(n) for n in range(2000)),
    " ".join(f"{'w' * 999}{n}" for n in range(2000)),
    "語" * 100_000,
    "x" * 2000 * dsl.LONGEST_TOKEN,
]


@pytest.mark.parametrize("query", ["a  socket, a port", "w " * 600, "語" * 600])
def test_a_query_that_fits_is_searched_as_it_is(query):
    assert dsl.fitting(query) == query


@pytest.mark.parametrize("query", LONG, ids=["words", "parts", "characters", "long", "one line", "one word"])
@pytest.mark.parametrize("room", [500, dsl.MOST_CLAUSES])
def test_of_a_long_query_the_first_words_fit(query, room):
    kept = dsl.fitting(query, room)
    assert query.startswith(kept)
    assert kept
    assert room - 20 <= dsl._most_tokens(kept) <= room or len(kept) == room


def test_a_word_that_comes_again_and_again_takes_no_room():
    assert dsl.fitting("w " * 5000 + "x") == "w x"


@given(st.text(), st.integers(1, 50))
def test_whatever_the_query_is_it_fits(query, room):
    assert dsl._most_tokens(dsl.fitting(query, room)) <= room


def test_a_query_without_terms_finds_nothing_and_not_everything():
    assert dsl.terms({}, normalised=True) == {"match_none": {}}


def test_the_two_phases_together_have_each_term_once_with_its_weight():
    weights = {"a": 2.0, "b": 0.8, "c": 0.79, "d": 0.1}
    body = str(dsl.in_two_phases(weights, normalised=True, condition=None, size=10))
    assert all(body.count(f"'splade_terms.{name}', 'boost': {weight}") == 1 for name, weight in weights.items())
    found, rescored = body.split("'rescore'", 1)
    assert "splade_terms.b" in found
    assert "splade_terms.c" in rescored
