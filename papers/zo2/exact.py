"""What must be equal, not close: weights of the streamed and the plain method, bytes moved, bytes held."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.architecture import Transformer
from common.ledger import NotRun, Value
from common.models.transformer_torch import TransformerLM
from common.offload import ALIGNMENT, Arena, FileTier, Pool
from common.runner import Run
from papers.zo2.config import Config, Fault, Schedule
from papers.zo2.memory_model import arena_bytes
from papers.zo2.mezo_torch import MeZO
from papers.zo2.noise_torch import Counted, Threaded
from papers.zo2.rule import Rule
from papers.zo2.tiers import STAGING, HostTier, StoredTier
from papers.zo2.units import units
from papers.zo2.zo2_torch import DUAL, ZO2

RULE = Rule(rate=1e-3, epsilon=1e-3, decay=0.1)
"""Of the comparisons: the defaults of the authors' code, large enough that every step changes every weight."""


def shape(width: int, depth: int, context: int, **options: Any) -> Transformer:
    """A decoder with heads of 32."""
    heads = width // 32
    return Transformer(
        width=width, depth=depth, heads=heads, kv_heads=heads, head_dim=32, hidden=width * 11 // 4, context=context, **options
    )


def streamed(
    architecture: Transformer, rule: Rule, *, stored: Path | None = None, dtype: torch.dtype = torch.float32, **options: Any
) -> ZO2:
    """The engine with an arena that has not one byte more than it needs, over host memory or, under ``stored``, over files."""
    cut, wire = units(architecture), options.get("wire") or dtype
    item, narrow, depth = dtype.itemsize, wire.itemsize, architecture.depth
    travel = depth if options.get("offloaded") is None else len(options["offloaded"])
    plus = cut.tied and options.get("schedule", Schedule.zo2) in DUAL
    arena = Arena(arena_bytes(cut, item, narrow, travel, plus, options.get("bucket", True), _rounded))
    size = cut.blocks[0].count * narrow
    if stored is None:
        tier: Any = HostTier(Pool(depth * _rounded(size)), depth, size)
    else:
        tier = StoredTier(Pool(STAGING * _rounded(size)), FileTier(stored), depth, size)
    return ZO2(architecture, tier, arena, rule, dtype=dtype, **options)


def batches(config: Config, count: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(config.seed)
    return [torch.from_numpy(rng.integers(0, 256, (2, 33))) for _ in range(count)]


def exactness(config: Config, run: Run) -> dict[str, Value]:
    """Numbers that differ between the streamed and the plain method after K steps: of all weights and all losses."""
    architecture = shape(config.check_width, config.check_depth, 32)
    data = batches(config, config.check_steps)
    cases: dict[str, Any] = {
        "fp32": {},
        "fp16": {"dtype": torch.float16},
        "fp32, generator": {"noise": Threaded},
        "fp16, generator": {"dtype": torch.float16, "noise": Threaded},
    }
    found = {}
    for name, options in run.track(cases.items(), "comparing streamed and plain"):
        noise, dtype = options.get("noise", Counted), options.get("dtype", torch.float32)
        found[name] = differing(config, architecture, data, noise, dtype)
    return {"identical": found}


def differing(
    config: Config, architecture: Transformer, data: list[torch.Tensor], noise: Any, dtype: torch.dtype, **options: Any
) -> int:
    plain = TransformerLM(architecture, seed=config.seed, dtype=dtype)
    engine = streamed(
        architecture,
        RULE,
        dtype=dtype,
        noise=noise(),
        schedule=config.schedule,
        overlap=config.overlap,
        bucket=config.bucket,
        **options,
    )
    engine.load_model(plain)
    reference = MeZO(plain, RULE, noise())
    pairs = [(reference.step(batch, config.seed + i), engine.step(batch, config.seed + i)) for i, batch in enumerate(data)]
    want, got = reference.weights(), engine.weights(flush=config.fault is not Fault.no_flush)
    engine.close()
    return sum(a != b for a, b in pairs) + sum(int((want[name] != got[name]).sum()) for name in want)


def larger(config: Config, run: Run) -> dict[str, Value]:
    """A model larger than the arena, and than arena and host memory together, trains to the same weights."""
    architecture = shape(config.check_width, 4 * config.check_depth, 32)
    data = batches(config, 3)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="tier-") as folder:
        wrong = differing(config, architecture, data, Counted, torch.float32, stored=Path(folder))
        engine = streamed(architecture, RULE, stored=Path(folder) / "sizes")
    tier = engine.stream.tier
    assert isinstance(tier, StoredTier)
    arena, ram, model = (
        engine.stream.arena.budget,
        STAGING * engine.stream.arena.rounded(tier.size),
        4 * architecture.parameters(),
    )
    engine.close()
    return {
        "larger": {
            "model over arena": model / arena,
            "model over arena and RAM": model / (arena + ram),
            "weights that differ": wrong,
        }
    }


def moved(config: Config, run: Run) -> dict[str, Value]:
    """Bytes of the copy queues for each step and byte of the blocks, and the high-water mark of the arena over its formula."""
    architecture = shape(config.check_width, config.check_depth, 32)
    data = batches(config, 3)

    def trips(**options: Any) -> tuple[dict[str, float], float, int]:
        engine = streamed(architecture, RULE, **options)
        engine.load_model(TransformerLM(architecture, seed=config.seed))
        for i, batch in enumerate(data):
            engine.step(batch, i)
        engine.stream.settle()
        whole = len(data) * architecture.depth * engine.units.blocks[0].count * 4
        counted = {lane: engine.trace.bytes()[lane] / whole for lane in ("upload", "offload")}
        arena, bucket = engine.stream.arena, options.get("bucket", True)
        wire = (options.get("wire") or torch.float32).itemsize
        formula = arena_bytes(engine.units, 4, wire, architecture.depth, engine.stream.plus is not None, bucket, _rounded)
        engine.close()
        return counted, arena.peak / formula, arena.peak

    full = trips(schedule=config.schedule, overlap=config.overlap, bucket=config.bucket)
    others = {kind: trips(schedule=kind)[0] for kind in (Schedule.two, Schedule.three)}
    narrow = {kind: trips(wire=kind) for kind in (torch.float16, torch.bfloat16)}
    loose = trips(bucket=False)
    names = {"ZO2": full[0], "two visits": others[Schedule.two], "three visits": others[Schedule.three]}
    return {
        "trips": {f"{name}, {lane}": counted[lane] for name, counted in names.items() for lane in counted},
        "held": {"fp32": full[1], "fp16 wire": narrow[torch.float16][1], "no bucket": loose[1]},
        "amp": {"fp16": narrow[torch.float16][0]["upload"], "bf16": narrow[torch.bfloat16][0]["upload"]},
        "peer": _against_accelerate(config, architecture, full[0]["upload"]),
    }


def _against_accelerate(config: Config, architecture: Transformer, trips: float) -> Value:
    """Uploads of ZO2 over those of accelerate's cpu_offload for the same two forward passes."""
    try:
        from accelerate import cpu_offload
    except ImportError:
        return NotRun.without("accelerate")
    model, read = TransformerLM(architecture, seed=config.seed), [0]

    class Counting(dict):  # type: ignore[type-arg]
        """The weights that accelerate keeps on the host, and the bytes that it takes from there."""

        def __getitem__(self, name: str) -> Any:
            tensor = super().__getitem__(name)
            read[0] += tensor.nbytes if name.startswith("blocks.") else 0
            return tensor

    size = architecture.depth * units(architecture).blocks[0].count * 4
    offloaded = cpu_offload(model, execution_device=torch.device("cpu"), state_dict=Counting(model.state_dict()))
    tokens = batches(config, 1)[0][:, :-1]
    read[0] = 0
    with torch.no_grad():
        for _ in range(2):
            offloaded(tokens)
    return trips / (read[0] / size)


def twin(config: Config) -> dict[str, Value]:
    """Largest relative error of the weights of the streamed method in JAX and in PyTorch, plain, after a few float64 steps."""
    import jax
    import jax.numpy as jnp

    from common.agreement import relative_error
    from common.models.weights import initial_weights
    from papers.zo2.zo2_jax import ZO2 as Twin

    architecture = shape(config.check_width, config.check_depth, 32)
    data = batches(config, config.twin_steps)
    plain = MeZO(TransformerLM(architecture, seed=config.seed, dtype=torch.float64), RULE)
    for i, batch in enumerate(data):
        plain.step(batch, i)
    with jax.enable_x64(True):
        other = Twin(architecture, initial_weights(architecture, config.seed), RULE, dtype=jnp.float64)
        for i, batch in enumerate(data):
            other.step(batch.numpy(), i)
        got = other.weights(flush=config.fault is not Fault.no_flush)
    return {"twin": max(relative_error(got[name], each.numpy()) for name, each in plain.weights().items())}


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
