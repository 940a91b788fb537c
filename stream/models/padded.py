"""Any masked language model of `transformers`, on padded batches: correct everywhere, and slower."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stream import progress
from stream.models.windows import Windows

# Tokens of one forward pass, padding included. They bound the logits, the largest tensor. On two cores, passes of 512
# tokens are three times as fast as passes of 16,384, because their logits stay in the cache.
TOKENS = {"cpu": 512, "cuda": 16_384}
# Length of a batch's shortest text to its longest. Padding costs a CPU as much as text; a GPU prefers large batches.
SHORTEST = {"cpu": 0.8, "cuda": 0.0}


class PaddedModel:
    """Runs windows in batches of similar length, on one device."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._model = model.to(device, dtype)
        self._device = device

    def pool(self, windows: Windows, out: Tensor) -> None:
        """Sets out (texts, V) float32 on the device to the maximum of itself and the logits of each text's windows."""
        kind = self._device.type
        for batch in batches_by_length(windows.lengths, TOKENS[kind], SHORTEST[kind]):
            ids = torch.zeros(len(batch), int(windows.lengths[batch].max()), dtype=torch.int64)
            real = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                window = windows.ids[windows.bounds[i] : windows.bounds[i + 1]]
                ids[row, : len(window)] = torch.from_numpy(window)
                real[row, : len(window)] = 1
            ids, real = ids.to(self._device), real.to(self._device)
            logits: Tensor = self._model(input_ids=ids, attention_mask=real).logits
            # The logits of padding become 0, which is the minimum of `out`: only positive logits count.
            largest = logits.mul_(real[..., None]).amax(1).float()
            owners = torch.from_numpy(windows.owners[batch]).to(self._device, torch.int64)
            out.scatter_reduce_(0, owners[:, None].expand_as(largest), largest, "amax")
            progress.made()


def batches_by_length(lengths: Any, budget: int, shortest: float) -> list[list[int]]:
    """Indices in batches of similar length, each at most `budget` tokens when padded to its longest.

    None in a batch is shorter than `shortest` times its longest.
    """
    batches: list[list[int]] = []
    longest = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        if not batches or (len(batches[-1]) + 1) * longest > budget or lengths[i] < shortest * longest:
            batches.append([])
            longest = lengths[i]
        batches[-1].append(i)
    return batches
