"""A small SPLADE model for development, built from texts in seconds. Its weights are computed, not trained.

A token activates its own term and up to three terms that occur with it unusually often (pointwise mutual information:
Church and Hanks 1990), weighted by inverse document frequency. Attention and feed-forward are zero, so a token's hidden
vector h depends on the token alone. The decoder is then the solution of linear equations: for the row r_v and the bias
b_v of the term v, r_v·h + b_v is the wanted logit for the tokens that activate v and below zero for all others.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.utils import logging

from stream import corpus
from stream.errors import ConfigurationError

VOCABULARY = 8_000
HIDDEN = 256
MAX_TOKENS = 512
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

LIGHTEST, HEAVIEST = 0.3, 2.5  # weight of a term that is in every text, and of one that is in a single text
ASSOCIATES = 3  # associated terms that a token activates at most
ASSOCIATE_WEIGHT = 0.4  # of the token's own weight
MIN_TOGETHER = 5  # texts that hold both terms: with fewer the association may be chance
MAX_SHARE = 0.1  # of the texts: a term in more of them occurs with every other term
MARGIN = 0.1  # logits of other tokens are this far below zero, so that rounding to half precision keeps them below

DIGEST = "texts.sha256"
README = """\
# A development model, not a trained one

Built by `stream.local.splade_model` from the texts of the demo, so that the sparse stage runs without a download and
without a GPU. It is used like SPLADE (BertForMaskedLM, log(1 + ReLU(logit)), max over tokens) but has learned nothing:
a word activates itself and a few words that occur in the same texts. Do not judge relevance by it.
"""


def build(texts: Iterable[str], path: Path) -> Path:
    """Builds the model into the folder `path`, for `AutoModelForMaskedLM` and `AutoTokenizer`; returns `path`.

    The same texts give the same bytes. A folder that already holds their model is not changed; a folder with the model
    of other texts is replaced. Raises `ConfigurationError` if there are no texts, or if the folder holds anything else.
    """
    texts = list(texts)
    if not texts:
        raise ConfigurationError("there are no texts to build a SPLADE model from; pass at least one")
    digest = _digest(texts)
    if path.exists():
        if not (path / DIGEST).is_file():
            raise ConfigurationError(f"{path} exists and is not a development model; remove it or name another folder")
        if (path / DIGEST).read_text() == digest:
            return path
    logging.disable_progress_bar()
    tokenizer = _tokenizer(texts)
    model = _trunk(len(tokenizer))
    _solve_decoder(model, *_activations(tokenizer, texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        new = Path(scratch, "new")
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / "README.md").write_text(README)
        (new / DIGEST).write_text(digest)
        (new / "model.safetensors").chmod(
            (new / DIGEST).stat().st_mode
        )  # safetensors makes the file readable by its owner only
        if path.exists():
            path.rename(Path(scratch, "old"))
        new.rename(path)
    return path


def _digest(texts: Sequence[str]) -> str:
    """A digest of the texts and of this module, because other code builds another model."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _tokenizer(texts: Sequence[str]) -> Any:
    """BERT's tokenizer with lower case and a vocabulary from the texts."""
    backend = BertTokenizer().backend_tokenizer
    # The pieces "##x" are passed explicitly: the trainer would number them in hash order, which differs in each run.
    pieces = {f"##{c}" for text in texts for c in backend.normalizer.normalize_str(text) if not c.isspace()}
    trainer = WordPieceTrainer(
        vocab_size=VOCABULARY, min_frequency=2, special_tokens=SPECIAL + sorted(pieces), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=backend.get_vocab(with_added_tokens=True), model_max_length=MAX_TOKENS)


def _trunk(vocabulary: int) -> Any:
    """A BERT of one layer whose hidden vectors depend on the token alone. Its decoder is all zero."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=HIDDEN // 64,
        intermediate_size=HIDDEN,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=False,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        model.bert.embeddings.word_embeddings.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.cls.predictions.transform.dense.weight.copy_(torch.eye(HIDDEN))
    return model


def _activations(tokenizer: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that activate each term (-1 for none) and the logits they give it, both (V, 1 + ASSOCIATES)."""
    terms = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    documents = [sorted(set(ids)) for ids in encoded["input_ids"]]
    frequency = torch.bincount(torch.tensor([i for ids in documents for i in ids]), minlength=len(terms))
    rarity = torch.log(len(texts) / frequency.clamp(min=1)) / max(math.log(len(texts)), 1)
    weight = LIGHTEST + (HEAVIEST - LIGHTEST) * rarity

    sources = torch.full((len(terms), 1 + ASSOCIATES), -1)
    weights = torch.zeros(sources.shape)
    activated = [i for i, term in enumerate(terms) if term not in SPECIAL and any(map(str.isalnum, term))]
    sources[activated, 0] = torch.tensor(activated)
    weights[activated, 0] = weight[activated]
    words = [i for i in activated if terms[i].isalpha() and len(terms[i]) > 2]
    common = [i for i in words if MIN_TOGETHER <= frequency[i] <= MAX_SHARE * len(texts)]
    degree = [0] * len(terms)
    for first, second in _associated(documents, common, frequency):
        if max(degree[first], degree[second]) < ASSOCIATES:
            for token, term in ((first, second), (second, first)):
                degree[term] += 1
                sources[term, degree[term]] = token
                weights[term, degree[term]] = ASSOCIATE_WEIGHT * weight[token]
    return sources, torch.expm1(weights)


def _associated(
    documents: Sequence[Sequence[int]], words: Sequence[int], frequency: torch.Tensor
) -> list[tuple[int, int]]:
    """Pairs of words that occur together in at least `MIN_TOGETHER` texts and have a PMI above 0, highest PMI first."""
    column = {word: i for i, word in enumerate(words)}
    occurs = torch.zeros(len(documents), len(words))
    for row, ids in enumerate(documents):
        occurs[row, [column[i] for i in ids if i in column]] = 1
    together = torch.triu(occurs.T @ occurs, diagonal=1)
    first, second = torch.nonzero(together >= MIN_TOGETHER, as_tuple=True)
    word_ids = torch.tensor(words, dtype=torch.long)
    apart = frequency[word_ids[first]] * frequency[word_ids[second]] / len(documents)
    pmi = torch.log(together[first, second] / apart)
    order = torch.argsort(pmi, descending=True, stable=True)
    order = order[pmi[order] > 0]
    return list(zip(word_ids[first[order]].tolist(), word_ids[second[order]].tolist(), strict=True))


@torch.no_grad()
def _solve_decoder(model: Any, sources: torch.Tensor, logits: torch.Tensor) -> None:
    """Sets the decoder so that each term gets its logits from its sources and no other token activates it.

    With the hidden vectors S of a term's sources and their logits t, the row of least norm that gives t - b is
    Sᵀ(SSᵀ)⁻¹(t - b). It is linear in the bias b, so a closed form gives the b for which the highest logit of the other
    tokens is -MARGIN.
    """
    predictions = model.cls.predictions
    hidden = predictions.transform(model.bert(torch.arange(len(sources))[:, None]).last_hidden_state)[:, 0]
    used = sources >= 0
    bases = hidden[sources] * used[..., None]
    gram = bases @ bases.mT + torch.diag_embed((~used).float())
    combination = torch.linalg.solve(gram, torch.stack([logits, used.float()], dim=-1))
    for_logits, for_bias = torch.einsum("vsk,vsh->kvh", combination, bases)

    for start in range(0, len(sources), 1024):
        rows = slice(start, start + 1024)
        noise, slope = for_logits[rows] @ hidden.T, for_bias[rows] @ hidden.T
        term, slot = used[rows].nonzero(as_tuple=True)
        own = term, sources[rows][term, slot]
        noise[own], slope[own] = 0, 0
        assert slope.max() < 1  # four of 8,000 random vectors in 256 dimensions are nearly orthogonal to the others
        depth = ((noise + MARGIN) / (1 - slope)).amax(1)
        predictions.decoder.weight[rows] = for_logits[rows] + depth[:, None] * for_bias[rows]
        predictions.bias[rows] = -depth
    predictions.decoder.bias.copy_(predictions.bias)


def main(folder: Annotated[Path, typer.Argument(help="The folder of the model.")]) -> None:
    """Builds the demo's model if the folder does not hold it."""
    build((chunk["text"] for chunk in corpus.chunks()), folder)


if __name__ == "__main__":
    typer.run(main)
