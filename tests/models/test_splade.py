"""If these fail, a chunk has wrong terms: searches find it by the wrong words or not at all."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer

from stream.config import Settings
from stream.errors import ConfigurationError, GpuRequired, Outage
from stream.models import splade
from stream.models.packed import PackedModel
from stream.models.splade import SparseEncoder

WORDS = ["socket", "port", "file", "read", "##er", "open", "close", "the", "a", "of", "and", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["socket", "open the socket and read a file .", "", "close", "the port of the reader unknownword"]
LONG = "the reader and the open port of a file . " * 7
MANY = [" ".join(WORDS[i % 4 : 4 + i % 8] * (1 + i % 5)).replace("##", "") for i in range(200)]

MakeEncoder = Callable[..., SparseEncoder]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a vocabulary of a few words: unlike a trained one, every token activates many terms."""
    return made(tmp_path_factory.mktemp("models") / "random", len(SPECIAL + WORDS))


def made(path: Path, logits: int) -> Path:
    """A model with this many logits; those without a word are the largest."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=logits,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    model = BertForMaskedLM(config)
    model.cls.predictions.decoder.bias.data[len(SPECIAL + WORDS) :] = 100
    model.save_pretrained(path)
    BertTokenizer(vocab={word: i for i, word in enumerate(SPECIAL + WORDS)}, model_max_length=64).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder_of(folder: Path) -> MakeEncoder:
    """Makes an encoder of the random model; all weights are kept as they are unless a setting says otherwise."""

    def make(**settings: object) -> SparseEncoder:
        raw = {"splade_threshold": 0, "splade_normalise": False, "splade_max_tokens": 64}
        return SparseEncoder(Settings(_env_file=None, splade_model=str(folder), require_gpu=False, **(raw | settings)))

    return make


@pytest.fixture(scope="module")
def reference(folder: Path) -> Callable[[str], dict[str, float]]:
    """SPLADE-max as in its paper, one text at a time, so without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder)

    def encode(text: str) -> dict[str, float]:
        with torch.inference_mode():
            weights = torch.log1p(torch.relu(model(**tokenizer(text, return_tensors="pt")).logits))[0].amax(0)
        return {tokenizer.convert_ids_to_tokens(i): float(weights[i]) for i in weights.nonzero()[:, 0].tolist()}

    return encode


def same(terms: dict[str, float]):
    return pytest.approx(terms, abs=2e-5)  # sums in another order differ in the last bits


def test_weights_are_those_of_the_paper(encoder_of, reference):
    vectors = encoder_of().encode(TEXTS)
    assert [vector.terms for vector in vectors] == [same(reference(text)) for text in TEXTS]
    assert min(len(vector.terms) for vector in vectors) > 0


def test_many_texts_of_all_lengths_come_back_in_their_order(encoder_of, reference):
    vectors = encoder_of().encode(MANY)
    assert [vector.terms for vector in vectors] == [same(reference(text)) for text in MANY]


def test_a_text_has_the_same_vector_alone_and_beside_a_longer_one(encoder_of):
    encoder = encoder_of()
    (alone,) = encoder.encode(["socket"])
    beside, _ = encoder.encode(["socket", LONG])
    assert beside.terms == same(alone.terms)


def test_the_heaviest_term_comes_first(encoder_of):
    for vector in encoder_of().encode(TEXTS):
        assert list(vector.terms.values()) == sorted(vector.terms.values(), reverse=True)


def test_a_long_text_is_the_maximum_over_its_windows_so_nothing_is_cut_off(encoder_of, reference):
    encoder = encoder_of(splade_max_tokens=16)
    ids = encoder.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    windows = [encoder.tokenizer.decode(ids[start : start + 14]) for start in range(0, len(ids), 14)]
    expected: dict[str, float] = {}
    for window in windows:
        for term, weight in reference(window).items():
            expected[term] = max(weight, expected.get(term, 0))
    before, long, after = encoder.encode(["socket", LONG, "port"])
    assert long.terms == same(expected)
    assert (before.terms, after.terms) == (same(reference("socket")), same(reference("port")))


def test_terms_up_to_the_threshold_are_dropped_by_their_raw_weight(encoder_of, reference):
    raw = reference(LONG[:40])
    threshold = sorted(raw.values())[len(raw) // 2]
    kept = {term for term, weight in raw.items() if weight > threshold + 1e-5}
    for normalise in (False, True):
        (vector,) = encoder_of(splade_threshold=threshold + 1e-5, splade_normalise=normalise).encode([LONG[:40]])
        assert vector.terms.keys() == kept


def test_the_heaviest_terms_are_kept(encoder_of, reference):
    (vector,) = encoder_of(splade_top_k=3).encode(["open the socket"])
    raw = reference("open the socket")
    assert vector.terms == same(dict(sorted(raw.items(), key=lambda item: -item[1])[:3]))


def test_normalised_weights_have_norm_one_and_give_the_raw_ones_back(encoder_of, reference):
    (vector,) = encoder_of(splade_normalise=True).encode(["open the socket"])
    assert sum(weight**2 for weight in vector.terms.values()) == pytest.approx(1, abs=1e-5)
    raw = {term: weight * vector.norm for term, weight in vector.terms.items()}
    assert raw == pytest.approx(reference("open the socket"), abs=1e-5)


def test_the_norm_is_of_the_terms_that_are_kept(encoder_of):
    (vector,) = encoder_of(splade_top_k=2).encode(["open the socket"])
    assert sum(weight**2 for weight in vector.terms.values()) ** 0.5 == pytest.approx(vector.norm, abs=1e-5)


def test_the_terms_of_a_record_are_those_of_a_search(encoder_of):
    encoder = encoder_of(splade_normalise=False)
    vectors = encoder.encode(["", *TEXTS, ""])
    for vector, written in zip(vectors, encoder.vocabulary.as_json(vectors), strict=True):
        assert list(orjson.loads(written).items()) == list(vector.terms.items())


def test_equal_weights_come_in_the_vocabulary_s_order_and_are_cut_there(encoder_of):
    encoder = encoder_of(splade_top_k=3)
    with torch.no_grad():
        encoder._model._model.cls.predictions.decoder.weight.zero_()
        encoder._model._model.cls.predictions.decoder.bias.fill_(1)
        encoder._model._model.cls.predictions.decoder.bias[9] = 2
    for vector in encoder.encode(TEXTS):
        assert list(vector.terms) == [encoder.vocabulary.names[9], *encoder.vocabulary.names[:2]]


@pytest.mark.parametrize("normalise", [False, True])
def test_a_text_that_activates_nothing_has_no_terms_and_norm_zero(encoder_of, normalise):
    (vector,) = encoder_of(splade_threshold=1000, splade_normalise=normalise).encode([""])
    assert (vector.terms, vector.norm) == ({}, 0)


def test_no_weight_is_zero_however_small(encoder_of):
    encoder = encoder_of()
    with torch.no_grad():
        encoder._model._model.cls.predictions.decoder.weight.zero_()
        encoder._model._model.cls.predictions.decoder.bias.fill_(1e-7)
    (vector,) = encoder.encode(["socket"])
    assert all(weight > 0 for weight in vector.terms.values())


@pytest.mark.parametrize("packed", [False, True])
def test_logits_of_a_padded_vocabulary_are_no_terms_and_take_no_place(tmp_path, packed):
    words = SPECIAL + WORDS
    settings = Settings(
        _env_file=None,
        splade_model=str(made(tmp_path, 2 * len(words) - 1)),
        require_gpu=False,
        splade_threshold=0,
        splade_max_tokens=64,
        splade_top_k=3,
    )
    encoder = SparseEncoder(settings)
    if packed:
        model = deepcopy(encoder._model._model)  # a copy: Triton's interpreter needs aligned memory
        encoder._model = PackedModel(model, torch.device("cpu"), torch.float32)
    for vector in encoder.encode(TEXTS):
        assert len(vector.terms) == 3
        assert set(vector.terms) <= set(words)


def test_no_texts_are_no_vectors(encoder_of):
    assert encoder_of().encode([]) == []


def test_parts_are_joined_by_the_separator_and_empty_ones_left_out(encoder_of):
    assert encoder_of().join(["a text", "", " \n", "a line"]) == "a text [SEP] a line"


def test_the_provenance_says_what_would_change_the_weights(encoder_of, folder):
    changed = {
        "splade_threshold": 0.5,
        "splade_top_k": 7,
        "splade_normalise": True,
        "splade_max_tokens": 32,
        "splade_long_texts": "truncate",
    }
    assert encoder_of(**changed).provenance == {
        "model": str(folder),
        "revision": "main",
        "parameters": {
            "threshold": 0.5,
            "top_k": 7,
            "normalised": True,
            "max_tokens": 32,
            "long_texts": "truncate",
            "precision": "float32",
        },
    }


def no_model(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"cut off")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize("damage", [no_model, no_weights, broken_weights, broken_config, no_tokenizer])
def test_a_model_that_cannot_be_loaded_is_one_sentence(folder, tmp_path, damage):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    damage(broken)
    with pytest.raises(ConfigurationError, match="STREAM_SPLADE_MODEL") as error:
        SparseEncoder(Settings(_env_file=None, splade_model=str(broken), splade_max_tokens=64, require_gpu=False))
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_gpu_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GpuRequired, match="REQUIRE_GPU=0 uses the CPU"):
        SparseEncoder(Settings(_env_file=None, splade_model=str(folder), splade_max_tokens=64, require_gpu=True))


def test_windows_longer_than_the_model_can_read_are_refused_at_the_start(encoder_of):
    with pytest.raises(ConfigurationError, match="STREAM_SPLADE_MAX_TOKENS"):
        encoder_of(splade_max_tokens=128)


class Full:
    """A model on a GPU with memory for `tokens` tokens at once."""

    def __init__(self, model, tokens):
        self.model, self.tokens, self.asked = model, tokens, []

    def pool(self, windows, out):
        self.asked.append(len(windows.ids))
        if len(windows.ids) > self.tokens:
            raise torch.cuda.OutOfMemoryError
        self.model.pool(windows, out)


def test_without_memory_less_is_tried_nothing_is_lost_and_more_is_tried_again_later(encoder_of):
    encoder = encoder_of(splade_token_budget=2048)
    expected = [vector.terms for vector in encoder.encode(MANY)]
    full = encoder._model = Full(encoder._model, 600)
    assert [vector.terms for vector in encoder.encode(MANY)] == [same(terms) for terms in expected]
    assert [max(full.asked), full.asked[-1] <= 600] == [max(full.asked), True]
    full.tokens = 2048
    for _ in range(2 * splade.GOOD_RUNS):
        encoder.encode(["socket"])
    full.asked.clear()
    encoder.encode(MANY)
    assert max(full.asked) > 600


def test_no_memory_for_a_single_window_is_an_outage(encoder_of):
    encoder = encoder_of()
    encoder._model = Full(encoder._model, 0)
    with pytest.raises(Outage, match="nvidia-smi"):
        encoder.encode(["socket"])
