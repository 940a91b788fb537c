"""A trained sentence model on the CPU: all-MiniLM-L6-v2.

The vector of a text is the mean of the last hidden states over its tokens, L2-normalised (Reimers and Gurevych 2019,
"Sentence-BERT", arXiv 1908.10084; the pooling is that of the model's own configuration).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import AutoModel
from transformers.utils import logging

from stream.models.padded import SHORTEST, TOKENS, batches_by_length
from stream.vectors import Vector

MAX_MODEL_LEN = 256  # the model's max_seq_length, special tokens included


class SentenceModel:
    """all-MiniLM-L6-v2 as a model of the embedding server."""

    owner = "stream.local.sentences: all-MiniLM-L6-v2 on the CPU"
    max_model_len = MAX_MODEL_LEN

    def __init__(self, folder: Path) -> None:
        logging.disable_progress_bar()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, special tokens included."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def truncated(self, text: str, limit: int) -> str:
        """The beginning of the text that has at most `limit` tokens, special tokens included."""
        special = self._tokenizer.num_special_tokens_to_add(False)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) + special <= limit:
            return text
        return text[: encoding.offsets[limit - special - 1][1]] if limit > special else ""

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors (384,) of the texts. Texts of similar length share a forward pass."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        vectors = np.empty((len(texts), self._model.config.hidden_size), np.float32)
        lengths = np.array([len(encoding.ids) for encoding in encodings])
        for batch in batches_by_length(lengths, TOKENS["cpu"], SHORTEST["cpu"]):
            rows = [torch.tensor(encodings[i].ids) for i in batch]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            hidden = self._model(input_ids=ids, attention_mask=real).last_hidden_state
            mean = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
            vectors[batch] = normalize(mean).numpy()
        return list(vectors)
