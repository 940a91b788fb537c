"""If these fail, a page repeats or misses hits, or belongs to another search, and nobody is told."""

import base64
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.search import cursor as cursors
from stream.search.cursor import CursorError, OtherGeneration, OtherRequest
from stream.search.request import Request

ASKED: dict[str, Any] = {"query": "a socket", "weights": {"bm25": 1.0, "dense": 2.0}}
REQUEST = Request(**ASKED)
CURSOR = cursors.encode(REQUEST, 20, 3)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_cursor_keeps_its_offset_and_needs_no_escape_in_an_address(offset, generation):
    cursor = cursors.encode(REQUEST, offset, generation)
    assert cursors.decode(cursor, REQUEST, generation) == offset
    assert len(cursor) == 32
    assert set(cursor) <= set(string.ascii_letters + string.digits + "-_")


@pytest.mark.parametrize(
    "change",
    [
        {"query": "a socket "},
        {"mode": "lexical"},
        {"k": 11},
        {"weights": {"bm25": 1.0, "dense": 2.5}},
        {"weights": {}},
        {"fusion": "rrf"},
        {"min_score": {"dense": 0.0}},
        {"group": {"size": 3}},
    ],
    ids=str,
)
def test_a_cursor_is_refused_for_another_ranking(change):
    with pytest.raises(OtherRequest, match="another request") as caught:
        cursors.decode(CURSOR, Request(**{**ASKED, **change}), 3)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "change",
    [
        {"deadline": 1},
        {"strict": True},
        {"explain": True},
        {"cursor": CURSOR},
        {"weights": {"dense": 2, "bm25": 1}},
        {"mode": "hybrid", "k": 10},
    ],
    ids=str,
)
def test_a_cursor_is_good_for_the_same_ranking(change):
    assert cursors.decode(CURSOR, Request(**{**ASKED, **change}), 3) == 20


def test_a_cursor_of_another_generation_says_to_search_again():
    sentence = "^the index was rebuilt since the first page: search again without the cursor$"
    with pytest.raises(OtherGeneration, match=sentence) as caught:
        cursors.decode(CURSOR, REQUEST, 4)
    assert caught.value.exit_code == 2


def refused(cursor: str) -> None:
    with pytest.raises(CursorError, match="damaged") as caught:
        cursors.decode(cursor, REQUEST, 3)
    assert type(caught.value) is CursorError
    assert caught.value.exit_code == 2


def test_each_changed_character_is_noticed():
    for place in range(len(CURSOR)):
        for other in map(chr, range(256)):
            if other != CURSOR[place]:
                refused(CURSOR[:place] + other + CURSOR[place + 1 :])


def test_each_changed_bit_is_noticed():
    raw = base64.urlsafe_b64decode(CURSOR)
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        refused(base64.urlsafe_b64encode(changed).decode())


def test_each_cut_cursor_is_noticed():
    for end in range(len(CURSOR)):
        refused(CURSOR[:end])
        refused(CURSOR[end + 1 :])


@pytest.mark.parametrize("spelling", ["{}=", "{}\n", " {}", "{}!", "{}AAAA", "AAAA{}", "{}{}", "é{}", "\ud800{}"])
def test_a_cursor_has_one_spelling(spelling):
    refused(spelling.format(*2 * [CURSOR]))


@given(st.text())
def test_any_text_is_one_sentence_to_the_user(text):
    refused(text)


@given(st.binary(min_size=24, max_size=24))
def test_what_looks_like_a_cursor_is_none(content):
    refused(base64.urlsafe_b64encode(content).decode())
