"""What must be equal: a training in slices, in files, by several ranks, against one process with everything in memory."""

from __future__ import annotations

import ctypes
import dataclasses
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from common.agreement import relative_error
from common.architecture import Transformer
from common.data.text import batches as text_batches
from common.data.text import king_james
from common.distributed import Crew, Group, Ranks, alone, on_devices
from common.ledger import NotRun, Value
from common.models.transformer_torch import Block
from common.offload import ALIGNMENT, Arena, Pool
from common.runner import Run
from papers.zero_infinity import memory, optimizer, published, trainings
from papers.zero_infinity.config import Config
from papers.zero_infinity.construct import partitioned
from papers.zero_infinity.partition import Layout, Unit
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.trainings import DTYPES, Training
from papers.zero_infinity.zero3 import FETCHING, LEAVING, Offload, ZeRO3

ADAM = Adam(rate=1e-3)


def shape(width: int, depth: int, context: int = 32) -> Transformer:
    """A decoder with a tied embedding and heads of 32."""
    heads = width // 32
    return Transformer(
        width=width, depth=depth, heads=heads, kv_heads=heads, head_dim=32, hidden=width * 11 // 4, context=context
    )


def random_batches(config: Config, steps: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(config.seed)
    return tuple(rng.integers(0, 256, (8, 33)) for _ in range(steps))


def caps(training: Training, ranks: int) -> tuple[int, int]:
    """(arena, pool): bytes for eight of the largest tensor on the device, and for what passes through host memory alone."""
    units = [Unit(i, "", tuple(p.shape)) for i, p in enumerate(training.build().parameters())]
    layout = Layout(ranks, training.chunk)
    part, whole = (max(map(size, units)) for size in (layout.part, layout.whole))
    dtype = DTYPES[training.dtype]
    state = torch.promote_types(dtype, torch.float32)
    record = optimizer.record_bytes(min(training.chunk, part), dtype, state)
    pool = (FETCHING + LEAVING) * (part * dtype.itemsize + ALIGNMENT) + optimizer.DEPTH * (record + ALIGNMENT)
    return 8 * whole * dtype.itemsize, pool


def equal(config: Config, run: Run, crew: Crew) -> dict[str, Value]:
    """The unchanged model, plain and by the engine: losses in float32, weights in float64."""
    steps, architecture = config.check_steps, shape(config.check_width, 2)
    single = Training(architecture, random_batches(config, steps), ADAM, "float32", config.seed, reduce=config.reduce)
    double = dataclasses.replace(single, batches=single.batches[: config.check_steps64], dtype="float64")
    want, want64 = trainings.plain(single), trainings.plain(double)
    losses, weights, drift = [], [], {}
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="tier-") as folder:
        for ranks in run.track(config.check_ranks, "comparing the engine with one process"):
            got = crew.run(ranks, trainings.train, single)[0]
            got64 = crew.run(ranks, trainings.train, dataclasses.replace(double, folder=f"{folder}/{ranks}"))[0]
            losses.append(_relative(got["losses"], want["losses"]))
            weights.append(_apart(got64, want64))
            drift[ranks] = _apart(got, want)
    run.keep("weights in float32", drift)
    return {"equal": {"losses, float32": max(losses), "weights, float64": max(weights)}}


def larger(config: Config, run: Run, crew: Crew) -> dict[str, Value]:
    """A model beyond the arena, whose states are beyond the host's cap, ends at the same weights."""
    base = Training(
        shape(config.check_width, config.larger_depth), random_batches(config, config.check_steps64), ADAM, "float64",
        config.seed, chunk=2**12, reduce=config.reduce,
    )  # fmt: skip
    want = trainings.plain(base)
    model = 8 * base.architecture.parameters()
    over_arena, over_pool, apart = [], [], []
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="tier-") as folder:
        for ranks in run.track(config.check_ranks, "training beyond the caps"):
            arena, pool = caps(base, ranks)
            training = dataclasses.replace(base, arena=arena, pool=pool, folder=f"{folder}/{ranks}")
            got = crew.run(ranks, trainings.train, training)
            over_arena.append(model / arena)
            over_pool.append(3 * model / ranks / pool)
            apart.append(_apart(got[0], want))
    values = {"model over arena": min(over_arena), "states over host": min(over_pool), "weights": max(apart)}
    return {"larger": values}


def trains(config: Config, run: Run, crew: Crew) -> dict[str, Value]:
    """A character model on the King James text by two ranks, all states in files, against one process in memory."""
    text = king_james()
    run.used("king_james", text.source, text.sha256)
    at = text_batches(text.train, config.batch, config.seq_len, config.seed)
    training = Training(
        shape(config.width, config.depth, config.seq_len), tuple(at(step) for step in range(config.steps)), Adam(rate=config.rate),
        "float32", config.seed, chunk=2**14, reduce=config.reduce,
    )  # fmt: skip
    arena, pool = caps(training, 2)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="tier-") as folder:
        held = dataclasses.replace(training, arena=arena, pool=pool, folder=folder)
        got = crew.run(2, trainings.train, held, timeout=1800.0)
    want = trainings.plain(training)
    run.keep("losses", {"engine": got[0]["losses"], "one process": want["losses"]})
    run.keep("training", {name: got[0][name] for name in ("parameters", "arena", "pool", "lanes", "broken", "skipped")})
    last = max(1, config.steps // 10)
    fall = float(np.mean(want["losses"][:last]) - np.mean(got[0]["losses"][-last:]))
    states = 12 * training.architecture.parameters() / 2
    values = {"states over host": states / pool, "losses": _relative(got[0]["losses"], want["losses"]), "fall": fall}
    return {"trains": values}


def counted(config: Config, run: Run) -> dict[str, Value]:
    """Passes of weights and gradients over the link with recomputation, and bytes that live for each weight."""
    training = Training(shape(config.check_width, 4), random_batches(config, 2), ADAM, "bfloat16", config.seed, recompute=True)
    pool = Pool(2**26)
    with ExitStack() as stack:
        engine = training.engine(alone(), pool=pool)
        stack.callback(engine.close)
        for batch in training.batches:
            engine.trace.clear()
            engine.step(trainings.next_token_loss, torch.from_numpy(batch))
        padded = sum(engine.layout.whole(unit) for unit in engine.units)
        moved = engine.trace.bytes()
        lasting = pool.used - sum(slots.size * len(slots.blocks) for slots in (engine._fetching, engine._leaving))
    return {"passes": (moved["upload"] + moved["offload"]) / padded / 2, "record": lasting / padded}


def states_of_table(config: Config, run: Run) -> dict[str, Value]:
    """TiB of model states, 20 bytes for each parameter of models that are really constructed, on the meta device."""
    return {"states_counted": {name: memory.STATE_BYTES * count(model) / 2**40 for name, model in published.TABLE.items()}}


def count(model: published.Model) -> int:
    """Parameters of the blocks of a model, constructed in slices and without content."""
    a = Transformer(
        width=model.hidden, depth=model.layers, heads=model.heads, kv_heads=model.heads, head_dim=model.hidden // model.heads,
        hidden=4 * model.hidden, context=published.SEQ, feed_forward="gelu", norm="layer", positions="learned",
    )  # fmt: skip

    def linear(inputs: int, outputs: int) -> torch.nn.Module:
        return torch.nn.Linear(inputs, outputs, bias=False)

    with torch.device("meta"), partitioned(None) as built:
        torch.nn.ModuleList(
            Block(a, layer, lambda q, k, v, layer: v, linear, lambda: torch.nn.LayerNorm(a.width)) for layer in range(a.depth)
        )
    return sum(unit.count for unit in built.units)


def twin(config: Config, run: Run) -> dict[str, Value]:
    """The engine in JAX on a mesh against PyTorch in one process, float64."""
    from papers.zero_infinity import zero3_jax

    architecture = shape(config.check_width, 1)
    data = random_batches(config, config.check_steps64)
    want = trainings.plain(Training(architecture, data, ADAM, "float64", config.seed))
    arguments = (architecture, data, ADAM, config.seed, "float64", config.reduce)
    got = on_devices(zero3_jax.train, config.devices, *arguments)
    gathers = got["collectives"]["all_gather"] / got["parameters"]
    scatters = got["collectives"]["reduce_scatter"] / got["parameters"]
    return {"twin": {"weights": _apart(got, want), "gathers": gathers, "scatters": scatters}}


def resident(config: Config, run: Run) -> dict[str, Value]:
    """Growth of a rank's memory, as the system counts it, against the states that it trains."""
    if not Path("/proc/self/clear_refs").exists():
        return {"resident": NotRun("needs Linux to reset the high-water mark of a process")}
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="tier-") as folder, Ranks(2) as group:
        found = group.run(_growth, folder if config.files else "", config.resident_layers)
    return {"resident": min(states / grown for states, grown in found)}


_MMAP_THRESHOLD = -3
"""Of mallopt, in malloc.h."""


def _growth(group: Group, folder: str, layers: int) -> tuple[int, int]:
    """(bytes of this rank's weights, gradients and states, growth of its resident memory) over two steps."""
    # glibc keeps freed memory for itself, unless large blocks are pages of their own: what is freed shall not count.
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**17)
    # What the first step of a process loads and compiles for good is not the engine's.
    _stack(group, f"{folder}/first" if folder else "", 1).close()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    engine = _stack(group, f"{folder}/all" if folder else "", layers)
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]) * 1024
    states = sum(engine.layout.part(unit) for unit in engine.units) * (4 + 4 + 12)
    engine.close()
    return states, peak - before


def _stack(group: Group, folder: str, layers: int) -> ZeRO3:
    """An engine that has done two steps of a stack of layers of 4 MiB."""
    side = 1024

    def build() -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(layers)))

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    pool = Pool(24 * 2**20 if folder else 2**30)
    engine = ZeRO3(build, group, arena=Arena(32 * 2**20), pool=pool, offload=Offload(Path(folder) if folder else None))
    for _ in range(2):
        engine.step(loss, torch.ones(16, side))
    return engine


def _apart(got: dict[str, Any], want: dict[str, Any]) -> float:
    return max(relative_error(got["weights"][name], each) for name, each in want["weights"].items())


def _relative(got: list[float], want: list[float]) -> float:
    return float(np.max(np.abs(np.array(got) - want) / np.abs(want)))
