"""Measure the claims of I-ViT: ``python -m papers.i_vit.reproduce preset=smoke``."""

from __future__ import annotations

import numpy as np

from common import hardware, zoo
from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.i_vit import baselines, cost, errors, pictures
from papers.i_vit.config import Config, Fault, Gelu
from papers.i_vit.kernel import shiftmax, unit_of


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.model == "deit":
        run.require_gpu("training a DeiT on ImageNet")
    values: dict[str, Value] = {}
    if run.wants("accuracy", "integers_only", "simulation", "ablation", "factors"):
        from papers.i_vit.quantised import Quantised

        values |= Quantised(config, run).values()
    values |= layers(config, run)
    if run.wants("real_layer"):
        values["real_layer"] = real_layer(config, run)
    values |= model(config, run)
    if run.wants("int8_product", "shiftmax_speed", "forward_speed"):
        values |= (
            speeds(config, run) if run.alone else dict.fromkeys(("int8_product", "shiftmax_speed", "forward_speed"), run.busy)
        )
    return values | {
        "imagenet": NotRun("needs ImageNet, the published checkpoints and days of a GPU; the config is preset=paper"),
        "gpu_speed": NotRun("needs an RTX 2080 Ti; the Triton kernels are compiled for four other GPUs, not timed"),
    }


def layers(config: Config, run: Run) -> dict[str, Value]:
    """Shiftmax and ShiftGELU against the functions."""
    found: dict[str, Value] = {}
    rng = np.random.default_rng(config.seed)
    if run.wants("shiftmax_error", "shiftmax_vanishing"):
        table = errors.softmax_table(rng, (17, 65, 197), config.rows, config.fault is not Fault.base_two)
        # Equal scores of 197 tokens are 1/197 each, below the smallest code of 8 bits: nothing at all is left of such a row.
        flat = shiftmax(np.zeros((1, config.vanishing), np.int8), unit=16, bits=8)
        narrow = errors.softmax_errors(rng, 1, config.vanishing, 8, config.rows)
        run.keep("flat_row_sum", float(flat.sum() / 128))
        run.keep("shiftmax", table)
        run.keep("others", others())
        run.figure("shiftmax", lambda: pictures.row_sums(table))
        found["shiftmax_error"] = max(row["mean L1"] for name, row in table.items() if "16 bits" in name)
        found["shiftmax_vanishing"] = {"row sum": narrow["row sum"], "mean L1": narrow["mean L1"]}
    if run.wants("shiftgelu_error"):
        whole = errors.gelu_map()
        run.keep("gelu", whole)
        run.figure("gelu", lambda: pictures.gelu(whole))
        chosen = {most: errors.choose_n(most / 127) for most in whole}
        if config.gelu is Gelu.fixed:
            chosen = dict.fromkeys(whole, (23, False))
        run.keep("chosen", {most: list(each) for most, each in chosen.items()})
        error = {most: errors.gelu_error(most / 127, *chosen[most]) for most in whole}
        fixed = {most: errors.gelu_error(most / 127, 23) for most in whole}
        found["shiftgelu_error"] = (
            {f"error, range {most}": error[most] for most in whole}
            | {f"gain, range {most}": fixed[most] / error[most] for most in (1, 3, 6)}
            | {"wide at 12": chosen[12][1]}
        )
    return found


def others() -> dict[str, dict[str, float]]:
    """Largest errors of other integer softmaxes and GELUs on the same codes: range 6 for GELU, deviation 3 for softmax."""
    from scipy.special import ndtr

    scale, x = 6 / 127, np.arange(-127, 128)
    gelu = x * scale * ndtr(x * scale)
    scores = np.random.default_rng(0).normal(0, 3, (64, 197))
    step = float(np.abs(scores).max() / 127)
    codes = np.floor(scores / step + 0.5).astype(np.int8)
    want = np.exp(codes * step)
    want /= want.sum(-1, keepdims=True)
    softmaxes = {
        "Shiftmax, 16 bits": shiftmax(codes, unit=unit_of(step)) * 2.0**-15,
        "I-BERT": baselines.ibert_softmax(codes, step),
        "FQ-ViT log2, 4 bits": baselines.log_int_softmax(codes, step),
    }
    return {
        "gelu, largest error": {
            "ShiftGELU": errors.gelu_error(scale, *errors.choose_n(scale)),
            "I-BERT": float(np.abs(baselines.ibert_gelu(x, scale) - gelu).max()),
        },
        "softmax, mean row L1": {name: float(np.abs(y - want).sum(-1).mean()) for name, y in softmaxes.items()},
    }


def real_layer(config: Config, run: Run) -> Value:
    """Error of a real layer in integers over that of the same codes with float layers, the worst layer."""
    from papers.i_vit import minilm

    found = minilm.measure(config.layers, config.sentences, config.length, config.gelu is Gelu.fixed, config.newton)
    if found is None:
        return NotRun("the package with the checkpoint's vocabulary is not installed", busy=True)
    run.used("all-MiniLM-L6-v2", found["source"], found["sha256"])
    run.keep("minilm", found["layers"])
    return max(row["integers"] / row["float layers"] for row in found["layers"].values())


def model(config: Config, run: Run) -> dict[str, Value]:
    """What follows from shapes."""
    device, arithmetic = hardware.device("rtx_2080_ti"), "int8_dp4a" if config.dp4a else "fp32"
    found = cost.speedups(device, config.images, arithmetic)
    run.keep("roofline", {name: cost.seconds(cost.deit("S"), device, config.images, *kind) for name, kind in (
        ("float32", ("fp32", False)), ("integers", (arithmetic, True)))})  # fmt: skip
    run.keep("tensor_cores", cost.speedups(device, config.images, "int8"))
    if run.wants("size"):
        architecture = zoo.load("digits_vit.v1").architecture
        run.keep("size_of_digits", cost.float_bytes(architecture) / cost.exported_bytes(architecture))
    return {
        "speedup": {"least": min(found.values()), "most": max(found.values())},
        "size": {f"DeiT-{name}": cost.float_bytes(cost.deit(name)) / cost.exported_bytes(cost.deit(name)) for name in "TSB"},
    }


def speeds(config: Config, run: Run) -> dict[str, Value]:
    from papers.i_vit import speed

    with run.timing():
        products, softmaxes = speed.products(config.repeats), speed.softmaxes(config.repeats)
        passes = {name: speed.forwards(name, config.repeats) for name in config.latency}
    run.keep("seconds", {"products": products, "softmax": softmaxes, "forward": passes})
    if not run.alone:
        return dict.fromkeys(("int8_product", "shiftmax_speed", "forward_speed"), run.busy)
    return {
        "int8_product": {
            "to int32": products["int8 to int32"] / products["torch._int_mm"],
            "to int8": products["int8 to int8, dyadic"] / products["torch quantised linear"],
        },
        "shiftmax_speed": softmaxes["16 bits"] / softmaxes["torch.softmax"],
        "forward_speed": passes["T"]["integers"] / passes["T"]["float32"]
        if "T" in passes
        else NotRun("DeiT-T is not among the sizes of latency"),
    }


if __name__ == "__main__":
    raise SystemExit(main("i_vit"))
