"""Measure the claims of MARLIN: ``python -m papers.marlin.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

import numpy as np

from common import machine
from common.command_line import main
from common.hardware import device
from common.ledger import NotRun, Value
from common.runner import Run
from papers.marlin import partition, pictures, published, roofline, serving, swizzle
from papers.marlin.config import Config

LAPTOP_WEIGHTS = 10**8
"""More than this in one product is no work for a CPU."""
DEVICES = {"A10": "a10", "A100": "a100_40_sxm", "RTX 3090": "rtx_3090", "RTX A6000": "rtx_a6000"}


def measure(config: Config, run: Run) -> dict[str, Value]:
    machine.interpret_triton_without_gpu()
    if config.k * config.n > LAPTOP_WEIGHTS:
        run.require_gpu(f"a product with {config.k * config.n:,} weights")
    values: dict[str, Value] = {}
    if run.wants("max_speed", "sparse_max"):
        values |= sizes(config)
    values |= curves(config, run)
    if run.wants("stripes", "picture", "balance"):
        values |= stripes(run)
    values["swizzle"] = sum(swizzle.passes(8, xor=True).values())
    if run.wants("end_to_end", "sparse_end_to_end"):
        values |= served(config, run)
    if run.wants("correct", "exact"):
        from papers.marlin.correctness import kernels

        values |= kernels(config, run)
    if run.wants("gptq_perplexity", "gptq_layers"):
        from papers.marlin.quantisation import language_model

        values |= language_model(config, run)
    from papers.marlin import speed

    if run.wants(*speed.TIMED):
        values |= speed.cpu(config, run)
    values["gpu_speed"] = NotRun("needs the paper's GPUs; this repository's Triton kernels are compiled for four, not timed")
    return values


def sizes(config: Config) -> dict[str, Value]:
    """What follows from the bytes of real buffers, and of the paper's ideal matrix at 16 rows."""
    import torch

    from kernels import gemm_w4a16
    from papers.marlin import kernel

    k, n = 1024, 512
    codes = torch.zeros(k, n, dtype=torch.int8)
    words, scales = gemm_w4a16.pack(codes, torch.ones(k // 128, n, dtype=torch.float16))
    values, meta, _ = kernel.sparse_pack(codes, scales)
    float16 = 2 * k * n
    dense, sparse = words.nbytes + scales.nbytes, values.nbytes + meta.nbytes
    large_k, large_n = published.A10_MATRIX
    activations = 2 * 16 * (large_k + large_n)
    large = float(large_k * large_n)
    with_activations = (2 * large + activations) / (large * dense / (k * n) + activations)
    return {
        "max_speed": {"weights": float16 / dense, "with activations": with_activations},
        "sparse_max": {"without scales": float16 / sparse, "with scales": float16 / (sparse + scales.nbytes)},
    }


def curves(config: Config, run: Run) -> dict[str, Value]:
    """Speed-up over dense float16 by the roofline; ``bits`` of 16 switches the small weights off."""
    bits = None if config.bits == 4 else float(config.bits)
    a10, ideal = device("a10"), [published.A10_MATRIX]
    batches = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], float)
    kinds = {"4 bits": "int4", "4 bits, 2:4": "sparse"}
    on_a10 = {name: roofline.speedup(a10, batches, ideal, kind, bits) for name, kind in kinds.items()}
    by_device = {name: roofline.speedup(device(key), batches, ideal, "int4", bits) for name, key in DEVICES.items()}
    by_model = {name: roofline.speedup(a10, batches, layers, "int4", bits) for name, layers in published.LAYERS.items()}
    run.keep("batches", batches)
    run.keep("speedup", {"A10": on_a10, "devices": by_device, "models": by_model})
    run.figure("speedup", lambda: pictures.speedup(batches, on_a10))
    run.figure("devices", lambda: pictures.speedup(batches, by_device, "Speed-up of 4 bits on the ideal matrix"))
    run.figure("models", lambda: pictures.speedup(batches, by_model, "Speed-up of 4 bits over all layers of a block, A10"))

    def at(kind: str, *chosen: int) -> dict[str, float]:
        return {f"batch {m}": float(on_a10[kind][list(batches).index(m)]) for m in chosen}

    return {
        "small_batches": at("4 bits", 16, 32),
        "large_batches": at("4 bits", 64, 128),
        "critical": {name: roofline.critical(device(DEVICES[name])) for name in ("A10", "A100")},
        "sparse_held": at("4 bits, 2:4", 32, 64),
        "sparse_compute": at("4 bits, 2:4", 1024)["batch 1024"],
    }


def stripes(run: Run) -> dict[str, Value]:
    """The schedule on an A10's multiprocessors, tiles of 128 x 128, groups of 128."""
    blocks, tile = device("a10").multiprocessors, 128
    shapes = {"4096 x 12288": (4096, 12288), "4096 x 4096": (4096, 4096), "ideal": published.A10_MATRIX}
    ways = {"striped": partition.striped, "column for each block": partition.by_column, "even": partition.even}
    table = {
        shape: {
            way: {
                "tiles": made.iterations, "blocks": made.used, "hand-overs": made.hand_overs, "chain": made.chain,
                "efficiency": made.efficiency,
            }
            for way, schedule in ways.items()
            for made in [schedule(k // tile, n // tile, blocks)]
        }
        for shape, (k, n) in shapes.items()
    }  # fmt: skip
    run.keep("partition", table)
    run.figure(
        "stripes", lambda: pictures.stripes(partition.striped(32, 32, blocks), "4096 x 4096 on an A10: the block of each tile")
    )
    chosen = {shape: table[shape]["striped"] for shape in shapes}
    figures: dict[str, Any] = {
        f"{shape}, {what}": chosen[shape][what]
        for shape in ("4096 x 12288", "4096 x 4096")
        for what in ("tiles", "blocks", "hand-overs", "chain", "efficiency")
    }
    figures["ideal, hand-overs"] = chosen["ideal"]["hand-overs"]
    small = partition.striped(3, 3, 5)
    gain = {
        shape: table[shape]["striped"]["efficiency"] / table[shape]["column for each block"]["efficiency"]
        for shape in ("4096 x 12288", "4096 x 4096")
    }
    picture = bool(np.array_equal(small.owner, [[0, 1, 3], [0, 2, 3], [1, 2, 4]]))
    return {"stripes": figures, "picture": picture, "balance": gain}


def served(config: Config, run: Run) -> dict[str, Value]:
    """Llama 2 7B on an A10, 64 tokens in and 64 out."""
    bits = None if config.bits == 4 else float(config.bits)
    a10, model, batches = device("a10"), published.LLAMA["7B"], [1, 2, 4, 8, 16, 32, 64, 128]
    found = {kind: serving.gains(a10, model, batches, kind, config.overhead, bits) for kind in ("int4", "sparse")}
    engine = serving.Engine(a10, model, "int4", config.overhead, bits)
    run.keep("share of the rest", {batch: serving.share(engine, batch, 96 * batch) for batch in batches})
    if run.only is None:
        by_overhead = {
            f"{1e3 * seconds:g} ms": serving.gains(a10, model, batches, "int4", seconds, bits)
            for seconds in (0, 1e-3, 2e-3, 3e-3, 5e-3)
        }
        run.keep("gains", {**found, "by overhead": by_overhead})
        run.figure("served", lambda: pictures.served(found, by_overhead))
        loads = [0.5, 1, 2, 3, 4, 6, 8]
        curves = {
            kind: serving.latency(a10, model, kind, loads, config.requests, config.seed, config.overhead)
            for kind in ("fp16", "int4", "sparse")
        }
        run.keep("latency", {"loads": loads, **curves})
        run.figure("latency", lambda: pictures.latency(loads, curves))
    return {"end_to_end": max(found["int4"].values()), "sparse_end_to_end": max(found["sparse"].values())}


if __name__ == "__main__":
    raise SystemExit(main("marlin"))
