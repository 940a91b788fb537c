"""A SPLADE encoder: texts to weighted terms of a masked language model's vocabulary.

The weight of a term is the maximum over the text's tokens of log(1 + ReLU(logit)) (SPLADE-max: Formal et al. 2021,
"SPLADE v2", arXiv 2109.10086). Special tokens count, padding does not. One model encodes documents and queries.
The logarithm preserves the order, so it is computed last and only for the kept terms.
"""

import logging
import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pynvml
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from stream import metrics, progress
from stream.config import Settings
from stream.errors import ConfigurationError, GpuRequired, Outage
from stream.models.fastest import fastest
from stream.models.terms import SparseVector, Vocabulary
from stream.models.windows import Windows, tokenise
from stream.records import Provenance

log = logging.getLogger(__name__)

MOST_TEXTS = 1024  # in one step: each has a row of the vocabulary's size in GPU memory
GOOD_RUNS = 100  # runs without an error after which a halved token budget is doubled


class SparseEncoder:
    """The encoder on one device. Synchronous and thread-safe: call it in a thread, not in the event loop.

    Two concurrent calls keep a GPU busy: one tokenises while the other waits for the device.
    """

    def __init__(self, settings: Settings) -> None:
        """Loads the model.

        Raises `ConfigurationError` if it cannot be loaded or is incomplete, `GpuRequired` if the GPU is missing.
        """
        if settings.require_gpu and not torch.cuda.is_available():
            raise GpuRequired(
                "SPLADE needs a CUDA GPU, and PyTorch finds none: `stream doctor` says why; REQUIRE_GPU=0 uses the CPU"
            )
        self._settings = settings
        self.device = torch.device("cuda" if settings.require_gpu else "cpu")
        transformers_logging.disable_progress_bar()
        name, revision = settings.splade_model, settings.splade_revision
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            model = AutoModelForMaskedLM.from_pretrained(name, revision=revision, use_safetensors=True)
        except (OSError, ValueError, SafetensorError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise ConfigurationError(
                f"the SPLADE model {name} cannot be loaded: {first_line} (naver/splade-v3 is gated: accept its terms "
                "on its page, then log in with a token; or set STREAM_SPLADE_MODEL to a folder that holds a model)"
            ) from error
        most = getattr(model.config, "max_position_embeddings", settings.splade_max_tokens)
        if (
            len(self.tokenizer) > model.config.vocab_size
            or len(self.tokenizer) * 2 < model.config.vocab_size  # transformers invents a tokenizer of special tokens
            or settings.splade_max_tokens > most
        ):
            raise ConfigurationError(
                f"the SPLADE model {name} has {len(self.tokenizer)} terms in its tokenizer, {model.config.vocab_size} "
                f"in its weights, and reads at most {most} tokens: set STREAM_SPLADE_MODEL to a complete model and "
                f"STREAM_SPLADE_MAX_TOKENS ({settings.splade_max_tokens}) to at most {most}"
            )
        # A copy: each call of a transformers tokenizer changes padding and truncation of the tokenizer inside it.
        self._tokenizer = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.splade_max_tokens)
        self.vocabulary = Vocabulary(self.tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size))))
        # A model whose vocabulary is padded to a round number has logits that belong to no term.
        nameless = [number for number, term in enumerate(self.vocabulary.names) if term is None]
        self._nameless = torch.tensor(nameless, dtype=torch.int64, device=self.device)
        self._model = fastest(model.eval(), self.device)
        self._budget = settings.splade_token_budget
        self._good_runs = 0
        self._submitting = threading.Lock()
        if self.device.type == "cuda":
            self.encode(["warm-up: compiles the kernels"])
            _report(self.device)

    @property
    def provenance(self) -> Provenance:
        """The model, its revision and the parameters, recorded with each expansion."""
        settings = self._settings
        return {
            "model": settings.splade_model,
            "revision": settings.splade_revision,
            "parameters": {
                "threshold": settings.splade_threshold,
                "top_k": settings.splade_top_k,
                "normalised": settings.splade_normalise,
                "max_tokens": settings.splade_max_tokens,
                "long_texts": settings.splade_long_texts,
                "precision": "float32" if self.device.type == "cpu" else "float16",
            },
        }

    def join(self, parts: Sequence[str]) -> str:
        """The non-empty parts as one text, joined by the model's separator token."""
        return f" {self.tokenizer.sep_token} ".join(part for part in parts if part.strip())

    def encode(self, texts: Sequence[str]) -> list[SparseVector]:
        """The sparse vector of each text. A text of more than `splade_max_tokens` is encoded in windows, max-pooled.

        Raises `Outage` if the device lacks memory for one window.
        """
        return [
            vector
            for start in range(0, len(texts), MOST_TEXTS)
            for vector in self.encode_windows(self.tokenise(texts[start : start + MOST_TEXTS]))
        ]

    def tokenise(self, texts: Sequence[str]) -> Windows:
        """The windows of the texts."""
        return tokenise(self._tokenizer, texts, self._settings.splade_long_texts)

    def encode_windows(self, windows: Windows) -> list[SparseVector]:
        """The sparse vector of each text of these windows."""
        with self._submitting:
            ranked = self._submit(windows)
            done = torch.cuda.Event() if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
            if done:
                done.record()
        if done:
            done.synchronize()
        return self._vectors(ranked.numpy())

    def _submit(self, windows: Windows) -> Tensor:
        """The heaviest terms of each text; their copy to the host may be in progress."""
        while (ranked := self._attempt(windows)) is None:
            self._shrink()
        self._grow()
        return ranked

    @torch.inference_mode()
    def _attempt(self, windows: Windows) -> Tensor | None:
        """One forward pass; None if the device ran out of memory."""
        try:
            out = torch.zeros(windows.texts, len(self.vocabulary), device=self.device)
            for part in windows.split(self._budget):
                self._model.pool(part, out)
                progress.made()
            out.index_fill_(1, self._nameless, 0)
            ranked = _ranked(out, min(self._settings.splade_top_k, len(self.vocabulary)))
            return ranked.to("cpu", non_blocking=True)
        except torch.cuda.OutOfMemoryError:
            return None

    def _shrink(self) -> None:
        torch.cuda.empty_cache()
        metrics.splade_out_of_memory.inc()
        if self._budget <= self._settings.splade_max_tokens:
            raise Outage(
                "the GPU lacks memory for one window of SPLADE: find the other users of its memory with nvidia-smi",
                "gpu-memory",
            )
        self._budget //= 2
        self._good_runs = 0
        log.warning("out of GPU memory; trying again with %d tokens at once", self._budget)

    def _grow(self) -> None:
        self._good_runs += 1
        if self._good_runs % GOOD_RUNS == 0:
            self._budget = min(self._budget * 2, self._settings.splade_token_budget)
        metrics.splade_token_budget.set(self._budget)

    def _vectors(self, ranked: npt.NDArray[np.int64]) -> list[SparseVector]:
        """Applies the threshold to the raw weights, then normalises by L2."""
        settings = self._settings
        weights = np.log1p((ranked >> 32).astype(np.int32).view(np.float32))
        ids = (len(self.vocabulary) - 1 - (ranked & 0xFFFF_FFFF)).astype(np.int32)
        weights[weights <= settings.splade_threshold] = 0
        kept = np.count_nonzero(weights, axis=1).tolist()
        norms = np.linalg.norm(weights, axis=1)
        if settings.splade_normalise:
            weights /= np.where(norms, norms, 1)[:, None]
        return [
            SparseVector(ids[i, :n], weights[i, :n], norm, self.vocabulary)
            for i, (n, norm) in enumerate(zip(kept, norms.tolist(), strict=True))
        ]


def _ranked(logits: Tensor, k: int) -> Tensor:
    """The k largest of logits (texts, V) float32 ≥ 0, with their terms, as (texts, k) int64.

    The high 32 bits are the logit's: floats ≥ 0 sort as their bits do. The low 32 bits are V - 1 - id, so that equal
    logits keep the vocabulary's order.
    """
    size = logits.shape[1]
    keys = (logits.view(torch.int32).to(torch.int64) << 32) | torch.arange(size - 1, -1, -1, device=logits.device)
    return keys.topk(k).values


def _report(device: torch.device) -> None:
    """Exports the GPU's memory and, if NVML reports it, its utilisation."""
    for state in ("used", "free"):
        metrics.gpu_memory.labels(state).set_function(partial(_memory, device, state))
    try:
        torch.cuda.utilization(device)
    except pynvml.NVMLError as error:  # a MIG partition does not report it
        log.info("the GPU does not report its utilisation: %s", error)
    else:
        metrics.gpu_utilization.set_function(lambda: torch.cuda.utilization(device) / 100)


def _memory(device: torch.device, state: str) -> int:
    """Bytes of GPU memory, all processes included."""
    free, total = torch.cuda.mem_get_info(device)
    return free if state == "free" else total - free
