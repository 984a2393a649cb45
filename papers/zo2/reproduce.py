"""Measure the claims of ZO2: ``python -m papers.zo2.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

from common.architecture import Transformer
from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.zo2 import memory_model, published, simulate
from papers.zo2.config import Config


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.opt:
        run.require_gpu(f"streaming OPT-{config.opt}")
    values: dict[str, Value] = {}
    if run.wants("identical", "larger", "trips", "held", "amp", "peer", "twin"):
        from papers.zo2 import exact

        for names, part in (
            (("identical",), exact.exactness), (("larger",), exact.larger), (("trips", "held", "amp", "peer"), exact.moved)
        ):  # fmt: skip
            values |= part(config, run) if run.wants(*names) else {}
        values |= exact.twin(config) if run.wants("twin") else {}
    if run.wants("slowdown_here", "overlap_here", "ablation_here"):
        from papers.zo2 import ablation

        values |= ablation.timings(config, run)
    if run.wants("learns"):
        from papers.zo2 import finetune

        values |= finetune.learn(config, run)
    values |= memory(config, run)
    values |= times(config)
    values["parameters"] = memory_model.opt_parameters("175B")
    values["throughput"] = (
        throughput(memory_model.opt(config.opt))
        if config.opt
        else NotRun("needs a GPU with the memory of the whole model beside it")
    )
    return values


def memory(config: Config, run: Run) -> dict[str, Value]:
    """GB of a training step of each OPT model."""
    items = {name: memory_model.opt_gigabytes(name, offload=config.offload) for name in published.OPT}
    whole = {name: sum(each.values()) for name, each in items.items()}
    run.keep("memory_items", items)
    run.figure("memory", lambda: _draw_memory(items))
    smallest, *between, largest = published.OPT
    return {"memory_175b": whole[largest], "memory": {name: whole[name] for name in between}, "memory_smallest": whole[smallest]}


def times(config: Config) -> dict[str, Value]:
    """The model of a step on an A100: slow-down over MeZO in memory, and each switch off."""
    steps = {name: simulate.variants(name, config.free_link) for name in published.OPT}
    key = "full" if config.overlap else "no overlap"
    off = ("no overlap", "no reusable memory", "no efficient update")
    return {
        "slowdown": {name: each[key] / each["resident"] - 1 for name, each in steps.items()},
        "ablation": {name: min(each[name] / each[key] for each in steps.values()) for name in off},
    }


def throughput(architecture: Transformer, device: str = "cuda", dtype: str = "float16") -> Value:
    """Speed of the streamed over the resident method, batch 1, the whole context, random weights, median of three steps."""
    import time

    import numpy as np
    import torch

    from common.models.transformer_torch import TransformerLM
    from common.offload import Arena, Pool
    from papers.zo2.mezo_torch import MeZO
    from papers.zo2.rule import Rule
    from papers.zo2.tiers import HostTier
    from papers.zo2.units import units
    from papers.zo2.zo2_torch import ZO2

    cut, kind, rule = units(architecture), getattr(torch, dtype), Rule(rate=1e-7)
    depth, item, size = architecture.depth, kind.itemsize, cut.blocks[0].count * kind.itemsize
    needed = memory_model.arena_bytes(cut, item, item, depth, cut.tied, True, lambda n: -(-n // 512) * 512)
    tier = HostTier(Pool(depth * (size + 64)), depth, size)
    engine = ZO2(architecture, tier, Arena(needed, device=device, alignment=512), rule, dtype=kind)
    rng = np.random.default_rng(0)
    engine.load(lambda unit: {each.name: rng.standard_normal(each.shape, np.float32) * 0.02 for each in unit.parameters})
    batch = torch.from_numpy(rng.integers(0, architecture.vocabulary, (1, architecture.context + 1))).to(device)

    def seconds(step: Any) -> float:
        taken = []
        for i in range(4):
            start = time.perf_counter()
            step(batch, i)  # ends with a loss on the host, so nothing is under way after it
            taken.append(time.perf_counter() - start)
        return sorted(taken[1:])[1]

    streamed = seconds(engine.step)
    engine.close()
    return seconds(MeZO(TransformerLM(architecture, dtype=kind).to(device), rule).step) / streamed


def _draw_memory(items: dict[str, dict[str, float]]) -> Any:
    from common.figures import style

    with style() as plt:
        figure, ax = plt.subplots()
        bottom = dict.fromkeys(items, 0.0)
        for part in next(iter(items.values())):
            heights = [each[part] for each in items.values()]
            ax.bar(list(items), heights, bottom=list(bottom.values()), label=part)
            bottom = {name: bottom[name] + each[part] for name, each in items.items()}
        ax.set(xlabel="OPT model", ylabel="device memory [GB]", title="Three blocks, whatever the depth")
        ax.legend()
        return figure


if __name__ == "__main__":
    raise SystemExit(main("zo2"))
