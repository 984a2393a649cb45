"""Time, memory and the machine: what the timings and counts of all papers rest on."""

import multiprocessing
import time

import pytest
import torch

from common import machine, meter
from common.allocations import Allocations


def test_median_seconds_orders_the_slow_after_the_fast():
    seconds = meter.median_seconds({"fast": lambda: time.sleep(0.001), "slow": lambda: time.sleep(0.02)}, repeats=3)
    assert 0.001 <= seconds["fast"] < seconds["slow"]


def test_short_calls_are_repeated_within_a_measurement():
    calls = []
    meter.median_seconds({"f": lambda: calls.append(time.sleep(0.001))}, repeats=2, least=0.01)
    assert len(calls) > 6


def _burn(seconds):
    end = time.time() + seconds
    while time.time() < end:
        pass


def test_other_processes_are_seen_and_own_children_are_not_others():
    with meter.others() as cores:
        child = multiprocessing.get_context("spawn").Process(target=_burn, args=(0.2,))
        child.start()
        child.join()
        assert cores() >= 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_allocations_count_what_lives(device):
    x = torch.zeros(100, 10, device=device)
    with Allocations(x) as count:
        assert count.live == 4000
        y = x * 2
        assert count.live == 8000
        view = y.T  # a view has no storage of its own
        assert count.live == 8000
        del y
        assert count.live == 8000, "the view keeps it"
        del view
        assert count.live == 4000 and count.peak == 8000
        count.reset_peak()
        assert count.peak == 4000


def test_allocations_round_up():
    with Allocations(granularity=512) as count:
        kept = torch.zeros(3)
        assert count.live == 512 and kept.numel() == 3


def test_the_machine_is_named():
    found = machine.machine()
    assert found["cpu"] and found["cores"] >= 1 and found["memory_gib"] > 0
    assert machine.versions()["torch"] and set(machine.revision()) == {"commit", "changed"}
