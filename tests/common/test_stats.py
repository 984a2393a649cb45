"""Intervals, against SciPy's own and against how often they hold the mean."""

import numpy as np
import pytest
from scipy import stats

from common.stats import mean_interval


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_interval_is_students(level):
    values = [1.0, 2.0, 4.0, 1.5]
    low, high = stats.t.interval(level, 3, np.mean(values), stats.sem(values))
    assert mean_interval(values, level) == pytest.approx({"mean": 2.125, "low": low, "high": high})


def test_intervals_hold_the_mean_as_often_as_they_say():
    rows = np.random.default_rng(0).normal(3, 2, (2000, 4)).tolist()
    held = [found["low"] < 3 < found["high"] for found in map(mean_interval, rows)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_a_single_value_has_no_interval():
    assert mean_interval([2.0]) == {"mean": 2.0}


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1.0, 2.0], 1.0), ([1.0, 2.0], 0.0)])
def test_what_has_no_interval_is_refused(values, level):
    with pytest.raises(ValueError, match="wanted one value or more"):
        mean_interval(values, level)
