"""Statistics of a few measured values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_interval(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """Mean of independent values and the ends of its confidence interval by Student's t.

    mean +- t((1 + level) / 2; n - 1) s / sqrt(n), s the standard deviation of the sample.

    Args:
        values: one or more.
        level: share of such intervals that hold the true mean.

    Returns:
        ``mean``, ``low`` and ``high``; of a single value ``mean`` alone, so that no bar on an end is met.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    if not len(values) or not 0 < level < 1:
        raise ValueError(f"{len(values)} values at level {level}; wanted one value or more, and a level between 0 and 1")
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean}
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}
