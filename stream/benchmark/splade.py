"""How fast this machine encodes with SPLADE, compared with the public encoders and with its GPU's peak (roofline).

One run measures everything: rates are comparable only as shares of the same GPU's peak, because GPUs of one model
differ in clocks, power limits and temperature.
"""

import asyncio
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer
from transformers.utils import logging as transformers_logging

from stream.benchmark.stage import rate_of_stage
from stream.config import Settings
from stream.errors import GpuRequired
from stream.local.splade_model import SPECIAL
from stream.models.agreement import Agreement, agreement
from stream.models.fastest import Model
from stream.models.padded import PaddedModel
from stream.models.splade import SparseEncoder
from stream.models.windows import Windows
from stream.records import Embedded, Record, encode, sha256
from stream.stages.expand import expand
from stream.vectors import pack

BATCH = 256  # texts, as in a batch from Kafka
PEER_TEXTS = 1024  # in one call, so that a peer can sort them
CALLS = 2  # concurrent, like the expand stage's batches in flight: one on the GPU, one in the tokenizer
LONG = 4  # the expand stage runs so many times `seconds`
POSITIVE = 300  # terms of a text with a positive logit, about as many as splade-v3 has
BATCH_SIZES = (64, 128, 256)
MEMORY_BUDGETS = (2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
KERNELS = {"head": ("_max_logits",), "top-k": ("mbtopk", "gatherTopK", "radixSort", "sort"), "transfers": ("Memcpy",)}

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rate:
    """One encoder's texts a second, share of the roofline, and peak GPU memory in GiB."""

    encoder: str
    setting: str
    texts_a_second: float
    share: float
    peak_gib: float


@dataclass(slots=True)
class Comparison:
    """All encoders on the same texts. `roofline`: texts a second if the GPU ran at its peak all the time.

    `parts`: shares of the GPU's time, and the tokenizer's time relative to it. `busy`: the share of the expand stage's
    time in which the GPU worked.
    """

    texts: int
    tokens: int
    roofline: float
    rates: list[Rate] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    busy: float = 0

    def best(self) -> list[Rate]:
        """The fastest setting of each encoder."""
        fastest = {rate.encoder: rate for rate in sorted(self.rates, key=lambda rate: rate.texts_a_second)}
        return [rate for rate in self.rates if rate in fastest.values()]


@dataclass(slots=True)
class Result:
    """Peaks in TFLOP/s, before (for the roofline) and after the run; `agreements` with the float32 model."""

    device: str
    software: str
    model: str
    peak: float
    peak_afterwards: float
    agreements: dict[str, Agreement]
    comparisons: dict[str, Comparison]


def run(settings: Settings, folder: Path, seconds: float, say: Report) -> Result:
    """Measures; saves a model of random weights to `folder` if the configured model is not on this machine."""
    settings, model = measurable(settings, folder)
    say(f"model: {model}")
    encoder = SparseEncoder(settings)
    words = whole_words(settings)
    agreed = agreements(encoder, settings, words)
    for name, of in agreed.items():
        say(f"{name}: logits within {of.logit_error:.4f}, cosine {of.cosine:.5f}, {of.overlap:.2%} of the terms")
    peak = matrix_peak()
    say(f"peak of a matrix product: {peak:.0f} TFLOP/s")
    generator = np.random.default_rng(0)
    comparisons = {}
    for name, lengths in {
        "512 tokens": np.full(BATCH * 12, 512),
        "mixed lengths": np.clip(generator.lognormal(np.log(200), 0.6, BATCH * 24), 8, 512).astype(int),
    }.items():
        texts = [" ".join(generator.choice(words, length - 2)) for length in lengths]
        say(f"{name}:")
        comparisons[name] = measure(encoder, settings, texts, peak=peak, seconds=seconds, say=say)
    return Result(
        torch.cuda.get_device_name(),
        f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}",
        model, peak, matrix_peak(), agreed, comparisons,
    )  # fmt: skip


# Models and texts


def measurable(settings: Settings, folder: Path) -> tuple[Settings, str]:
    """Settings with a model that is on this machine, and its description. Raises `GpuRequired`."""
    if not torch.cuda.is_available():
        raise GpuRequired("the benchmark needs a GPU, and PyTorch finds none: check nvidia-smi and the driver")
    model = settings.splade_model
    if Path(model).exists():
        return settings.model_copy(update={"require_gpu": True}), model
    more = {"require_gpu": True, "splade_model": str(random_model(folder))}
    return settings.model_copy(update=more), f"the shape of {model}, random weights"


def random_model(folder: Path) -> Path:
    """Saves a random model and a tokenizer of BERT-base's shape; about `POSITIVE` terms of a text are positive."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    config = BertConfig()
    model = BertForMaskedLM(config).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.randint(len(SPECIAL), config.vocab_size, (4, 256))).logits.amax(1)
    with torch.no_grad():
        model.cls.predictions.decoder.bias -= logits.quantile(1 - POSITIVE / config.vocab_size, dim=1).mean()
    model.save_pretrained(folder)
    letters, generator = list("etaoinshrdlucmfw"), np.random.default_rng(0)
    words: dict[str, None] = {}
    while len(words) < config.vocab_size - len(SPECIAL):
        words["".join(generator.choice(letters, generator.integers(3, 9)))] = None
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *words])}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    return folder


def whole_words(settings: Settings) -> list[str]:
    """Words of one token each, so that the number of words determines the number of tokens."""
    tokenizer = AutoTokenizer.from_pretrained(settings.splade_model, revision=settings.splade_revision)
    return [word for word in tokenizer.get_vocab() if word.isalpha() and word.islower() and word.isascii()]


def flops(settings: Settings, lengths: Sequence[int]) -> float:
    """Floating-point operations of the matrix products for windows of these lengths, attention and head included."""
    config: Any = AutoConfig.from_pretrained(settings.splade_model)
    hidden, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    a_token = layers * (8 * hidden**2 + 4 * hidden * inner) + 2 * hidden**2 + 2 * hidden * vocabulary
    return float(sum(length * (a_token + layers * 4 * length * hidden) for length in lengths))


# Measurements


def matrix_peak(size: int = 8192, seconds: float = 2) -> float:
    """TFLOP/s of one large bfloat16 product of random numbers, repeated for `seconds`."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    (a @ b).sum().item()
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            a @ b
        rounds += 10
        torch.cuda.synchronize()
    return rounds * 2 * size**3 / (time.perf_counter() - started) / 1e12


def agreements(encoder: SparseEncoder, settings: Settings, words: list[str]) -> dict[str, Agreement]:
    """The agreement of each precision with float32, over texts of all lengths."""
    generator = np.random.default_rng(1)
    texts = [" ".join(generator.choice(words, n)) for n in (1, 12, 100, 126, 127, 200, 254, 300, 510, 511, 1500) * 8]
    models: dict[str, Model] = {"this, float16": encoder._model}
    for dtype in (torch.float16, torch.bfloat16):
        models[f"transformers, {str(dtype)[6:]}"] = PaddedModel(_load(settings, dtype), encoder.device, dtype)
    windows = encoder.tokenise(texts)
    exact = _logits(encoder, PaddedModel(_load(settings, torch.float32), encoder.device), windows)
    return {
        name: agreement(
            _logits(encoder, model, windows), exact, threshold=settings.splade_threshold, top_k=settings.splade_top_k
        )
        for name, model in models.items()
    }


def measure(
    encoder: SparseEncoder, settings: Settings, texts: list[str], *, peak: float, seconds: float, say: Report
) -> Comparison:
    """Measures every encoder on the same texts."""
    batches = [texts[n : n + BATCH] for n in range(0, len(texts), BATCH)]
    windows = [encoder.tokenise(batch) for batch in batches]
    lengths = [length for each in windows for length in each.lengths.tolist()]
    comparison = Comparison(len(texts), sum(lengths), peak * 1e12 / (flops(settings, lengths) / len(texts)))

    def note(name: str, setting: str, rate: float) -> None:
        peak_gib = torch.cuda.max_memory_allocated() / 2**30
        comparison.rates.append(Rate(name, setting, rate, rate / comparison.roofline, peak_gib))
        say(f"  {name}, {setting}: {rate:,.0f} texts/s, {rate / comparison.roofline:.1%} of the roofline")

    say(f"  roofline: {comparison.roofline:,.0f} texts/s")
    note("this, from ids", "float16", rate_of(encoder.encode_windows, windows, seconds))
    note("this, from text", "float16", rate_of(encoder.encode, batches, seconds))
    comparison.parts = parts(encoder, batches)
    say("  " + ", ".join(f"{part} {share:.1%}" for part, share in comparison.parts.items()))
    records = itertools.cycle([[_record(n, text) for n, text in enumerate(batch)] for batch in batches])
    process = partial(expand, encoder=encoder)

    def stage(seconds: float) -> float:
        return asyncio.run(rate_of_stage(process, "embedded", records, settings, seconds))

    note("this, in the expand stage", "float16", stage(LONG * seconds))
    comparison.busy = busy(partial(stage, seconds))
    say(f"  in the expand stage, the GPU is busy {comparison.busy:.1%} of the time")
    slow = PaddedModel(_load(settings, torch.float16), torch.device("cuda"), torch.float16)
    note("this, padded for another architecture", "float16", rate_of(
        partial(_pooled, encoder, slow), windows, seconds / 2, calls=1
    ))  # fmt: skip
    del slow
    sample = texts[:PEER_TEXTS]
    for name, peer in (
        ("transformers, sorted by length", transformers),
        ("sentence-transformers", sentence_transformers),
    ):
        for setting, run in peer(settings):
            note(name, setting, rate_of(run, [sample], seconds / 2, calls=1))
            gc.collect()
            torch.cuda.empty_cache()
    return comparison


def rate_of(
    encode: Callable[[Any], Sequence[Any]], batches: Sequence[Any], seconds: float, calls: int = CALLS
) -> float:
    """Texts a second: repeats the batches for about `seconds`, with `calls` concurrent calls."""
    started = time.perf_counter()
    for batch in batches:  # warm-up: cuBLAS selects and loads a kernel for each shape
        encode(batch)
    rounds = max(round(seconds / (time.perf_counter() - started)), 1)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    started = time.perf_counter()
    with ThreadPoolExecutor(calls) as pool:
        done = sum(map(len, pool.map(encode, [*batches] * rounds)))
    torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def _record(n: int, text: str) -> Record:
    value, headers = encode(embedded(n, text))
    return Record("chunks.embedded", 0, n, f"chunk-{n}".encode(), value, 0, headers)


def embedded(n: int, text: str) -> Embedded:
    """A chunk as the expand stage receives it, with a random unit vector."""
    vector = np.random.default_rng(n).standard_normal(4096).astype("<f4")
    return {
        "chunk_id": f"chunk-{n}",
        "doc_id": "document",
        "text": text,
        "version": 1,
        "text_sha256": sha256(text),
        "embedding_qwen": pack(vector / np.linalg.norm(vector)),
        "embedding_provenance": {"model": "random", "revision": "none", "parameters": {}},
    }


def busy(run: Callable[[], object]) -> float:
    """The share of a run's time in which the GPU works."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    # All kernels run on one stream: none at the same time as another.
    worked: float = sum(event.self_device_time_total for event in recorded.key_averages()) / 1e6
    return worked / seconds


def parts(encoder: SparseEncoder, batches: Sequence[list[str]]) -> dict[str, float]:
    """Shares of the GPU's time by part, and the tokenizer's time relative to it."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        with ThreadPoolExecutor(CALLS) as pool:
            list(pool.map(encoder.encode, batches))
        torch.cuda.synchronize()
    spent = dict.fromkeys([*KERNELS, "encoder"], 0.0)
    for event in recorded.key_averages():
        part = next((part for part, names in KERNELS.items() if any(n in event.key for n in names)), "encoder")
        spent[part] += event.self_device_time_total / 1e6
    total = sum(spent.values())
    started = time.perf_counter()
    for batch in batches:
        encoder.tokenise(batch)
    tokenising = time.perf_counter() - started
    shares = {part: seconds / total for part, seconds in spent.items()}
    return shares | {"tokeniser, beside the GPU": tokenising / total}


# Public encoders


def _load(settings: Settings, dtype: torch.dtype) -> Any:
    name, revision = settings.splade_model, settings.splade_revision
    model: Any = AutoModelForMaskedLM.from_pretrained(name, revision=revision)
    return model.eval().to("cuda", dtype)


@torch.inference_mode()
def _logits(encoder: SparseEncoder, model: Model, windows: Windows) -> Tensor:
    out = torch.zeros(windows.texts, len(encoder.vocabulary), device=encoder.device)
    model.pool(windows, out)
    return out


def _pooled(encoder: SparseEncoder, model: Model, windows: Windows) -> Sequence[Any]:
    return list(_logits(encoder, model, windows).topk(400).values.log1p().cpu())


Peer = Iterator[tuple[str, Callable[[Any], Sequence[Any]]]]


def transformers(settings: Settings) -> Peer:
    """SPLADE as its model cards compute it, on texts sorted by length."""
    tokenizer = AutoTokenizer.from_pretrained(settings.splade_model, revision=settings.splade_revision)
    for dtype in (torch.float16, torch.bfloat16):
        model = _load(settings, dtype)
        for size in (32, 64, 128):

            @torch.inference_mode()
            def encode(texts: list[str], model: Any = model, size: int = size) -> Sequence[Any]:
                kept = []
                ordered = sorted(texts, key=len)
                for n in range(0, len(ordered), size):
                    batch = tokenizer(
                        ordered[n : n + size], padding=True, truncation=True, max_length=512, return_tensors="pt"
                    ).to("cuda")
                    weights = torch.log1p(torch.relu(model(**batch).logits)) * batch["attention_mask"][..., None]
                    kept.extend(weights.amax(1).topk(settings.splade_top_k).values.cpu())
                return kept

            yield f"{str(dtype)[6:]}, batch {size}", encode


def sentence_transformers(settings: Settings) -> Peer:
    """The SparseEncoder of sentence-transformers; yields nothing if it is not installed."""
    try:
        from sentence_transformers import SparseEncoder as Encoder  # noqa: PLC0415
        from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer  # noqa: PLC0415
    except ImportError:
        return
    default = (torch.float32, 32)
    for dtype, size in [default, *((d, s) for d in (torch.float16, torch.bfloat16) for s in BATCH_SIZES)]:
        module = Transformer(settings.splade_model, transformer_task="fill-mask", model_kwargs={"dtype": dtype})
        encoder = Encoder(modules=[module, SpladePooling("max")], device="cuda")

        def encode(texts: list[str], encoder: Any = encoder, size: int = size) -> Sequence[Any]:
            encoder.encode(texts, batch_size=size, max_active_dims=settings.splade_top_k, show_progress_bar=False)
            return texts

        yield f"{str(dtype)[6:]}, batch {size}" + (" (its default)" if (dtype, size) == default else ""), encode


# Tables and plots


def memory_table(settings: Settings, folder: Path) -> list[tuple[int, float, float]]:
    """For one forward pass: tokens in flight, peak GPU memory in GiB, and milliseconds."""
    settings, _ = measurable(settings, folder)
    settings = settings.model_copy(update={"splade_token_budget": MEMORY_BUDGETS[-1]})
    encoder = SparseEncoder(settings)
    text = " ".join(np.random.default_rng(0).choice(whole_words(settings), 510))
    rows = []
    for tokens in MEMORY_BUDGETS:
        windows = encoder.tokenise([text] * (tokens // 512))
        torch.cuda.reset_peak_memory_stats()
        took = []
        for _ in range(6):  # the first is the warm-up: cuBLAS selects a kernel for this shape
            started = time.perf_counter()
            encoder.encode_windows(windows)
            took.append(time.perf_counter() - started)
        rows.append((tokens, torch.cuda.max_memory_allocated() / 2**30, 1000 * statistics.median(took)))
    return rows


def draw(result: Result, path: Path) -> None:
    """Plots the best setting of each encoder as a share of the roofline; the suffix determines the format."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (name, comparison) in zip(
        figure.subplots(1, len(result.comparisons), sharex=True), result.comparisons.items(), strict=True
    ):
        rates = comparison.best()
        labels = [f"{rate.encoder}\n{rate.setting}" for rate in rates]
        bars = axes.barh(labels, [100 * rate.share for rate in rates], color="#4878a8")
        axes.bar_label(bars, [f"{rate.texts_a_second:,.0f}/s" for rate in rates], padding=3, fontsize=7)
        axes.set(title=name, xlabel=f"% of the roofline ({comparison.roofline:,.0f} texts/s)", xlim=(0, 120))
        axes.tick_params(labelsize=6)
        axes.invert_yaxis()
    figure.suptitle(f"SPLADE on one {result.device}", fontsize=10)
    figure.savefig(path)
