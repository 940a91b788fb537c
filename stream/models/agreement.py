"""How closely a model in lower precision agrees with the exact model."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two sets of vectors of the same texts compared: means over the texts, and the largest difference of a logit."""

    cosine: float
    overlap: float
    logit_error: float


def agreement(found: Tensor, exact: Tensor, *, threshold: float, top_k: int) -> Agreement:
    """Compares pooled logits (texts, V) ≥ 0: cosine of the weights, share of exact's kept terms that found keeps."""
    ours, theirs = (kept(logits, threshold, top_k) for logits in (found, exact))
    common, expected = (ours & theirs).sum(1), theirs.sum(1)
    overlaps = torch.where(expected > 0, common / expected.clamp(min=1), (ours.sum(1) == 0).float())
    cosines = torch.cosine_similarity(found.log1p(), exact.log1p())
    cosines[~(found.any(1) | exact.any(1))] = 1  # two empty vectors are the same
    return Agreement(float(cosines.mean()), float(overlaps.mean()), float((found - exact).abs().max()))


def kept(logits: Tensor, threshold: float, top_k: int) -> Tensor:
    """Which terms of each text are kept, (texts, V) bool."""
    weights, ids = logits.log1p().topk(min(top_k, logits.shape[1]))
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, weights > threshold)
