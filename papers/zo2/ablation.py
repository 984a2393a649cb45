"""The clock: streamed against resident, and each switch off, over a throttled link on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.ledger import NotRun, Value
from common.models.transformer_torch import TransformerLM
from common.offload import Trace
from common.runner import Run
from papers.zo2.config import Config, Schedule
from papers.zo2.exact import shape, streamed
from papers.zo2.mezo_torch import MeZO
from papers.zo2.rule import Rule
from papers.zo2.stream_torch import Link
from papers.zo2.zo2_torch import ZO2

LATENCY_SHARE = 0.05
"""Time that any one copy takes besides its bytes, as part of the computation of a block: what many small copies cost."""

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no overlap": {"overlap": False},
    "no reusable memory": {"bucket": False},
    "no efficient update": {"schedule": Schedule.eager},
}


def timings(config: Config, run: Run) -> dict[str, Value]:
    """Time of a step of each variant over the full one, and of the full one over MeZO in memory."""
    if not run.alone:
        return dict.fromkeys(("slowdown_here", "overlap_here", "ablation_here"), run.busy or NotRun("busy", busy=True))
    with run.timing():
        seconds, traces = measured(config)
    run.keep("step_seconds", seconds)
    run.keep("traces", {name: trace.rows() for name, trace in traces.items()})
    run.figure("timeline", lambda: draw(traces))
    full = seconds["full"]
    return {
        "slowdown_here": full / seconds["resident"],
        "overlap_here": seconds["no overlap"] / full,
        "ablation_here": {name: seconds[name] / full for name in VARIANTS if name != "full"},
    }


def measured(config: Config) -> tuple[dict[str, float], dict[str, Trace]]:
    """Median seconds of a step of "resident" and each variant, taken in turns, and the trace of a step of each."""
    architecture = shape(config.time_width, config.time_depth, config.time_len)
    rng = np.random.default_rng(config.seed)
    batch = torch.from_numpy(rng.integers(0, 256, (1, config.time_len + 1)))
    rule, model = Rule(rate=1e-6), TransformerLM(architecture, seed=config.seed)
    link = Link() if config.free_link else _link(config, batch)

    traces, engines = {}, {}
    for name, options in VARIANTS.items():
        # The switches of the configuration hold for the full variant, so that a control can break it.
        mine = {"overlap": config.overlap, "bucket": config.bucket, "schedule": config.schedule} | options
        traces[name] = Trace()
        engines[name] = streamed(architecture, rule, link=link, trace=traces[name], **mine)
        engines[name].load_model(model)
    plain = MeZO(model, rule)
    steps: dict[str, Callable[[int], object]] = {"resident": lambda i: plain.step(batch, i)}
    for name, engine in engines.items():
        steps[name] = lambda i, engine=engine: _whole_step(engine, batch, i)  # type: ignore[misc]
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(config.time_steps + 1):
        for name, step in steps.items():
            if name in traces:
                traces[name].clear()
            start = time.perf_counter()
            step(i)
            taken[name].append(time.perf_counter() - start)
    for engine in engines.values():
        engine.close()
    return {name: statistics.median(values[1:]) for name, values in taken.items()}, traces


def draw(traces: dict[str, Trace]) -> Any:
    """One step of the full variant and of the one without overlap, as bars."""
    from common.figures import style

    with style() as plt:
        shown = ("full", "no overlap")
        figure, axes = plt.subplots(len(shown), 1, figsize=(7.5, 3.6), sharex=True, layout="constrained")
        for ax, name in zip(axes, shown, strict=True):
            traces[name].gantt(ax, ("upload", "compute", "offload"))
            ax.set_title({"full": "Upload, computation and offload overlap", "no overlap": "Each waits for the other"}[name])
        axes[0].set_xlabel("")
        return figure


def _whole_step(engine: ZO2, batch: torch.Tensor, seed: int) -> None:
    engine.step(batch, seed)
    engine.stream.settle()


def _link(config: Config, batch: torch.Tensor) -> Link:
    """A link on which a block takes ``copy_share`` of the time of its computation, as measured without a throttle."""
    architecture = shape(config.time_width, config.time_depth, config.time_len)
    trace = Trace()
    engine = streamed(architecture, Rule(1e-6), trace=trace)
    engine.load_model(TransformerLM(architecture, seed=config.seed))
    blocks = []
    for i in range(4):
        trace.clear()
        _whole_step(engine, batch, i)
        blocks.append(
            statistics.median(m.end - m.start for m in trace.moves if m.lane == "compute" and m.name.startswith("block"))
        )
    engine.close()
    block = min(blocks[1:])
    size = engine.units.blocks[0].count * 4
    return Link(size / ((config.copy_share - LATENCY_SHARE) * block), LATENCY_SHARE * block)
