"""Weighted terms of a vocabulary, as names and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

DECIMALS = 6  # of a stored weight
# The digits of a number, by number: 0 to 999 with a point after it, and 0 to 9,999 and 0 to 99 with leading zeros.
WHOLE = np.array([b"%d." % number for number in range(1000)], "S4").view(np.uint32)
FOUR_DIGITS = np.array([b"%04d" % number for number in range(10_000)]).view(np.uint32)
TWO_DIGITS = np.array([b"%02d" % number for number in range(100)]).view(np.uint16)


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Terms (n,) as vocabulary ids, the heaviest first, equal weights by id; and the L2 norm before normalising."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    norm: float
    vocabulary: "Vocabulary"

    @property
    def terms(self) -> dict[str, float]:
        """Terms by name, the heaviest first, as stored: rounded to six decimals, without those that become zero."""
        rounded = self.weights.astype(np.float64).round(DECIMALS)
        kept = np.count_nonzero(rounded)
        return dict(zip(self.vocabulary.names[self.ids[:kept]].tolist(), rounded[:kept].tolist(), strict=True))


class Vocabulary:
    """The terms of a model by id."""

    def __init__(self, terms: Sequence[str | None]) -> None:
        self.names: npt.NDArray[np.object_] = np.array(terms, np.object_)
        keys = np.array([b"," + orjson.dumps(term) + b":" for term in terms])  # the shorter ones end with NUL
        self._keys = keys.view(f"V{keys.itemsize}")

    def __len__(self) -> int:
        return len(self.names)

    def as_json(self, vectors: Sequence[SparseVector]) -> list[bytes]:
        """The `terms` of each vector as a JSON object; weights must be below 1,000.

        This is most of what a stage does beside the model. A dictionary or a string for each term holds the
        interpreter's lock, for which the thread that feeds the GPU then waits; these array operations release it.
        """
        weights = np.concatenate([vector.weights for vector in vectors]).astype(np.float64)
        millionths = np.rint(weights * 10**DECIMALS).astype(np.int32)
        kept = millionths > 0
        owners = np.repeat(np.arange(len(vectors)), [len(vector.ids) for vector in vectors])
        ids = np.concatenate([vector.ids for vector in vectors])[kept]
        rest, last_two = np.divmod(millionths[kept], 100)
        whole, first_four = np.divmod(rest, 10_000)

        fields = [("key", self._keys.dtype), ("whole", "u4"), ("first_four", "u4"), ("last_two", "u2")]
        terms = np.empty(len(ids), fields)
        terms["key"] = self._keys.take(ids)
        terms["whole"] = WHOLE.take(whole)
        terms["first_four"] = FOUR_DIGITS.take(first_four)
        terms["last_two"] = TWO_DIGITS.take(last_two)

        text = terms.view(np.uint8).reshape(len(terms), terms.itemsize)
        counts = np.bincount(owners[kept], minlength=len(vectors))
        text[(counts.cumsum() - counts)[counts > 0], 0] = ord("\n")  # not the comma; JSON has none inside strings
        objects = iter(text[text != 0].tobytes().split(b"\n")[1:])
        return [b"{" + next(objects) + b"}" if count else b"{}" for count in counts.tolist()]
