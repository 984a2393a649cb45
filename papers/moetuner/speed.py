"""Claims about time."""

from __future__ import annotations

import numpy as np

from common.distributed import Ranks
from common.ledger import Value
from common.meter import median_seconds
from common.runner import Run
from papers.moetuner import checks, ilp, search_torch, served
from papers.moetuner.config import Config
from papers.moetuner.evaluate import cluster
from papers.moetuner.placement import Placement
from papers.moetuner.profile import Trace, profile
from papers.moetuner.setting import GPUS, MODEL, Setting
from papers.moetuner.traffic import Flow

GAP = 0.025
"""Where the paper ends the search of the second program."""

LINK = 0.9 * 1e9 / 8
"""Bytes a second of the emulated link: 1 Gb Ethernet, of which nine tenths are usable."""

MOVES = 6
"""Swaps of each start that the search is timed with; a plain loop takes seconds for them."""


def solving(trace: Trace, config: Config, run: Run) -> dict[str, Value]:
    """Seconds of both programs for all layers, and of the second in pieces."""
    profiled, bandwidth = profile(trace), cluster(1, GPUS).bandwidth
    values: dict[str, Value] = {}
    with run.timing():
        groups = ilp.group(profiled.load, GPUS, equal=True)
        exchange = ilp.exchanged(profiled, groups.place, GPUS)
        if run.wants("by_layers"):
            pieces = [ilp.assign_by_layers(exchange, cluster(nodes, GPUS).bandwidth) for nodes in (1, 2)]
            values["by_layers"] = {"seconds": max(each.seconds for each in pieces), "gap": max(each.gap for each in pieces)}
        if run.wants("solve_time"):
            model = ilp.assignment_model(exchange, bandwidth)
            whole = model.solve(gap=GAP, time_limit=config.limit)
            found = bool(whole.values)
            values["solve_time"] = {
                "ILP 1": groups.seconds,
                "ILP 2 to gap 0.025": whole.seconds,
                "gap reached": whole.gap if found else 1.0,
            }
            run.keep("second program in one piece", {"said": str(whole), "bound": whole.bound, "best": whole.objective})
    return values


def searching(config: Config, run: Run, rng: np.random.Generator) -> float:
    """Times as fast as the same moves in a loop, all starts."""
    load = rng.zipf(1.5, config.crowd).clip(max=1000) * 10 + rng.integers(0, 10, config.crowd)
    begin = search_torch.starts(config.starts, config.crowd, GPUS, rng)
    fast = search_torch.group if config.vectorised else checks.python_group
    ways = {
        "one shot": lambda: fast(load, begin, GPUS, MOVES),
        "loop": lambda: checks.python_group(load, begin, GPUS, MOVES),
    }
    assert np.array_equal(ways["one shot"](), ways["loop"]()), "the loop makes other moves"
    with run.timing():
        seconds = median_seconds(ways, repeats=3)
    return seconds["loop"] / seconds["one shot"]


def stepping(config: Config, run: Run, here: Setting, before: Placement, after: Placement, ranks: Ranks) -> dict[str, float]:
    """Times as fast as contiguous placement: the exchanges over the emulated link, and the mixtures with them."""
    text = here.held_text[: max(config.served // 3, GPUS)]
    taken: dict[str, list[tuple[float, float]]] = {"before": [], "after": []}
    with run.timing():
        for number in range(config.steps + 1):
            for name, each in (("before", before), ("after", after)):
                seconds = served.times(ranks, MODEL, text, each, Flow.follow, LINK)
                if number:  # the first of each warms up
                    taken[name].append(seconds)
    one, other = (np.median(taken[name], axis=0) for name in ("before", "after"))
    return {"exchanges": float(one[0] / other[0]), "whole mixtures": float(one[1] / other[1])}
