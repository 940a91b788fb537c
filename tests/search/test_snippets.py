"""If these fail, a person sees a place of the text that does not answer, or wrong words of it are highlighted."""

from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stream.search.snippets import LENGTH, STOP_WORDS, WORD, snippet

FILLER = "Other things are written here. " * 30
MIB = 2**20


def highlighted(text: str, weights: Mapping[str, float], query: str, length: int = LENGTH) -> list[str]:
    found = snippet(text, weights, query, length)
    return [found.text[start:end] for start, end in found.highlights]


def test_the_best_place_is_shown_with_whole_words_around_it():
    place = "Binds a socket to a port, then listens."
    found = snippet(f"{FILLER}A socket. {FILLER}{place} {FILLER}", {"port": 1.5, "listens": 0.5}, "sockets")
    assert place in found.text
    assert len(found.text) <= LENGTH
    assert found.text.split()[0] in FILLER.split()
    assert found.text.split()[-1] in FILLER.split()
    before, after = found.text.split(place)
    assert abs(len(before) - len(after)) < LENGTH / 4


@pytest.mark.parametrize(
    ("query", "text", "words"),
    [
        ("binding sockets", "it bound, binds and will bind the Socket", ["binds", "bind", "Socket"]),
        ("socket", "the socket's port, the SOCKET’S", ["socket's", "SOCKET’S"]),
        ("what is it to be", "It is what it is to be", ["what"]),
        ("os.path", "see os.path and os_path, not posix", ["os", "path", "os", "path"]),
        ("don't", "you don't and I do, t", ["don't"]),
        ("s us", "S, u and US", ["S", "US"]),
        ("HTTP 404", "http404 is no word of the query, but http, 404", ["http", "404"]),
        ("東京", "私は東京に住む", ["東", "京"]),
        ("タワー", "東京タワーは高い", ["タワー"]),
        ("🚀", "to the 🚀🚀 and 👩‍🚀", ["🚀", "🚀"]),
        ("🇫🇷", "🇩🇪🇫🇷", ["🇫🇷"]),
        ("שלום", "אמר שלום לכולם", ["שלום"]),
        ("हिन्दी", "यह हिन्दी है", ["हिन्दी"]),
        ("cafe\u0301", "a cafe\u0301 \x1b[31mcafe\u0301\x1b[0m", ["cafe\u0301"]),
        ('"socket" AND (port:*) \\', "socket and port", ["socket", "port"]),
    ],
)
def test_the_words_of_the_query_are_highlighted_by_their_stems(query, text, words):
    assert highlighted(text, {}, query) == words


@pytest.mark.parametrize(
    ("weights", "text", "words"),
    [
        ({"port": 1.0}, "Port, ports and airport", ["Port"]),
        ({"cafe": 1.0}, "a Café", ["Café"]),
        ({"##et": 1.0, "sock": 1.0}, "a socket ##et et", []),
        ({"the": 1.0, "of": 1.0}, "the port of it", []),
        ({"path": 1.0}, "os.path", ["path"]),
    ],
)
def test_a_term_is_highlighted_where_it_is_a_whole_word(weights, text, words):
    assert highlighted(text, weights, "") == words


def test_a_word_of_the_query_counts_more_than_a_term_that_it_was_expanded_to():
    text = f"A port. {FILLER}A socket."
    assert highlighted(text, {"port": 2.0, "socket": 0.1}, "socket") == ["socket"]


def test_a_word_counts_once_however_often_it_is_there():
    text = f"{'socket ' * 20}{FILLER}A port in a storm. {FILLER}"
    assert highlighted(text, {"socket": 1.0, "port": 0.6, "storm": 0.6}, "") == ["port", "storm"]


def test_of_equal_places_the_first_is_shown():
    text = f"A socket and a port. {FILLER}A port and a socket. {FILLER}"
    assert snippet(text, {"socket": 0.1, "port": 0.7}, "").text.startswith("A socket and a port.")
    apart = "Other things are written here. " * 4
    weights = {"socket": 0.1, "port": 0.5, "storm": 0.2}  # added and subtracted as floats, these sums would differ
    text = f"A socket and a port. {FILLER}A storm. {apart}A socket. {apart}A port. {FILLER}"
    assert snippet(text, weights, "").text.startswith("A socket and a port.")


@pytest.mark.parametrize("place", [0, 100, LENGTH - len("socket")])
def test_a_match_near_the_beginning_is_shown_with_the_beginning(place):
    before = ("other " * LENGTH)[:place].rstrip() + " " * (place > 0)
    assert snippet(f"{before}socket {FILLER}", {}, "socket").text.startswith(f"{before}socket"[:LENGTH])


@pytest.mark.parametrize(
    ("length", "shown"),
    [
        (6, "socket"),
        (7, "socket)"),
        (8, "(socket)"),
        (15, "(socket)"),
        (16, "two (socket)"),
        (19, "two (socket) three"),
        (39, "zero! one two (socket) three four five."),
    ],
)
def test_punctuation_stays_with_its_word_where_it_fits(length, shown):
    assert snippet("zero! one two (socket) three four five.", {}, "socket", length).text == shown


@pytest.mark.parametrize("query", ["", "absent", "to be or not to be", "?!"])
def test_without_a_match_the_text_s_beginning_is_shown(query):
    found = snippet("  The\n\tbeginning.  " + FILLER, {}, query)
    assert found.text.startswith("The beginning. Other things")
    assert found.text.endswith(".") or found.text.split()[-1] in FILLER.split()
    assert found.highlights == []


def test_a_text_that_fits_is_shown_whole():
    assert snippet(" (a) socket\r\n\r\n… ", {}, "socket").text == "(a) socket …"
    assert snippet("", {}, "socket").text == ""


@pytest.mark.parametrize("text", ["x" * 1000, "-" * 1000, "- " * 1000, "--- " + "x" * 1000])
def test_a_text_without_a_place_to_end_is_cut(text):
    assert snippet(text, {}, "x").text == text[:LENGTH].strip()


names = st.text("abcd", min_size=1, max_size=6).filter(lambda word: word not in STOP_WORDS)
weighted = st.dictionaries(names, st.integers(1, 9).map(float), max_size=6)


@given(st.lists(names, max_size=40), weighted, st.integers(6, 60), st.data())
def test_no_other_place_weighs_more(words, weights, length, data):
    if words:
        known = data.draw(st.lists(st.sampled_from(words), max_size=4))
        weights |= dict.fromkeys(known, 2.0)
    best = 0.0
    for first in range(len(words)):
        for end in range(first + 1, len(words) + 1):
            if len(" ".join(words[first:end])) <= length:
                best = max(best, sum(weights.get(word, 0) for word in set(words[first:end])))
    found = snippet(" ".join(words), weights, "", length)
    shown = found.text.split()
    assert sum(weights.get(word, 0) for word in set(shown)) == best
    assert [found.text[start:end] for start, end in found.highlights] == [word for word in shown if word in weights]


pieces = st.sampled_from(
    ["socket", "Port", "東", "🚀", "👩‍🚀", "🇩🇪", "e\u0301te\u0301", "שלום", "'", "’", ".", "(", "\x1b[0m", "\x00"]
)
texts = st.lists(pieces | st.sampled_from([" ", "\n", "\t "]) | st.text(max_size=3), max_size=60).map("".join)


@given(texts, texts, st.integers(20, 80))
def test_any_text_and_query_give_whole_words_within_the_length(text, query, length):
    found = snippet(text, {"port": 1.0, "ete": 0.5}, query, length)
    whole = " ".join(text.split())
    assert len(found.text) <= length
    words = [word.span() for word in WORD.finditer(whole)]
    assume(all(end - start <= length for start, end in words))  # a longer word may be cut
    starts = [start for start in range(len(whole)) if whole.startswith(found.text, start)]
    assert not found.text or any(
        not any(start < edge < end for start, end in words for edge in (at, at + len(found.text))) for at in starts
    )
    assert found.text == found.text.strip()
    places = [word.span() for word in WORD.finditer(found.text)]
    assert set(found.highlights) <= set(places)
    assert found.highlights == sorted(found.highlights)


@pytest.mark.parametrize(
    "piece",
    [
        "socket ",
        "socket port ",
        "x",
        "-",
        "\n",
        "e\u0301\u0323",
        "東",
        "🚀",
        "🇩",
        "👩\u200d",
        "a'",
        "\u200d",
        "\x1b[0m",
    ],
    ids=ascii,
)
def test_a_long_text_takes_linear_time(piece):
    """A slower algorithm would run into the timeout of the tests."""
    text = piece * (MIB // len(piece)) + " A door."
    assert highlighted(text, {"door": 4.0}, "🚀 東 sockets doors")[-1] == "door"
