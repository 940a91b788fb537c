"""A SPLADE encoder: texts to weighted terms of a masked language model's vocabulary.

The weight of a term is the maximum over the text's tokens of log(1 + ReLU(logit)) (SPLADE-max: Formal et al. 2021,
"SPLADE v2", arXiv 2109.10086). Special tokens count, padding does not. One model serves documents and queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging

from stream.config import Settings
from stream.errors import ConfigurationError
from stream.records import Provenance

# Tokens of one forward pass, padding included. It bounds the logits, the largest tensor; on two cores 1,024 tokens are
# encoded three times as fast as 16,384 because the logits of fewer stay in the cache.
TOKEN_BUDGET = 1024


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Terms with their weights, the heaviest first (equal weights in the vocabulary's order), and the raw L2 norm."""

    terms: dict[str, float]
    norm: float


class SparseEncoder:
    """The encoder on one device. Synchronous: call it off the event loop."""

    def __init__(self, settings: Settings) -> None:
        """Loads the model; raises `ConfigurationError` if it cannot be had."""
        self._settings = settings
        self.device = torch.device("cuda" if settings.require_gpu else "cpu")
        logging.disable_progress_bar()
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
            or len(self.tokenizer) * 2 < model.config.vocab_size  # transformers makes up a tokenizer of special tokens
            or settings.splade_max_tokens > most
        ):
            raise ConfigurationError(
                f"the SPLADE model {name} has {len(self.tokenizer)} terms in its tokenizer, {model.config.vocab_size} "
                f"in its weights, and reads {most} tokens at most: set STREAM_SPLADE_MODEL to a whole model and "
                f"STREAM_SPLADE_MAX_TOKENS ({settings.splade_max_tokens}) to what it reads"
            )
        self.model = model.eval().to(self.device)
        self.terms: list[str] = self.tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size)))

    @property
    def provenance(self) -> Provenance:
        """What each expansion says of its origin."""
        settings = self._settings
        return {
            "model": settings.splade_model,
            "revision": settings.splade_revision,
            "parameters": {
                "threshold": settings.splade_threshold,
                "top_k": settings.splade_top_k,
                "normalised": settings.splade_normalise,
                "max_tokens": settings.splade_max_tokens,
            },
        }

    def join(self, parts: Sequence[str]) -> str:
        """One text of several parts, the model's separator token between them; empty parts are left out."""
        return f" {self.tokenizer.sep_token} ".join(part for part in parts if part.strip())

    def encode(self, texts: Sequence[str]) -> list[SparseVector]:
        """The sparse vector of each text. A text of more than `splade_max_tokens` is encoded in windows, max-pooled."""
        if not texts:
            return []
        windows = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self._settings.splade_max_tokens,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids, owners = windows["input_ids"], windows["overflow_to_sample_mapping"]
        weights = torch.zeros(len(texts), len(self.terms), device=self.device)
        for batch in _batches_by_length([len(window) for window in ids]):
            for i, pooled in zip(batch, self._pooled_logits([ids[i] for i in batch]), strict=True):
                torch.maximum(weights[owners[i]], pooled, out=weights[owners[i]])
        return [self._sparse(row) for row in torch.log1p(weights)]

    @torch.inference_mode()
    def _pooled_logits(self, windows: list[list[int]]) -> torch.Tensor:
        """(windows, vocabulary): the largest positive logit of each term over a window's tokens."""
        padded = self.tokenizer.pad({"input_ids": windows}, return_tensors="pt").to(self.device)
        logits: torch.Tensor = self.model(**padded).logits
        # A padded token's logits become 0, which the ReLU makes of every loser anyway.
        return logits.mul_(padded["attention_mask"][..., None]).amax(1).relu_().float()

    def _sparse(self, weights: torch.Tensor) -> SparseVector:
        """Threshold on the raw weight, the heaviest `splade_top_k`, then L2; log1p keeps order, so it came first."""
        settings = self._settings
        kept = torch.nonzero(weights > settings.splade_threshold)[:, 0]
        order = torch.argsort(weights[kept], descending=True, stable=True)[: settings.splade_top_k]
        kept = kept[order]
        values = weights[kept].double()
        norm = float(torch.linalg.vector_norm(values))
        if settings.splade_normalise and norm:
            values = values / norm
        rounded = torch.round(values, decimals=6).tolist()
        weighted = zip((self.terms[i] for i in kept.tolist()), rounded, strict=True)
        return SparseVector({term: weight for term, weight in weighted if weight > 0}, norm)


def _batches_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in batches of similar length, each at most `TOKEN_BUDGET` tokens when padded to its longest."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > TOKEN_BUDGET:
            batches.append([])
        batches[-1].append(i)
    return batches
