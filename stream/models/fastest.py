"""Chooses the fastest correct implementation of a masked language model for a device."""

import logging
from typing import Protocol

import torch
from torch import Tensor, nn

from stream.models.padded import PaddedModel
from stream.models.windows import Windows

log = logging.getLogger(__name__)


class Model(Protocol):
    """Computes the largest logit of each term for each text."""

    def pool(self, windows: Windows, out: Tensor) -> None:
        """Sets out (texts, V) float32 to the maximum of itself and the logits of each text's windows; idempotent."""


def fastest(model: nn.Module, device: torch.device) -> Model:
    """A `PackedModel` in float16 on a GPU; a `PaddedModel` for other architectures, and in float32 on the CPU."""
    if device.type == "cpu":
        return PaddedModel(model, device)
    from stream.models.packed import PackedModel, Unsupported  # noqa: PLC0415 - Triton takes seconds to import

    try:
        return PackedModel(model, device)
    except Unsupported as error:
        log.warning("%s is not BERT's architecture: the model runs on padded batches, several times slower", error)
        return PaddedModel(model, device, torch.float16)
