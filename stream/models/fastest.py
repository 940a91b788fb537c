"""Chooses the fastest correct implementation of a masked language model for a device."""

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stream import corpus
from stream.config import Settings
from stream.errors import ConfigurationError
from stream.models.agreement import Agreement, agreement
from stream.models.padded import PaddedModel
from stream.models.windows import Windows

log = logging.getLogger(__name__)

SAMPLE = 256  # docstrings on which float8 is compared with float32
LEAST_COSINE, LEAST_OVERLAP = 0.999, 0.98
FLOAT8_CAPABILITY = (8, 9)  # CUDA compute capability of Ada, the first with float8 products
FLOAT16 = "set STREAM_SPLADE_PRECISION=float16"

Tokenise = Callable[[Sequence[str]], Windows]


class Model(Protocol):
    """Computes the largest logit of each term for each text."""

    def pool(self, windows: Windows, out: Tensor) -> None:
        """Sets out (texts, V) float32 to the maximum of itself and the logits of each text's windows; idempotent."""


def fastest(model: nn.Module, device: torch.device, settings: Settings, tokenise: Tokenise) -> Model:
    """The model in the configured precision; raises `ConfigurationError` if float8 is impossible or too inexact.

    An architecture that `PackedModel` does not support runs as a `PaddedModel`.
    """
    if settings.splade_precision == "float8":
        return _float8(model, device, settings, tokenise)
    if device.type == "cpu":
        return PaddedModel(model, device)
    from stream.models.packed import PackedModel, Unsupported  # noqa: PLC0415 - Triton takes seconds to import

    try:
        return PackedModel(model, device)
    except Unsupported as error:
        log.warning("%s is not BERT's architecture: the model runs on padded batches, several times slower", error)
        return PaddedModel(model, device, torch.float16)


def multiplies_float8(device: torch.device) -> bool:
    """Whether the device can multiply float8 matrices."""
    return device.type == "cuda" and torch.cuda.get_device_capability() >= FLOAT8_CAPABILITY


def _float8(model: Any, device: torch.device, settings: Settings, tokenise: Tokenise) -> Model:
    from stream.models.float8 import Float8Model  # noqa: PLC0415
    from stream.models.packed import Unsupported  # noqa: PLC0415

    if not multiplies_float8(device):
        raise ConfigurationError(f"float8 needs a GPU with float8 support (Ada, Hopper or newer): {FLOAT16}")
    try:
        small = Float8Model(model, device)
    except Unsupported as error:
        raise ConfigurationError(f"float8 supports BERT's architecture only, not {error}: {FLOAT16}") from None
    windows = tokenise([chunk["text"] for chunk in islice(corpus.chunks(), SAMPLE)])
    found = compare(small, PaddedModel(model, device), windows, device, settings)
    if found.cosine < LEAST_COSINE or found.overlap < LEAST_OVERLAP:
        raise ConfigurationError(
            f"float8 changes the terms of {settings.splade_model} too much: the cosine is {found.cosine:.4f} "
            f"(at least {LEAST_COSINE}) and {found.overlap:.1%} of the terms agree (at least {LEAST_OVERLAP:.0%}): "
            f"{FLOAT16}"
        )
    return small


@torch.inference_mode()
def compare(model: Model, exact: PaddedModel, windows: Windows, device: torch.device, settings: Settings) -> Agreement:
    """How closely a model agrees with the exact one."""
    outs = [torch.zeros(windows.texts, exact.vocabulary, device=device) for _ in range(2)]
    for each, out in zip((model, exact), outs, strict=True):
        each.pool(windows, out)
    return agreement(*outs, threshold=settings.splade_threshold, top_k=settings.splade_top_k)
