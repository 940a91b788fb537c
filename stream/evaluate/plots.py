"""The plot of an evaluation."""

from pathlib import Path

import numpy as np

from stream.errors import ConfigurationError
from stream.evaluate.evaluation import Report
from stream.evaluate.measures import MEASURES


def draw(report: Report, path: Path) -> None:
    """Plots the measures of each mode with their confidence intervals."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    drawn = Figure(figsize=(8, 4), layout="constrained")
    axes = drawn.subplots()
    places, width = np.arange(len(MEASURES)), 0.8 / len(report.rows)
    for n, row in enumerate(report.rows):
        figures = [row.figures[name] for name in MEASURES]
        means, lows, highs = np.array([(f.mean, f.low, f.high) for f in figures]).T
        errors = np.abs([means - lows, highs - means])  # rounding may make one negative
        axes.bar(places + n * width, means, width, yerr=errors, capsize=2, label=row.label)
    axes.set_xticks(places + 0.4 - width / 2, MEASURES)
    axes.set(ylim=(0, 1), ylabel="mean, 95 % confidence interval", title=f"{report.name}, {report.queries:,} queries")
    axes.legend()
    try:
        drawn.savefig(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
