"""If these fail, the demo's sparse search finds nothing, or the model does not load as a real SPLADE model does."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from stream import corpus
from stream.errors import ConfigurationError
from stream.local.splade_model import build

Encode = Callable[[Sequence[str]], list[dict[str, float]]]


TEXTS = ["open the socket", "read the file", "close the socket and the file"] * 5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The model of the demo's text, and the CPU seconds of the build."""
    texts = [chunk["text"] for chunk in corpus.chunks()]
    started = time.process_time()
    path = build(texts, tmp_path_factory.mktemp("models") / "splade")
    return path, time.process_time() - started


@pytest.fixture(scope="module")
def encode(built: tuple[Path, float]) -> Encode:
    """SPLADE as in its paper: the maximum over the tokens of log(1 + ReLU(logit))."""
    tokenizer = AutoTokenizer.from_pretrained(built[0])
    model = AutoModelForMaskedLM.from_pretrained(built[0])

    def encode(texts: Sequence[str]) -> list[dict[str, float]]:
        batch = tokenizer(list(texts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            weights = torch.log1p(torch.relu(model(**batch).logits)) * batch["attention_mask"][..., None]
        rows = weights.amax(1)
        return [
            {tokenizer.convert_ids_to_tokens(i): float(row[i]) for i in row.nonzero()[:, 0].tolist()} for row in rows
        ]

    return encode


def test_the_corpus_becomes_a_model_within_a_minute_of_one_core(built: tuple[Path, float]):
    assert built[1] < 60


def test_the_saved_weights_are_the_loaded_weights(built: tuple[Path, float]):
    model, report = AutoModelForMaskedLM.from_pretrained(built[0], output_loading_info=True)
    assert not any(report.values())
    assert not torch.equal(model.cls.predictions.decoder.weight, model.bert.embeddings.word_embeddings.weight)
    assert model.cls.predictions.decoder.bias.max() < 0


def test_the_tokenizer_is_bert_s(built: tuple[Path, float]):
    tokenizer = AutoTokenizer.from_pretrained(built[0])
    ids = tokenizer("The Socket [SEP] socket")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "socket", "[SEP]", "socket", "[SEP]"]
    assert tokenizer.model_max_length == 512
    assert 7_000 <= len(tokenizer) <= 9_000


def test_a_word_is_its_own_heaviest_term_beside_a_few_neighbours(encode: Encode):
    (terms,) = encode(["socket"])
    assert max(terms, key=terms.__getitem__) == "socket"
    assert 2 <= len(terms) <= 4
    assert all(0.3 <= weight <= 2.5 for weight in terms.values())


def test_words_do_not_disturb_each_other(encode: Encode):
    both, socket, thread = encode(["socket thread", "socket", "thread"])
    assert both == pytest.approx(socket | thread, rel=1e-3)


def test_a_word_of_every_text_weighs_little(encode: Encode):
    the, socket = encode(["the", "socket"])
    assert the["the"] < socket["socket"] / 2


def test_every_token_activates_a_few_terms_and_punctuation_none(built: tuple[Path, float]):
    tokenizer = AutoTokenizer.from_pretrained(built[0])
    model = AutoModelForMaskedLM.from_pretrained(built[0])
    with torch.inference_mode():
        active = (model(input_ids=torch.arange(len(tokenizer))[:, None]).logits[:, 0] > 0).sum(1)
    silent = {tokenizer.convert_ids_to_tokens(i) for i in (active == 0).nonzero()[:, 0].tolist()}
    assert active.max() <= 4
    assert {*tokenizer.all_special_tokens, ".", ",", "("} <= silent
    assert not [term for term in silent - set(tokenizer.all_special_tokens) if any(map(str.isalnum, term))]


def test_padding_changes_nothing(encode: Encode):
    (alone,) = encode(["socket"])
    padded, _ = encode(["socket", "a much longer text about the files of a folder"])
    assert padded == pytest.approx(alone, rel=1e-4)


def test_the_same_texts_give_the_same_files(tmp_path: Path):
    first, second = build(TEXTS, tmp_path / "first"), build(iter(TEXTS), tmp_path / "second")
    names = sorted(file.name for file in first.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(names)
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]


def test_a_model_is_built_once_and_again_when_the_texts_change(tmp_path: Path):
    path = build(TEXTS, tmp_path / "model")
    made = path.stat().st_ino
    assert build(TEXTS, path).stat().st_ino == made
    assert build([*TEXTS, "a new text"], path).stat().st_ino != made
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


def test_a_build_that_fails_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = build(TEXTS, tmp_path / "model")
    before = (path / "model.safetensors").read_bytes()
    monkeypatch.setattr("stream.local.splade_model.README", None)
    with pytest.raises(TypeError):
        build([*TEXTS, "a new text"], path)
    assert (path / "model.safetensors").read_bytes() == before
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


def test_somebody_else_s_folder_is_not_replaced(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ConfigurationError, match="not a development model"):
        build(TEXTS, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_no_texts_are_named_as_the_cause(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no texts"):
        build([], tmp_path / "model")
