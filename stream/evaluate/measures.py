"""The measures of a ranking, and how certain they are. Pure functions; `ir-measures` is an optional dependency."""

from importlib import import_module

import numpy as np
import numpy.typing as npt

from stream.errors import ConfigurationError
from stream.evaluate.collection import Qrels
from stream.evaluate.runs import Run

MEASURES = ("nDCG@10", "RR@10", "AP", "R@100")
RESAMPLES = 10_000
AT_ONCE = 100  # resamples in memory
SEED = 1
CONFIDENCE = 0.95

Values = npt.NDArray[np.float64]  # (queries,)


def require(*modules: str) -> None:
    """Raises `ConfigurationError` if one of these packages is not installed."""
    try:
        for name in modules:
            import_module(name)
    except ImportError:
        raise ConfigurationError("`stream eval` needs more packages: pip install 'chunk-stream[eval]'") from None


def measure(qrels: Qrels, run: Run) -> dict[str, Values]:
    """Each measure's values, in the order of the queries of `qrels`; a query without hits has 0.

    A chunk is relevant from grade 1. nDCG's gain is the grade and its discount log2(rank + 1), as in trec_eval.
    """
    import ir_measures  # noqa: PLC0415

    asked = [ir_measures.parse_measure(name) for name in MEASURES]
    found = {(str(one.measure), one.query_id): one.value for one in ir_measures.iter_calc(asked, qrels, run)}
    return {name: np.array([found.get((name, query), 0.0) for query in qrels]) for name in MEASURES}


def interval(values: Values) -> tuple[float, float]:
    """The 95 % confidence interval of the mean: the percentile bootstrap over queries (Efron 1979), with a fixed seed.

    The resamples of two calls with the same number of queries are the same.
    """
    random, n = np.random.default_rng(SEED), len(values)
    means = [values[random.integers(n, size=(AT_ONCE, n))].mean(axis=1) for _ in range(RESAMPLES // AT_ONCE)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def p_value(values: Values, others: Values) -> float:
    """The two-sided p of the difference of two means over the same queries: a paired randomisation test.

    If the two rankers were alike, the sign of each query's difference would be arbitrary. p is the share of random
    signs whose mean difference is at least as large as the real one. The real one counts as one of them, so p is never
    0. Source: Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval
    Evaluation", CIKM 2007.
    """
    random, differences = np.random.default_rng(SEED), values - others
    real = abs(differences.sum()) - 1e-9  # sums of the same numbers differ in their last digits
    at_least = 1
    for _ in range(RESAMPLES // AT_ONCE):
        signs = random.choice([-1.0, 1.0], size=(AT_ONCE, len(differences)))
        at_least += int(np.count_nonzero(abs(signs @ differences) >= real))
    return at_least / (RESAMPLES + 1)
