"""If these fail, a GPU computes wrong terms, or a GPU without free memory loses a batch. Run by `make test-gpu`."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from transformers import BertForMaskedLM, BertTokenizer, RobertaConfig, RobertaForMaskedLM

from stream.benchmark.splade import random_model, whole_words
from stream.config import Settings
from stream.models.packed import PackedModel
from stream.models.padded import PaddedModel
from stream.models.splade import SparseEncoder

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ, reason="needs a CUDA GPU, and `make test-gpu`"
)

CUDA = torch.device("cuda")


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return random_model(tmp_path_factory.mktemp("models") / "shape")


@pytest.fixture(scope="session")
def encoder(folder) -> SparseEncoder:
    return SparseEncoder(Settings(_env_file=None, splade_model=str(folder)))


@pytest.fixture(scope="session")
def texts_of(folder):
    words = whole_words(Settings(_env_file=None, splade_model=str(folder)))

    def texts(tokens, seed=0):
        generator = np.random.default_rng(seed)
        return [" ".join(generator.choice(words, max(n - 2, 0))) for n in tokens]

    return texts


@pytest.fixture(scope="session")
def exact(folder) -> PaddedModel:
    return PaddedModel(BertForMaskedLM.from_pretrained(folder).eval(), CUDA)


def pooled(model, encoder, texts):
    out = torch.zeros(len(texts), len(encoder.vocabulary), device=CUDA)
    with torch.inference_mode():
        model.pool(encoder.tokenise(texts), out)
    return out


def alike(found, expected):
    """Asserts the same terms, except those near the threshold, with about the same weights."""
    for one, other in zip(found, expected, strict=True):
        left, right = one.terms, other.terms
        heavy = {term for term, weight in right.items() if weight * other.norm > 0.07}
        assert heavy <= left.keys()
        assert {term: left[term] for term in heavy} == pytest.approx({term: right[term] for term in heavy}, abs=2e-3)


def test_logits_are_within_five_thousandths_of_float32_at_odd_lengths(encoder, exact, texts_of):
    texts = texts_of([2, 3, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1000, 2000])
    assert (pooled(encoder._model, encoder, texts) - pooled(exact, encoder, texts)).abs().max() <= 0.005


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 2000])
def test_a_text_s_vector_does_not_depend_on_its_batch(encoder, texts_of, count):
    texts = texts_of(np.random.default_rng(count).integers(2, 60, count))
    together = encoder.encode(texts)
    assert len(together) == count
    some = range(0, count, max(count // 7, 1))
    alike([together[i] for i in some], [encoder.encode([texts[i]])[0] for i in some])


def test_calls_at_the_same_time_do_not_disturb_each_other(encoder, texts_of):
    batches = [texts_of(np.random.default_rng(seed).integers(2, 500, 64), seed) for seed in range(8)]
    alone = [encoder.encode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(encoder.encode, batches), alone, strict=True):
            alike(found, expected)


@pytest.mark.parametrize("scale", [50.0, 1e-4])
def test_weights_at_the_ends_of_float16_give_finite_logits(encoder, folder, texts_of, scale):
    model = BertForMaskedLM.from_pretrained(folder).eval()
    model.cls.predictions.decoder.weight.data *= scale
    texts = texts_of([5, 300, 512])
    found, expected = (pooled(cls(model, CUDA), encoder, texts) for cls in (PackedModel, PaddedModel))
    assert found.isfinite().all()
    assert (found - expected).abs().max() <= 0.01 * max(scale, 1)


def test_logits_that_are_all_negative_are_an_empty_vector(folder, texts_of, tmp_path):
    model = BertForMaskedLM.from_pretrained(folder)
    model.cls.predictions.decoder.bias.data -= 1000
    model.save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    for vector in SparseEncoder(Settings(_env_file=None, splade_model=str(tmp_path))).encode(texts_of([2, 600])):
        assert (vector.terms, vector.norm) == ({}, 0)


def test_a_full_gpu_costs_time_and_no_vector(folder, texts_of):
    settings = Settings(_env_file=None, splade_model=str(folder), splade_token_budget=131_072)
    encoder = SparseEncoder(settings)
    texts = texts_of([512] * 256)
    expected = encoder.encode(texts)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    filling = torch.empty(free - 400 * 2**20, dtype=torch.int8, device=CUDA)
    before = REGISTRY.get_sample_value("stream_splade_out_of_memory_total")
    found = encoder.encode(texts)
    assert REGISTRY.get_sample_value("stream_splade_out_of_memory_total") > before
    assert REGISTRY.get_sample_value("stream_splade_token_budget") < 131_072
    alike(found, expected)
    del filling
    for _ in range(500):
        encoder.encode(texts[:1])
    assert REGISTRY.get_sample_value("stream_splade_token_budget") == 131_072


def test_prometheus_sees_the_gpu_s_memory_and_its_work(encoder, texts_of):
    def said(name, **labels):
        return REGISTRY.get_sample_value(name, labels)

    _, total = torch.cuda.mem_get_info()
    assert said("stream_gpu_memory_bytes", state="used") + said("stream_gpu_memory_bytes", state="free") == total
    assert said("stream_gpu_memory_bytes", state="used") > 0
    texts = texts_of([512] * 256)
    while not said("stream_gpu_utilization_ratio"):
        encoder.encode(texts)
    assert said("stream_gpu_utilization_ratio") <= 1


def test_another_architecture_takes_the_slow_way_and_says_so(folder, texts_of, tmp_path, caplog):
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=30522, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    encoder = SparseEncoder(Settings(_env_file=None, splade_model=str(tmp_path), splade_threshold=0))
    assert "roberta" in caplog.text
    texts = texts_of([5, 200])
    exact = PaddedModel(RobertaForMaskedLM.from_pretrained(tmp_path).eval(), CUDA)
    assert (pooled(encoder._model, encoder, texts) - pooled(exact, encoder, texts)).abs().max() < 0.005
