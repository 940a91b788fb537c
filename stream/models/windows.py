"""Texts as windows of tokens, concatenated without padding. A window is at most what a model reads at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Windows:
    """`ids` (T,) are the tokens of all windows, special tokens included.

    Window i is `ids[bounds[i]:bounds[i + 1]]` and belongs to text `owners[i]`; `bounds` has one element more than
    `owners`.
    """

    ids: Integers
    bounds: Integers
    owners: Integers

    def __len__(self) -> int:
        return len(self.owners)

    @property
    def texts(self) -> int:
        """The number of texts."""
        return int(self.owners[-1]) + 1

    @property
    def lengths(self) -> Integers:
        """Tokens of each window."""
        return np.diff(self.bounds)

    def split(self, budget: int) -> Iterator["Windows"]:
        """Parts of about the same size, of at most `budget` tokens each; a longer window is a part of its own."""
        if not len(self):
            return
        total, longest = int(self.bounds[-1]), int(self.lengths.max())
        if budget > longest:
            parts = -(-total // (budget - longest + 1))
            cuts = np.unique(np.searchsorted(self.bounds, np.linspace(0, total, parts + 1)))
        else:
            cuts = np.arange(len(self) + 1)
        for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            begin, end = self.bounds[first], self.bounds[last]
            yield Windows(self.ids[begin:end], self.bounds[first : last + 1] - begin, self.owners[first:last])


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], policy: Literal["windows", "truncate"]) -> Windows:
    """The windows of the texts, in order; the tokenizer's truncation setting is the longest window.

    With `truncate` only the first window of a text is kept. Uses all cores and lets other threads run meanwhile.
    """
    ids: list[list[int]] = []
    owners: list[int] = []
    for owner, encoding in enumerate(tokenizer.encode_batch_fast(list(texts))):
        windows = [encoding] if policy == "truncate" else [encoding, *encoding.overflowing]
        ids += [window.ids for window in windows]
        owners += [owner] * len(windows)
    bounds = np.zeros(len(ids) + 1, np.int32)
    np.cumsum([len(window) for window in ids], out=bounds[1:])
    flat = np.fromiter(chain.from_iterable(ids), np.int32, bounds[-1])
    return Windows(flat, bounds, np.array(owners, np.int32))
