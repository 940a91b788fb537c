"""Snippets: the best place of a text for a query, with the words that match.

A word of the text matches if it has the stem of a word of the query (what BM25 finds with OpenSearch's analyzer
`english`), or if it is one of the terms that the query was expanded to (what SPLADE finds).
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import regex
import snowballstemmer

from stream.search.answer import Snippet

LENGTH = 240  # characters: about three lines of a terminal
LONGEST_WORD = 255  # letters; OpenSearch's standard tokenizer splits longer words, and BERT knows none

# Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET
STOP_WORDS = frozenset(
    """a an and are as at be but by for if in into is it no not of on or such that the their then there these they this
    to was will with""".split()  # noqa: SIM905 - one word a line would fill a page
)

# As for OpenSearch's standard tokenizer (Unicode Standard Annex 29), an emoji, a Chinese character and a Hiragana
# character are each a word, and an apostrophe between letters is part of a word. Unlike there, a dot, a colon and an
# underscore end a word, so that the parts of a name like `os.path` match, as they do for BERT.
ALONE = r"[\p{Han}\p{Hiragana}]"
LETTERS = rf"[[\p{{L}}\p{{N}}\p{{M}}\u200c\u200d]--{ALONE}]+"  # with the joiners of Persian and of Indian scripts
EMOJI = r"(?=\p{Extended_Pictographic})\X|\p{Regional_Indicator}{1,2}"  # with its joined emoji; a flag is two letters
WORD = regex.compile(rf"(?V1){EMOJI}|{ALONE}\p{{M}}*|(?=[\p{{L}}\p{{N}}]){LETTERS}(?:['’＇]{LETTERS})*")
POSSESSIVES = ("'s", "’s", "＇s")


class _Match(NamedTuple):
    """A word of the text that matches. Words that match the same thing have the same key and count once."""

    start: int
    end: int
    key: str
    weight: int


def snippet(text: str, weights: Mapping[str, float], words: str, length: int = LENGTH) -> Snippet:
    """The `length` or fewer characters of a text whose distinct matches weigh most; the first such place of several.

    `words` is the query. `weights` has the terms of its expansion, as BERT's uncased vocabulary spells them. A word of
    the query weighs as much as the heaviest term, and its own weight as a term on top. The matches are in the middle if
    the text goes on at both sides. Without a match, it is the beginning of the text.

    White space becomes one space. The snippet begins and ends between words (a first word that is longer than `length`
    is cut) and may have control characters: `stream.terminal.printable` escapes them. Indexes count code points. It
    takes linear time.
    """
    text = " ".join(text.split())
    spans = [found.span() for found in WORD.finditer(text)]
    matches = _matches(text, spans, weights, words)
    start, end = _around(text, spans, *_best(matches, length), length)
    inside = [
        (match.start - start, match.end - start) for match in matches if start <= match.start and match.end <= end
    ]
    return Snippet(text[start:end], inside)


def _matches(text: str, spans: Sequence[tuple[int, int]], weights: Mapping[str, float], query: str) -> list[_Match]:
    heaviest = max(weights.values(), default=1.0)
    stems: dict[str, float] = {}
    for word, stem in _stems(query):
        stems[stem] = max(stems.get(stem, 0.0), heaviest + weights.get(_as_term(word), 0.0))
    letters = {stem[0] for stem in stems}  # a stem begins as its word does: few words need the slow stemmer

    def match(word: str) -> tuple[str, int] | None:
        if word in STOP_WORDS:
            return None
        if word[0] in letters and (stem := _stem(word)) in stems:
            return stem, _whole(stems[stem])
        term = _as_term(word)
        return (term, _whole(weights[term])) if term in weights else None

    known: dict[str, tuple[str, int] | None] = {}
    matches = []
    for start, end in spans:
        if end - start <= LONGEST_WORD:
            word = text[start:end]
            if word not in known:
                known[word] = match(_plain(word))
            if found := known[word]:
                matches.append(_Match(start, end, *found))
    return matches


def _best(matches: Sequence[_Match], length: int) -> tuple[int, int]:
    """From the first to the last match of the best window; 0, 0 without a match."""
    fitting = [match for match in matches if match.end - match.start <= length]
    best, place = 0, (0, 0)
    total, first = 0, 0
    counts: Counter[str] = Counter()
    for match in fitting:
        counts[match.key] += 1
        total += match.weight if counts[match.key] == 1 else 0
        while match.end - fitting[first].start > length:
            left = fitting[first]
            counts[left.key] -= 1
            total -= left.weight if not counts[left.key] else 0
            first += 1
        if total > best:
            best, place = total, (fitting[first].start, match.end)
    return place


def _around(text: str, spans: Sequence[tuple[int, int]], start: int, end: int, length: int) -> tuple[int, int]:
    """Widens [start, end) to whole words within `length` characters, on both sides alike where the text goes on.

    Punctuation stays with its word where it fits.
    """
    low = max(0, min(start - (length - (end - start)) // 2, len(text) - length))
    if end <= length:
        low = 0
    high = low + length
    if low > 0:
        first = next(start for start, _ in spans if start >= low)
        space = text.rfind(" ", low - 1, first)
        low = first if space < 0 else space + 1
    if high < len(text):
        last = max((end for _, end in spans if end <= high), default=len(text[:high].rstrip()))
        space = text.find(" ", last, high + 1)
        high = last if space < 0 else space
    return low, min(high, len(text))


@lru_cache(maxsize=16)  # all hits of an answer have one query
def _stems(query: str) -> list[tuple[str, str]]:
    """The distinct words of a query, each with its stem, without stop words."""
    words = dict.fromkeys(_plain(word) for word in WORD.findall(query) if len(word) <= LONGEST_WORD)
    return [(word, _stem(word)) for word in words if word not in STOP_WORDS]


@lru_cache(maxsize=2**16)
def _stem(word: str) -> str:
    """Porter's stem (1980). OpenSearch also has his two later rules (-bli, -logi), which change few words."""
    if len(word) <= 2:  # as in OpenSearch; this stemmer would leave nothing of "s"
        return word
    stem: str = snowballstemmer.stemmer("porter").stemWord(word)  # a stemmer of its own: it is not safe for threads
    return stem


def _plain(word: str) -> str:
    """As the analyzer `english` has it before it is stemmed: in lower case, without a possessive s."""
    lower = word.lower()
    return lower[:-2] if lower.endswith(POSSESSIVES) else lower


def _as_term(word: str) -> str:
    """A plain word as BERT's uncased vocabulary has it: without accents."""
    if word.isascii():
        return word
    return "".join(letter for letter in unicodedata.normalize("NFD", word) if unicodedata.category(letter) != "Mn")


def _whole(weight: float) -> int:
    """A weight as a whole number, so that sums are exact: equal sets of matches must tie."""
    return round(weight * 2**20)
