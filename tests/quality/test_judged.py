"""If these fail, a score of search on the judged queries is wrong: it counts answers that no search can find."""

import pytest
from quality.judged import JUDGED, MODULES, QRELS, QUERIES, chunks


@pytest.fixture(scope="module")
def collection() -> set[str]:
    return {chunk["chunk_id"] for chunk in chunks()}


def test_no_line_of_queries_replaces_another():
    assert [f"{query_id}\t{text}" for query_id, text in JUDGED.queries.items()] == QUERIES.read_text(
        "utf-8"
    ).splitlines()


def test_no_line_of_grades_replaces_another():
    lines = [
        f"{query_id} 0 {chunk_id} {grade}" for query_id, by in JUDGED.qrels.items() for chunk_id, grade in by.items()
    ]
    assert lines == QRELS.read_text("utf-8").splitlines()


def test_no_query_is_asked_twice():
    assert len({text.casefold() for text in JUDGED.queries.values()}) == len(JUDGED.queries)


def test_each_query_has_an_answer():
    assert JUDGED.qrels.keys() == JUDGED.queries.keys()
    assert {max(by.values()) for by in JUDGED.qrels.values()} == {2}
    assert {grade for by in JUDGED.qrels.values() for grade in by.values()} == {1, 2}


def test_this_python_has_each_graded_chunk(collection: set[str]):
    assert {chunk_id for by in JUDGED.qrels.values() for chunk_id in by} <= collection


def test_this_python_has_each_module(collection: set[str]):
    assert {chunk_id.split(":")[0] for chunk_id in collection} == MODULES


def test_the_collection_has_enough_wrong_answers_and_is_quick_to_index(collection: set[str]):
    assert 800 <= len(collection) <= 2_000
