"""Measure the claims of ZeRO-Infinity: ``python -m papers.zero_infinity.reproduce preset=smoke``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from common import UserError
from common.command_line import main
from common.distributed import Crew
from common.ledger import NotRun, Value
from common.runner import Run
from papers.zero_infinity import bandwidth, capacity, memory, pipeline_sim, published
from papers.zero_infinity.capacity import Tier
from papers.zero_infinity.config import Config

TIB, GIB = 2**40, 2**30


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.model:
        run.require_gpu(f"training the model of {config.model} parameters")
        raise UserError(
            f"the engine has been run on CPU ranks alone and does not train {config.model} on GPUs; take preset=laptop"
        )
    values: dict[str, Value] = {}
    with Crew(timeout=600.0) as crew:
        # (claims, module, function of config and run); a run of a few claims imports what they need.
        for names, module, function in (
            (("equal",), "exact", "equal"),
            (("larger",), "exact", "larger"),
            (("trains",), "exact", "trains"),
            (("resident",), "exact", "resident"),
            (("twin",), "exact", "twin"),
            (("passes", "record"), "exact", "counted"),
            (("states_counted",), "exact", "states_of_table"),
            (("link_bytes", "link_speed"), "links", "bandwidth"),
            (("tiling", "tiling_largest"), "fragments", "predicted"),
            (("tiling_here",), "fragments", "measured"),
            (("overlap",), "swap", "pipeline"),
            (("tiled_time",), "swap", "tiled"),
            ((), "swap", "file_tier"),
        ):
            if run.wants(*names) or (not names and run.only is None):
                part = import_module(f"papers.zero_infinity.{module}")
                ranks = (crew,) if function in ("equal", "larger", "trains") else ()
                values |= getattr(part, function)(config, run, *ranks)
    values |= tables() | speeds() | capacities(config) | scaling(config, run)
    run.figure("tiers", draw_tiers)
    run.figure("efficiency", draw_efficiency)
    run.figure("prefetch", draw_prefetch)
    values["wall_clock"] = NotRun("needs 512 V100 of 32 DGX-2 nodes")
    return values


def tables() -> dict[str, Value]:
    """The memory table (Fig. 2a), rounded as it is printed: TiB for a node, GiB for a GPU."""
    p = published
    states, whole, saved, largest, between = {}, {}, {}, {}, {}
    for name, (layers, hidden, heads) in p.TABLE.items():
        states[name] = memory.model_states(layers, hidden) / TIB
        whole[name] = memory.activations(layers, hidden, heads, p.BATCH_NODE, p.SEQ) / TIB
        saved[name] = memory.checkpoints(layers, hidden, p.BATCH_NODE, p.SEQ, p.CI) / TIB
        largest[name] = memory.state_working(hidden) / GIB
        between[name] = memory.activation_working(hidden, heads, p.BATCH_GPU, p.SEQ, p.CI) / GIB
    first, *others = largest
    return {
        "states": states,
        "activations": whole,
        "checkpoints": saved,
        "mswm": {name: largest[name] for name in others},
        "mswm_first": largest[first],
        "awm": between,
    }


def speeds() -> dict[str, Value]:
    """What section 4.2 reads off the efficiency formula."""
    p, b = published, bandwidth
    states = b.of_states(BATCH_STATES, p.SEQ)
    return {
        "needs_parameters": b.efficiency(b.of_parameters(1, p.SEQ), p.NETWORK, p.PEAK),
        "needs_states": {
            "TB/s for 90 %": b.bandwidth_for(0.9, states, p.PEAK) / 1e12,
            "efficiency at 1.5 TB/s": b.efficiency(states, 1.5e12, p.PEAK),
        },
        "needs_checkpoints": {
            "2K, 2 GB/s": b.efficiency(b.of_checkpoints(2 * 1024, p.CI), 2e9, p.PEAK),
            "8K, 1 GB/s": b.efficiency(b.of_checkpoints(8 * 1024, p.CI), 1e9, p.PEAK),
        },
        "node_links": {"CPU": p.GPUS * p.PCIE / 1e9, "NVMe": p.GPUS * p.NVME_LINK / 1e9},
        "share_of_peak": ABSTRACT_FLOPS / (512 * p.TENSOR_PEAK),
    }


BATCH_STATES = 2
"""Sequences for each GPU at which section 4.2 asks what the optimizer states need."""
ABSTRACT_FLOPS = 25e15
"""Of 512 V100, by the abstract; only its share of the peak is worked out here."""


def capacities(config: Config) -> dict[str, Value]:
    trillion = published.TABLE["1.01T"]
    fits = capacity.fits(trillion, 1, config.tier)
    largest = capacity.largest(32, config.tier)
    flat = capacity.largest_of_3d(512)
    return {
        "one_node": all(fits.values()),
        "gpus_3d": capacity.gpus_of_3d(trillion, config.working),
        "largest": {"trillions on 32 nodes": largest / 1e12, "over 3D parallelism": largest / flat},
        "largest_3d": (flat if config.working else 512 * published.GPU_MEMORY / memory.STATE_BYTES) / 1e12,
    }


def scaling(config: Config, run: Run) -> dict[str, Value]:
    """Speed of the trillion-parameter model from 4 to 32 nodes, batch for each GPU the same."""
    speed = {
        nodes: pipeline_sim.teraflops(
            published.TRAINED["1T"], nodes, published.SCALING_BATCH, aggregate=config.aggregate, overlap=config.overlap
        )
        for nodes in (4, 8, 16, 32)
    }
    run.keep("scaling", {str(nodes): each for nodes, each in speed.items()})
    return {"superlinear": 8 * speed[32] / speed[4], "speed_4": speed[4], "speed_32": speed[32]}


def draw_tiers() -> Any:
    """Bytes of the states over parameters, and where each memory of one node and of 32 ends."""
    from common.figures import style

    with style() as plt:
        figure, ax = plt.subplots()
        size = np.geomspace(1e9, 1e14, 50)
        ax.loglog(size, memory.STATE_BYTES * size, "k", label="model states")
        for i, tier in enumerate(Tier):
            for nodes, line in ((1, "-"), (32, "--")):
                ax.axhline(capacity.tier_bytes(tier, nodes), color=f"C{i}", ls=line, label=f"{tier.value}, {nodes} nodes")
        ax.set(xlabel="parameters", ylabel="bytes", title="Where each memory ends")
        ax.legend(fontsize=7)
        return figure


def draw_efficiency() -> Any:
    """Efficiency over bandwidth of each kind of state."""
    from common.figures import style

    p, b, speed = published, bandwidth, np.geomspace(1e8, 1e13, 200)
    curves = {
        "weights and gradients, batch 1": b.of_parameters(1, p.SEQ),
        "optimizer states, batch 2": b.of_states(BATCH_STATES, p.SEQ),
        "checkpoints, hidden 2048": b.of_checkpoints(2048, p.CI),
    }
    with style() as plt:
        figure, ax = plt.subplots()
        for name, intensity in curves.items():
            ax.semilogx(speed / 1e9, b.efficiency(intensity, speed, p.PEAK), label=name)
        ax.set(xlabel="bandwidth [GB/s]", ylabel="efficiency", title="How fast must slow memory be?")
        ax.legend()
        return figure


def draw_prefetch() -> Any:
    """The three hops of a few blocks."""
    from common.figures import style

    model = published.TRAINED["1T"]._replace(layers=4)
    with style() as plt:
        figure, ax = plt.subplots(figsize=(8, 3.2))
        costs = pipeline_sim.cluster(model, 4, 1)
        for span in pipeline_sim.timeline(costs).spans:
            if span.resource != "optimizer":
                row = LANES.index(span.resource)
                operator = int(span.name.split()[1])
                ax.barh(row, span.end - span.start, left=span.start, color=f"C{operator % 10}", edgecolor="white")
        ax.set_yticks(range(len(LANES)), LANES)
        ax.invert_yaxis()
        ax.set(xlabel="time [s]", title="Four blocks: forward, then recomputation and backward; a colour for each operator")
        return figure


LANES = [
    "slow memory to CPU", "CPU to GPU", "all-gather", "GPU", "reduce-scatter", "GPU to CPU", "CPU to slow memory",
]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main("zero_infinity"))
