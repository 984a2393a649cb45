"""Measure the claims of GPUSQ-ViT: ``python -m papers.gpusq_vit.reproduce preset=smoke``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import main
from common.data.checkpoints import minilm
from common.hardware import device
from common.ledger import NotRun, Value
from common.runner import Run
from papers.gpusq_vit import flops, pictures, sizes, store
from papers.gpusq_vit.config import Config, Fault
from papers.gpusq_vit.shapes import shapes
from papers.gpusq_vit.stages import Pipeline, Variant, load_feature_losses, save_feature_losses
from papers.gpusq_vit.tasks import task

VARIANTS = {
    "int8": Variant(8),
    "int4": Variant(4),
    "int4 uniform": Variant(4, blocks="uniform"),
    "int4 proportional": Variant(4, blocks="proportional"),
    "int4 without features": Variant(4, feature=False),
    "int4 without logits": Variant(4, soft=False),
    "int8 without labels": Variant(8, labelled=False),
}
WANTED = {
    "acc_int8": ("int8",),
    "acc_int4": ("int4",),
    "weight_factor": ("int4", "int4 uniform", "int4 proportional"),
    "feat_vs_soft": ("int4", "int4 without features", "int4 without logits"),
    "unsup": ("int8", "int8 without labels"),
    "one_file": ("int8", "int4"),
}
"""The variants that a claim is about."""


def measure(config: Config, run: Run) -> dict[str, Value]:
    values: dict[str, Value] = {}
    if run.wants("size_int8", "size_int4", "meta_bits", "checkpoint"):
        values |= file_sizes(config, run)
    if run.wants("flops", "flops_tiny", "latency_bound"):
        values |= operations(config, run)
    if run.wants(*WANTED):
        values |= accuracies(config, run)
    values |= speeds(config, run)
    return values | {"detect_segment": _NO_DATA, "a100": _NO_GPU, "orin": _NO_GPU}


def file_sizes(config: Config, run: Run) -> dict[str, Value]:
    """What was written to disk, counted."""
    found = {
        (name, bits, classifier): sizes.file_sizes(name, bits, classifier, config.seed)
        for name in ("DeiT-B", "Swin-B")
        for bits in (8, 4)
        for classifier in ({config.classifier, False} if name == "DeiT-B" else {config.classifier})
    }
    weights = minilm()
    run.used("all-MiniLM-L6-v2", weights.source, weights.sha256)
    matrices = {name: array for name, array in weights.matrices.items() if ".encoder." in f".{name}"}
    real = {kind: sizes.checkpoint(matrices, bits) for kind, bits in (("int8", 8), ("int4", 4))}
    run.keep("sizes", {f"{n}, {b} bits, {'all' if c else 'dense classifier'}": row for (n, b, c), row in found.items()})
    run.keep("checkpoint", {"parameters": sum(each.size for each in matrices.values()), **real})

    def row(bits: int) -> Value:
        return {
            f"{name} {part}": found[name, bits, config.classifier][part]
            for name in ("DeiT-B", "Swin-B")
            for part in ("GEMMs", "file")
        }

    return {
        "size_int8": row(8),
        "size_int4": row(4),
        "meta_bits": sizes.saved(),
        "checkpoint": {kind: each["ratio"] for kind, each in real.items()},
    }


def operations(config: Config, run: Run) -> dict[str, Value]:
    """The paper's accounting, and what the A100's data sheet makes of the same network."""
    kinds = {"INT8": "int8", "INT4": "int4"}

    def row(name: str) -> dict[str, float]:
        return {kind: flops.ratio(shapes(name), key, config.sparse_cost) for kind, key in kinds.items()}

    card = device("a100_40_sxm")

    def faster(name: str, batch: int, than: str) -> float:
        slow, fast = (flops.seconds(shapes(name), kind, batch, card, config.memory_cost) for kind in (than, "int4"))
        return slow / fast

    networks = ("DeiT-T", "DeiT-S", "DeiT-B", "Swin-B")
    run.keep("roofline", {f"{n} x {b} over {t}": faster(n, b, t) for n in networks for b in (1, 256) for t in ("fp32", "tf32")})
    run.keep("flops", {name: row(name) for name in ("DeiT-T", "DeiT-S", "DeiT-B", "Swin-T", "Swin-S", "Swin-B")})
    run.figure("operations", pictures.operations)
    return {
        "flops": row("DeiT-B"),
        "flops_tiny": row("DeiT-T"),
        "latency_bound": max(faster(name, 1, "fp32") / row(name)["INT4"] for name in networks),
    }


def accuracies(config: Config, run: Run) -> dict[str, Value]:
    """Both stages of all variants that are asked for, in as many trials; each is judged by its packed file."""
    pipeline = Pipeline(config, task(config, run), run.checkpoint, None)
    wanted = [name for name in VARIANTS if any(run.wants(claim) and name in names for claim, names in WANTED.items())]
    dense = pipeline.accuracy(pipeline.dense)
    found: dict[str, list[float]] = {name: [] for name in wanted}
    logs: dict[str, list[list[float]]] = {}
    kept: dict[str, Path] = {}
    losses = {}
    trials = config.trials if run.wants(*(claim for claim in WANTED if claim != "one_file")) else 1
    for trial in run.track(range(trials), "pruning and quantising"):
        pruned: dict[str, Any] = {}
        for name in wanted:
            variant = VARIANTS[name]
            folder = run.folder / "stages" / f"{variant.first}-{trial}"
            if variant.first not in pruned:
                pruned[variant.first] = pipeline.prune(
                    variant, trial, logs.setdefault(f"prune {name}", []) if not trial else None
                )
                save_feature_losses(folder, pipeline.feature_losses(pruned[variant.first]))
            losses[variant.first] = load_feature_losses(folder, pipeline.critical)
            log = logs.setdefault(f"quantize {name}", []) if not trial else None
            model = pipeline.quantize(pruned[variant.first], losses[variant.first], variant, trial, log)
            kept[name] = folder / f"{name}.safetensors"
            pipeline.method.export(model, variant.bits).save(kept[name])
            found[name].append(pipeline.packed_accuracy(store.load(kept[name])))
            if name == "int8" and trial == 0 and run.wants("acc_int8"):
                kept["fp16"] = folder / "fp16.safetensors"
                pipeline.method.export(pruned[variant.first], 16).save(kept["fp16"])
                found["fp16"] = [pipeline.packed_accuracy(store.load(kept["fp16"]))]
    run.keep("accuracy", {"dense": dense, **found})
    run.keep("file_bytes", {"dense": 4 * parameters(pipeline), **{name: path.stat().st_size for name, path in kept.items()}})
    run.keep("losses", {name: log for name, log in logs.items() if log})
    run.keep("feature_losses", losses)
    run.figure("losses", lambda: pictures.losses(logs))
    values: dict[str, Value] = {}
    mean = {name: float(np.mean(each)) for name, each in found.items()}
    if run.wants("acc_int8"):
        values["acc_int8"] = mean["int8"] - dense
    if run.wants("acc_int4"):
        values["acc_int4"] = mean["int4"] - dense
    if run.wants("weight_factor"):
        values["weight_factor"] = compared(run, "weight_factor", found["int4"], found["int4 uniform"])
        compared(run, "weight_factor against proportional", found["int4"], found["int4 proportional"])
    if run.wants("feat_vs_soft"):
        values["feat_vs_soft"] = compared(run, "feat_vs_soft", found["int4 without logits"], found["int4 without features"])
    if run.wants("unsup"):
        values["unsup"] = mean["int8 without labels"] - mean["int8"]
    if run.wants("one_file"):
        values["one_file"] = one_file(config, pipeline, kept)
    return values


def parameters(pipeline: Pipeline) -> int:
    return sum(array.size for array in pipeline.task.weights.values())


def compared(run: Run, name: str, first: list[float], second: list[float]) -> float:
    """Mean difference of two lists of trials, in points; its 95 % interval (Student's t over pairs) is kept."""
    from scipy.special import stdtrit

    difference = np.subtract(first, second)
    half = stdtrit(len(difference) - 1, 0.975) * difference.std(ddof=1) / len(difference) ** 0.5
    run.keep(
        f"interval of {name}", {"mean": difference.mean(), "low": difference.mean() - half, "high": difference.mean() + half}
    )
    return float(difference.mean())


def one_file(config: Config, pipeline: Pipeline, files: dict[str, Path]) -> dict[str, float]:
    """Predictions in which PyTorch and JAX differ on the same files, and weights that they unpack differently."""
    import jax.numpy as jnp
    import torch

    from kernels import sparse24

    predictions = weights = 0
    for name in ("int8", "int4"):
        compressed = store.load(files[name])
        images = pipeline.task.images.test
        found = {}
        for framework in ("torch", "jax"):
            method = importlib.import_module(f"papers.gpusq_vit.model_{framework}")
            read = compressed
            if framework == "jax" and config.fault is Fault.shifted_places:
                read = store.Compressed(
                    {n: shifted(each) for n, each in compressed.layers.items()}, compressed.input_scales, compressed.others,
                    compressed.bits, compressed.architecture,
                )  # fmt: skip
            found[framework] = method.predictions(method.load(read), images), read
        predictions += int((found["torch"][0] != found["jax"][0]).sum())
        layer = "blocks.0.feed_forward.up"
        packed = [found[framework][1].layers[layer] for framework in ("torch", "jax")]
        k, paired = packed[0].values.shape[1] * 2, packed[0].bits == 4  # bytes of two numbers are unpacked as bytes
        mine = sparse24.unpack(torch.from_numpy(packed[0].values), torch.from_numpy(packed[0].meta), k=k).numpy()
        theirs = sparse24.unpack(jnp.asarray(packed[1].values), jnp.asarray(packed[1].meta), k=k)
        assert paired == (name == "int4")
        weights += int((mine != np.asarray(theirs)).sum())
    return {"predictions": predictions, "weights": weights}


def shifted(layer: Any) -> Any:
    """The places of the next row, as a reader with a wrong order of the words would take them."""
    return type(layer)(layer.values, np.roll(layer.meta, 1, axis=0), layer.scale, layer.k, layer.bits)


def speeds(config: Config, run: Run) -> dict[str, Value]:
    from papers.gpusq_vit import speed

    values: dict[str, Value] = {}
    if run.wants("packed_bytes"):
        values["packed_bytes"] = speed.bytes_read()
    if run.wants("pack_speed", "mask_speed"):
        if run.alone:
            with run.timing():
                seconds = speed.measured(config.seed, config.repeats)
            run.keep("seconds", seconds)
            megabytes = 4 * speed.ROWS * speed.K / 1e6
            found = {"pack_speed": megabytes / seconds["pack"], "mask_speed": seconds["mask"] / seconds["mask by topk"]}
        if run.alone:
            values |= found
        else:
            values |= dict.fromkeys(("pack_speed", "mask_speed"), run.busy)
    return values


_NO_GPU = NotRun("needs a GPU of the paper; this repository's Triton kernel is compiled for an A100 ahead of time, not timed")
_NO_DATA = NotRun("needs COCO and ADE20K, and a GPU to train on them")

if __name__ == "__main__":
    raise SystemExit(main("gpusq_vit"))
