"""If these fail, tokens of a text are lost or counted for another text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from stream.models.windows import Windows, tokenise

WORDS = ["[CLS]", "[SEP]", *"abcdefgh"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[SEP]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    made.enable_truncation(5)
    return made


def tokens(windows: Windows) -> list[tuple[int, str]]:
    return [
        (int(owner), "".join(WORDS[i] for i in windows.ids[begin:end] if i > 1))
        for owner, begin, end in zip(windows.owners, windows.bounds[:-1], windows.bounds[1:], strict=True)
    ]


def test_a_long_text_becomes_several_windows_or_is_cut(tokenizer):
    texts = ["a b", "", "a b c d e f g", "h"]
    found = tokenise(tokenizer, texts, "windows")
    assert tokens(found) == [(0, "ab"), (1, ""), (2, "abc"), (2, "def"), (2, "g"), (3, "h")]
    assert found.lengths.tolist() == [4, 2, 5, 5, 3, 3]
    assert tokens(tokenise(tokenizer, texts, "truncate")) == [(0, "ab"), (1, ""), (2, "abc"), (3, "h")]


@pytest.mark.parametrize("budget", [1, 4, 5, 6, 7, 9, 50, 1000])
def test_parts_have_every_window_once_in_order_and_keep_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 6, 40)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    whole = Windows(np.arange(bounds[-1], dtype=np.int32), bounds, np.arange(40, dtype=np.int32) // 2)
    parts = list(whole.split(budget))
    assert np.concatenate([part.ids for part in parts]).tolist() == whole.ids.tolist()
    assert np.concatenate([part.lengths for part in parts]).tolist() == lengths.tolist()
    assert np.concatenate([part.owners for part in parts]).tolist() == whole.owners.tolist()
    assert all(part.bounds[-1] <= budget or len(part) == 1 for part in parts)
    assert all(len(part) for part in parts)
    if budget >= 5:
        assert len(parts) <= -(-int(bounds[-1]) // (budget - 4))
