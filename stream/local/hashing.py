"""A stand-in for a dense model: it hashes words. Lexical, not semantic.

It exists so that tests need no download and can have vectors of any length. A search finds texts that share words with
the query, never texts that share only its meaning. The vector is a signed feature hash (Weinberger et al. 2009, arXiv
0902.2206) of words and of pairs of adjacent words.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, pairwise

import numpy as np

from stream.vectors import Vector

DIMENSIONS = 4096
MAX_MODEL_LEN = 32_768  # of Qwen3-Embedding-8B
BUCKETS = 4  # a word has one in each quarter of the vector: words that collide in one quarter differ in the other three
PAIR_WEIGHT = 0.5
STOP_WEIGHT = 0.1  # with full weight, words of every text would decide which texts are similar
STOP_WORDS = frozenset(
    "a an and are as at be by for from if in into is it its of on or that the this to with".split()  # noqa: SIM905
)

TOKEN = re.compile(r"\w+|[^\w\s]")
WORD = re.compile(r"\w+")
BOUNDARY = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # inside snake_case and camelCase


def embed(text: str, dimensions: int = DIMENSIONS) -> Vector:
    """The vector (dimensions,) of a text, unit norm, the same on every machine.

    The weight of a word is 1 + log(occurrences); an adjacent pair has half, a stop word a tenth of that. An identifier
    counts as itself and as its parts. If a text has no words, its characters count. Of a query in the format of
    Qwen3-Embedding ("Instruct: {task}\\nQuery:{query}") only the part after "Query:" counts.
    """
    if text.startswith("Instruct: "):
        text = text.partition("\nQuery:")[2] or text
    words = WORD.findall(text)
    parts = [part for word in words for part in _parts(word)]
    identifiers = [word.lower() for word in words if len(_parts(word)) > 1]
    features = Counter(parts + identifiers) or Counter(text) or Counter([""])
    pairs = Counter(f"{first} {second}" for first, second in pairwise(parts))
    weights = [_weight(n) * (STOP_WEIGHT if feature in STOP_WORDS else 1) for feature, n in features.items()]
    weights += [PAIR_WEIGHT * _weight(n) for n in pairs.values()]

    hashes = np.frombuffer(b"".join(map(_digest, [*features, *pairs])), "<u2").reshape(-1, BUCKETS)
    width = dimensions // BUCKETS
    buckets = hashes % width + np.arange(BUCKETS) * width
    signed = np.where(hashes >> 15, -1.0, 1.0) * np.array(weights)[:, None]
    vector = np.bincount(buckets.ravel(), signed.ravel(), dimensions)
    return (vector / math.sqrt(math.fsum((vector * vector).tolist()))).astype(np.float32)


def tokens(text: str) -> int:
    """The number of tokens of a text: words, other characters that are not white space, and one end token."""
    return len(TOKEN.findall(text)) + 1


def truncated(text: str, limit: int) -> str:
    """The beginning of the text that has at most `limit` tokens, with the end token included."""
    ends = [match.end() for match in islice(TOKEN.finditer(text), limit)]
    return text if len(ends) < limit else text[: ends[limit - 2]] if limit > 1 else ""


class HashedWords:
    """The stand-in as a model of the embedding server."""

    owner = "stream.local.hashing: hashes words, lexical not semantic"
    max_model_len = MAX_MODEL_LEN

    def __init__(self, dimensions: int = DIMENSIONS) -> None:
        self._dimensions = dimensions

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        return [tokens(text) for text in texts]

    def truncated(self, text: str, limit: int) -> str:
        """The beginning of the text that has at most `limit` tokens."""
        return truncated(text, limit)

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors (dimensions,) of the texts."""
        return [embed(text, self._dimensions) for text in texts]


def _weight(count: int) -> float:
    return 1 + round(math.log(count), 6)  # the last bits of a logarithm differ between machines


@lru_cache(maxsize=2**16)
def _parts(word: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in BOUNDARY.split(word) if part)


@lru_cache(maxsize=2**18)
def _digest(feature: str) -> bytes:
    return blake2b(feature.encode(), digest_size=2 * BUCKETS).digest()
