"""`PackedModel` with its products in float8: more than a third faster on Hopper, and not as exact.

Numbers are e4m3 (Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv 2209.05433): weights scaled to the
whole range of their matrix, hidden numbers by one constant, because e4m3 keeps its four digits over a range that layer
norms hold anyway. Sums, norms and what is added up from layer to layer stay as they are in `PackedModel`. Whether a
model bears it is for `agreement` to say.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stream.models import kernels
from stream.models.kernels import FLOAT8, SCALE
from stream.models.packed import Layer, Linear, PackedModel
from stream.models.windows import Windows

LARGEST = torch.finfo(FLOAT8).max


class Small(NamedTuple):
    """y = x @ weight.T · scale + bias, x and weight in float8; `scales` are the two factors of scale, on the device."""

    weight: Tensor
    bias: Tensor
    scale: float
    scales: tuple[Tensor, Tensor]


class Float8Model(PackedModel):
    """Runs windows of any lengths without padding, on one device that multiplies float8."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float16) -> None:
        super().__init__(model, device, dtype)
        self._small_layers = [
            Layer(
                *(_small(layer.qkv), _small(layer.attended), layer.attended_norm),
                *(_small(layer.up), _small(layer.down), layer.down_norm),
            )
            for layer in self._layers
        ]
        self._small_transform, self._small_decoder = _small(self._transform), _small(self._decoder)
        del self._layers, self._transform, self._decoder

    def pool(self, windows: Windows, out: Tensor) -> None:
        """Raises out (texts, V) float32 on the device to the largest logits of each text's windows."""
        ids, places, bounds, owners, window_of, start_of, first_of, last_of = self._moved(windows)
        x = kernels.embed_norm(ids, places, self._words, self._positions, *self._embedded_norm)
        small = (x * SCALE).clamp_(-LARGEST, LARGEST).to(FLOAT8)
        for layer in self._small_layers:
            qkv = _product(small, layer.qkv, x.dtype)
            attended = kernels.attention(qkv, bounds, window_of, start_of, self._heads, FLOAT8)
            y = _product(attended, layer.attended, x.dtype)
            x = kernels.add_norm(y, self._no_bias, *layer.attended_norm, x, small)
            y = _product(kernels.linear_gelu(small, *layer.up[:3], FLOAT8), layer.down, x.dtype)
            x = kernels.add_norm(y, self._no_bias, *layer.down_norm, x, small)
        x = kernels.linear_gelu(small, *self._small_transform[:3], x.dtype)
        kernels.add_norm(x, self._no_bias, *self._transform_norm, None, small)
        weight, bias, scale, _ = self._small_decoder
        kernels.max_logits(small, weight, bias, out, bounds, owners, first_of, last_of, scale)


def _small(linear: Linear) -> Small:
    scale = float(linear.weight.abs().max()) / LARGEST
    device: Any = {"device": linear.weight.device, "dtype": torch.float32}
    scales = torch.tensor(1 / SCALE, **device), torch.tensor(scale, **device)
    return Small((linear.weight.float() / scale).to(FLOAT8), linear.bias, scale / SCALE, scales)


def _product(x: Tensor, to: Small, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(x, to.weight.t(), *to.scales, bias=to.bias, out_dtype=dtype)
