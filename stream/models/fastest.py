"""The fastest way to run a masked language model on a device that is known to be right."""

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

SAMPLE = 256  # docstrings that tell whether float8 will do
LEAST_COSINE, LEAST_OVERLAP = 0.999, 0.98
FLOAT8_CAPABILITY = (8, 9)  # of CUDA: Ada
FLOAT16 = "set STREAM_SPLADE_PRECISION=float16"

Tokenise = Callable[[Sequence[str]], Windows]


class Model(Protocol):
    """What finds the largest logits."""

    def pool(self, windows: Windows, out: Tensor) -> None:
        """Raises out (texts, V) float32 to the largest logits of each text's windows; again changes nothing."""


def fastest(model: nn.Module, device: torch.device, settings: Settings, tokenise: Tokenise) -> Model:
    """The model in the precision that the settings want; raises `ConfigurationError` if float8 will not do.

    An architecture that the fast way does not know goes the slow one.
    """
    if settings.splade_precision == "float8":
        return _float8(model, device, settings, tokenise)
    if device.type == "cpu":
        return PaddedModel(model, device)
    from stream.models.packed import PackedModel, Unsupported  # noqa: PLC0415 - Triton takes seconds to import

    try:
        return PackedModel(model, device)
    except Unsupported as error:
        log.warning("%s is not BERT's architecture: its model runs on padded batches, several times slower", error)
        return PaddedModel(model, device, torch.float16)


def multiplies_float8(device: torch.device) -> bool:
    """Whether the device has products of float8."""
    return device.type == "cuda" and torch.cuda.get_device_capability() >= FLOAT8_CAPABILITY


def _float8(model: Any, device: torch.device, settings: Settings, tokenise: Tokenise) -> Model:
    from stream.models.float8 import Float8Model  # noqa: PLC0415
    from stream.models.packed import Unsupported  # noqa: PLC0415

    if not multiplies_float8(device):
        raise ConfigurationError(f"float8 needs a GPU that multiplies it (Ada, Hopper or newer): {FLOAT16}")
    try:
        small = Float8Model(model, device)
    except Unsupported as error:
        raise ConfigurationError(f"float8 is for BERT's architecture, not {error}'s: {FLOAT16}") from None
    windows = tokenise([chunk["text"] for chunk in islice(corpus.chunks(), SAMPLE)])
    found = compare(small, PaddedModel(model, device), windows, device, settings)
    if found.cosine < LEAST_COSINE or found.overlap < LEAST_OVERLAP:
        raise ConfigurationError(
            f"float8 changes the terms of {settings.splade_model} too much: a cosine of {found.cosine:.4f} "
            f"({LEAST_COSINE} is needed) and {found.overlap:.1%} of the terms ({LEAST_OVERLAP:.0%}): {FLOAT16}"
        )
    return small


@torch.inference_mode()
def compare(model: Model, exact: PaddedModel, windows: Windows, device: torch.device, settings: Settings) -> Agreement:
    """How far a model agrees with the exact one."""
    outs = [torch.zeros(windows.texts, exact.vocabulary, device=device) for _ in range(2)]
    for each, out in zip((model, exact), outs, strict=True):
        each.pool(windows, out)
    return agreement(*outs, threshold=settings.splade_threshold, top_k=settings.splade_top_k)
