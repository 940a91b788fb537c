"""`PackedModel` with its matrix products in float8: more than a third faster on Hopper, and less exact.

Numbers are e4m3 (Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv 2209.05433). Each weight matrix has
its own scale, so that its largest weight is the largest e4m3. All hidden states have one constant scale: layer norm
keeps them in a range where e4m3 has all four significant bits. Sums, norms and the residual stream have the precision
of `PackedModel`. `agreement` measures whether a model is exact enough in float8.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stream.models import kernels
from stream.models.kernels import FLOAT8, SCALE
from stream.models.packed import Layer, Linear, PackedModel
from stream.models.windows import Windows

LARGEST = torch.finfo(FLOAT8).max


class Float8Linear(NamedTuple):
    """y = x @ weight.T · scale + bias, x and weight in float8; `scales` are the two factors of scale, on the device."""

    weight: Tensor
    bias: Tensor
    scale: float
    scales: tuple[Tensor, Tensor]


class Float8Model(PackedModel):
    """Runs windows of any lengths without padding, on one device with float8 products."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float16) -> None:
        super().__init__(model, device, dtype)
        self._float8_layers = [
            Layer(
                *(_quantised(layer.qkv), _quantised(layer.attended), layer.attended_norm),
                *(_quantised(layer.up), _quantised(layer.down), layer.down_norm),
            )
            for layer in self._layers
        ]
        self._float8_transform, self._float8_decoder = _quantised(self._transform), _quantised(self._decoder)
        del self._layers, self._transform, self._decoder

    def pool(self, windows: Windows, out: Tensor) -> None:
        """Sets out (texts, V) float32 on the device to the maximum of itself and the logits of each text's windows."""
        ids, places, bounds, owners, window_of, start_of, first_of, last_of = self._moved(windows)
        x = kernels.embed_norm(ids, places, self._words, self._positions, *self._embedded_norm)
        small = (x * SCALE).clamp_(-LARGEST, LARGEST).to(FLOAT8)
        for layer in self._float8_layers:
            qkv = _product(small, layer.qkv, x.dtype)
            attended = kernels.attention(qkv, bounds, window_of, start_of, self._heads, FLOAT8)
            y = _product(attended, layer.attended, x.dtype)
            x = kernels.add_norm(y, self._no_bias, *layer.attended_norm, x, small)
            y = _product(kernels.linear_gelu(small, *layer.up[:3], FLOAT8), layer.down, x.dtype)
            x = kernels.add_norm(y, self._no_bias, *layer.down_norm, x, small)
        x = kernels.linear_gelu(small, *self._float8_transform[:3], x.dtype)
        kernels.add_norm(x, self._no_bias, *self._transform_norm, None, small)
        weight, bias, scale, _ = self._float8_decoder
        kernels.max_logits(small, weight, bias, out, bounds, owners, first_of, last_of, scale)


def _quantised(linear: Linear) -> Float8Linear:
    scale = float(linear.weight.abs().max()) / LARGEST
    device: Any = {"device": linear.weight.device, "dtype": torch.float32}
    scales = torch.tensor(1 / SCALE, **device), torch.tensor(scale, **device)
    return Float8Linear((linear.weight.float() / scale).to(FLOAT8), linear.bias, scale / SCALE, scales)


def _product(x: Tensor, to: Float8Linear, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(x, to.weight.t(), *to.scales, bias=to.bias, out_dtype=dtype)
