"""A BERT-like masked language model on packed tokens; it finds each term's largest logit without storing the logits.

BERT (Devlin et al. 2018, arXiv 1810.04805) and DistilBERT (Sanh et al. 2019, arXiv 1910.01108) with the weights
as `transformers` stores them. PyTorch computes most matrix products; `kernels` has the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from stream.models import kernels
from stream.models.windows import Windows

ACTIVATIONS = {"gelu", "gelu_new", "gelu_pytorch_tanh"}
HEAD_SIZES = {16, 32, 64, 128}
ALIGNMENT = kernels.TOKENS


class Unsupported(Exception):
    """The model's architecture is not supported."""


class Linear(NamedTuple):
    """y = x @ weight.T + bias."""

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """Layer norm."""

    scale: Tensor
    shift: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: attention, then two products; both halves add their input (residual) and end with a layer norm."""

    qkv: Linear
    attended: Linear
    attended_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


class PackedModel:
    """Runs windows of any lengths without padding, on one device. Raises `Unsupported` for other architectures."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float16) -> None:
        config: Any = model.config
        read = ARCHITECTURES.get(config.model_type)
        self._heads: int = config.num_attention_heads
        activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
        if (
            read is None
            or activation not in ACTIVATIONS
            or config.hidden_size // self._heads not in HEAD_SIZES
            or config.hidden_size % 8
            or getattr(config, "position_embedding_type", None) not in (None, "absolute")
        ):
            raise Unsupported(config.model_type)
        self._device, self._dtype = device, dtype
        read(self, model)

    def pool(self, windows: Windows, out: Tensor) -> None:
        """Sets out (texts, V) float32 on the device to the maximum of itself and the logits of each text's windows."""
        ids, places, bounds, owners, window_of, start_of, first_of, last_of = self._moved(windows)
        x = kernels.embed_norm(ids, places, self._words, self._positions, *self._embedded_norm)
        for layer in self._layers:
            attended = kernels.attention(linear(x, *layer.qkv), bounds, window_of, start_of, self._heads)
            x.addmm_(attended, layer.attended.weight.t())
            x = kernels.add_norm(x, layer.attended.bias, *layer.attended_norm)
            x.addmm_(_gelu_linear(x, layer.up), layer.down.weight.t())
            x = kernels.add_norm(x, layer.down.bias, *layer.down_norm)
        x = kernels.add_norm(_gelu_linear(x, self._transform), self._no_bias, *self._transform_norm)
        kernels.max_logits(x, *self._decoder, out, bounds, owners, first_of, last_of)

    def _moved(self, windows: Windows) -> list[Tensor]:
        """Tokens and index tables, moved to the device in one transfer.

        Tokens are padded once to a whole number of the products' tiles: a partial tile costs as much, and whole tiles
        are faster. The padding is a separate window, so that its numbers are finite; the head skips it.
        """
        end = windows.bounds[-1]
        filling = np.zeros(-end % ALIGNMENT, np.int32)
        bounds = np.append(windows.bounds, end + len(filling))
        tiles = -(-np.diff(bounds) // kernels.QUERIES)
        window_of = np.repeat(np.arange(len(tiles)), tiles)
        within = np.arange(len(window_of)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        starts = np.arange(0, end, kernels.TOKENS)
        ends = np.minimum(starts + kernels.TOKENS, end) - 1
        parts = [
            np.concatenate([windows.ids, filling]),
            np.concatenate([np.arange(end) - np.repeat(windows.bounds[:-1], windows.lengths), filling]),
            bounds,
            windows.owners,
            window_of,
            bounds[window_of] + within * kernels.QUERIES,
            np.searchsorted(windows.bounds, starts, side="right") - 1,
            np.searchsorted(windows.bounds, ends, side="right") - 1,
        ]
        table = torch.from_numpy(np.concatenate(parts).astype(np.int32))
        if self._device.type == "cuda":
            table = table.pin_memory()
        moved = table.to(self._device, non_blocking=True)
        return list(torch.split(moved, [len(part) for part in parts]))

    # Weights

    def _keep(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self._device, self._dtype).contiguous()

    def _linear(self, *modules: nn.Linear) -> Linear:
        """Several products with the same input, as one."""
        weights, biases = zip(*((module.weight, module.bias) for module in modules), strict=True)
        return Linear(self._keep(torch.cat(weights)), self._keep(torch.cat(biases)))

    def _qkv(self, query: nn.Linear, key: nn.Linear, value: nn.Linear) -> Linear:
        """One product for all three; queries are scaled as `kernels.attention` expects."""
        scale = math.log2(math.e) / math.sqrt(query.out_features / self._heads)
        weight = torch.cat([query.weight * scale, key.weight, value.weight])
        return Linear(self._keep(weight), self._keep(torch.cat([query.bias * scale, key.bias, value.bias])))

    def _norm(self, module: nn.LayerNorm) -> Norm:
        return Norm(self._keep(module.weight), self._keep(module.bias), module.eps)

    def _read_head(self, transform: nn.Linear, norm: nn.LayerNorm, decoder: nn.Linear) -> None:
        self._transform, self._transform_norm = self._linear(transform), self._norm(norm)
        self._no_bias = torch.zeros_like(self._transform_norm.shift)
        self._decoder = Linear(self._keep(decoder.weight), decoder.bias.detach().to(self._device, torch.float32))

    def _read_bert(self, model: Any) -> None:
        embeddings, head = model.bert.embeddings, model.cls.predictions
        self._words = self._keep(embeddings.word_embeddings.weight)
        self._positions = self._keep(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])
        self._embedded_norm = self._norm(embeddings.LayerNorm)
        self._layers = [
            Layer(
                self._qkv(layer.attention.self.query, layer.attention.self.key, layer.attention.self.value),
                self._linear(layer.attention.output.dense),
                self._norm(layer.attention.output.LayerNorm),
                self._linear(layer.intermediate.dense),
                self._linear(layer.output.dense),
                self._norm(layer.output.LayerNorm),
            )
            for layer in model.bert.encoder.layer
        ]
        self._read_head(head.transform.dense, head.transform.LayerNorm, head.decoder)

    def _read_distilbert(self, model: Any) -> None:
        embeddings = model.distilbert.embeddings
        self._words = self._keep(embeddings.word_embeddings.weight)
        self._positions = self._keep(embeddings.position_embeddings.weight)
        self._embedded_norm = self._norm(embeddings.LayerNorm)
        self._layers = [
            Layer(
                self._qkv(layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin),
                self._linear(layer.attention.out_lin),
                self._norm(layer.sa_layer_norm),
                self._linear(layer.ffn.lin1),
                self._linear(layer.ffn.lin2),
                self._norm(layer.output_layer_norm),
            )
            for layer in model.distilbert.transformer.layer
        ]
        self._read_head(model.vocab_transform, model.vocab_layer_norm, model.vocab_projector)


ARCHITECTURES: dict[str, Callable[[PackedModel, Any], None]] = {
    "bert": PackedModel._read_bert,
    "distilbert": PackedModel._read_distilbert,
}


def _gelu_linear(x: Tensor, to: Linear) -> Tensor:
    # The product's epilogue computes GELU: cuBLAS has the tanh approximation. It differs by 5e-4 from GELU with erf,
    # which is less than float16's rounding error of larger numbers.
    return torch._addmm_activation(to.bias, x, to.weight.t(), use_gelu=True)
