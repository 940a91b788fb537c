"""If these fail, `PackedModel` finds other terms than the model. The kernels run in Triton's interpreter here."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from stream.models.packed import PackedModel, Unsupported
from stream.models.padded import PaddedModel
from stream.models.windows import Windows

CPU = torch.device("cpu")
TERMS = 101


def bert(**more):
    config = BertConfig(
        vocab_size=TERMS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        initializer_range=0.5, **more,
    )  # fmt: skip
    return randomised(BertForMaskedLM(config))


def distilbert(**more):
    config = DistilBertConfig(
        vocab_size=TERMS, dim=32, n_layers=2, n_heads=2, hidden_dim=64, initializer_range=0.5, **more
    )
    return randomised(DistilBertForMaskedLM(config))


def randomised(model):
    """Random biases and norms, so that an error in them changes the result."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def windows(lengths, owners=None):
    bounds = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=bounds[1:])
    ids = np.random.default_rng(0).integers(0, TERMS, bounds[-1]).astype(np.int32)
    return Windows(ids, bounds, np.array(range(len(lengths)) if owners is None else owners, np.int32))


def pooled(model, of):
    out = torch.zeros(of.texts, TERMS, device=CPU)
    with torch.inference_mode():
        model.pool(of, out)
    return out


@pytest.mark.parametrize(
    ("make", "lengths", "owners"),
    [
        (bert, [1], None),
        (bert, [300], None),  # the last tile of tokens is partial and belongs to one window
        (bert, [1, 3, 63, 64, 65, 2, 127, 128, 129], None),
        (bert, [40, 40, 9, 70], [0, 0, 1, 1]),
        (distilbert, [40, 40, 9, 70], [0, 0, 1, 1]),  # the same layers; their weights have other names
    ],
)
def test_the_largest_logits_are_those_of_transformers(make, lengths, owners):
    of = windows(lengths, owners)
    model = make()
    expected = pooled(PaddedModel(model, CPU), of)
    found = pooled(PackedModel(model, CPU, torch.float32), of)
    assert expected.max() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_logits_below_zero_leave_nothing_and_what_was_found_before_stays():
    model = bert()
    model.cls.predictions.decoder.bias.data -= 1000
    packed = PackedModel(model, CPU, torch.float32)
    of = windows([5, 70])
    assert pooled(packed, of).count_nonzero() == 0
    out = torch.full((2, TERMS), 7.0, device=CPU)
    packed.pool(of, out)
    assert (out == 7).all()


def test_no_term_s_largest_logit_is_its_bias_where_no_token_reaches_it():
    """Rows after the last token are zero; if they counted, their logit would be the bias."""
    model = bert()
    model.cls.predictions.decoder.bias.data.fill_(1)
    of = windows([300])
    found = pooled(PackedModel(model, CPU, torch.float32), of)
    torch.testing.assert_close(found, pooled(PaddedModel(model, CPU), of), atol=1e-3, rtol=0)
    assert found.min() < 1


@pytest.mark.parametrize(
    "model",
    [
        RobertaForMaskedLM(RobertaConfig(vocab_size=TERMS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)),
        bert(hidden_act="relu"),
    ],
    ids=["another architecture", "another activation"],
)
def test_a_model_that_the_kernels_are_not_made_for_is_refused(model):
    with pytest.raises(Unsupported):
        PackedModel(model, CPU)
