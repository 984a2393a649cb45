"""What else can be done: other machines, more of them, other models; and which compressions make a million tokens cheap."""

from __future__ import annotations

import dataclasses
import itertools

from common.hardware import device
from papers.long_context_peak import analysis, published
from papers.long_context_peak.analysis import Lever, Machine, Model


def combinations(target: int | float) -> list[tuple[tuple[str, ...], float]]:
    """The sets of published ideas, one for an axis at most, that shrink the cache at least ``target`` times and would not
    without any one of them; with the factor, smallest sets first."""
    by_axis = {axis: [name for name, idea in published.IDEAS.items() if idea.axis == axis] for axis in Lever._fields}
    found = []
    for chosen in itertools.product(*([None, *names] for names in by_axis.values())):
        names = tuple(name for name in chosen if name)
        times = 1.0
        for name in names:
            times /= published.IDEAS[name].factor
        spare = all(times * published.IDEAS[name].factor < target for name in names)
        # Factors such as 1/20 are rounded; a product that is exactly the target reaches it.
        if times >= target * (1 - 1e-12) and spare:
            found.append((names, times))
    return sorted(found, key=lambda each: (len(each[0]), each[1]))


def sheet(entry: published.Sheet) -> Machine:
    return Machine(entry.compute, entry.bandwidth, float(entry.memory), entry.link)


def settings() -> dict[str, tuple[Model, Machine, Lever]]:
    """The running example, and each change to it by itself."""
    base, machine, none = analysis.model(published.YI_34B), analysis.paper_machine(), Lever()
    changed = {
        name: analysis.model(dataclasses.replace(published.YI_34B, **change))
        for name, change in {
            "every head its own cache (MHA)": {"kv_heads": published.YI_34B.heads},
            "one cache for all heads (MQA)": {"kv_heads": 1},
            "upcycled to 8 experts, 2 active": {"experts": 8, "active": 2},
        }.items()
    }
    four = analysis.parallel(machine, 4)
    return {
        "A100, the paper's": (base, machine, none),
        "4 x A100": (base, four, none),
        "H100": (base, analysis.machine(device("h100_sxm")), none),
        "MI300X": (base, sheet(published.MI300X), none),
        "every head its own cache (MHA), 4 x A100": (changed["every head its own cache (MHA)"], four, none),
        "one cache for all heads (MQA)": (changed["one cache for all heads (MQA)"], machine, none),
        "upcycled to 8 experts, 2 active, 8 x A100": (
            changed["upcycled to 8 experts, 2 active"], analysis.parallel(machine, 8), none
        ),
        "windows of 4K in 3 of 4 layers": (
            base, machine, Lever(layers=analysis.windowed(published.LONG, 0.25, published.SHORT))
        ),
        "4 bits": (base, machine, Lever(hidden=0.25)),
    }  # fmt: skip


def table(tokens: int | float = published.LONG) -> dict[str, dict[str, float]]:
    """The four quantities of each setting: users, and seconds of prefill, of an answer and of a switch."""
    rows = {}
    for name, (model, machine, lever) in settings().items():
        rows[name] = {
            "users": analysis.users(model, machine, tokens, lever),
            "prefill": analysis.prefill_seconds(model, machine, tokens, 0.0, lever),
            "answer": analysis.decode_seconds(model, machine, tokens, published.ANSWER, lever),
            "switch": analysis.switch_seconds(model, machine, tokens, tokens, lever),
        }
    return rows
