import operator
import os

import numpy as np
import pytest

from common.processes import dealt


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(processes):
    jobs = [(np.full(300_000, i, np.float32), 2) for i in range(5)]
    for i, found in enumerate(dealt(operator.mul, jobs, processes)):
        assert found.shape == (300_000,) and found[0] == 2 * i


def test_what_a_job_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(dealt(operator.truediv, [(1, 1), (1, 0)], 2))


def test_other_processes_work():
    assert os.getpid() not in set(dealt(os.getpid, [(), ()], 2))
    assert list(dealt(os.getpid, [(), ()], 1)) == [os.getpid()] * 2
