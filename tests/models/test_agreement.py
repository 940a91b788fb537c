"""If these fail, the benchmark says that two models agree although they find other terms."""

import pytest
import torch

from stream.models.agreement import Agreement, agreement


def test_agreement_counts_terms_that_are_kept_and_looks_at_all_weights():
    exact = torch.tensor([[3.0, 2.0, 1.0, 0.01, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert agreement(exact, exact, threshold=0.05, top_k=4) == Agreement(pytest.approx(1), 1, 0)
    found = torch.tensor([[3.0, 2.0, 0.02, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    other = agreement(found, exact, threshold=0.05, top_k=4)
    assert other.overlap == pytest.approx((2 / 3 + 1) / 2)
    assert other.logit_error == pytest.approx(0.99)
    assert other.cosine < 1


def test_a_text_that_gains_its_first_term_does_not_agree():
    none, one = torch.zeros(1, 5), torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0]])
    assert agreement(one, none, threshold=0.05, top_k=4).overlap == 0
