"""Measure the claims of FBNet: ``python -m papers.fbnet.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

import numpy as np

from common import UserError
from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.fbnet import count, latency, pictures, published
from papers.fbnet.config import Config, Data
from papers.fbnet.space import Space
from papers.fbnet.supernet import tau_at

NO_IMAGENET = "needs ImageNet and GPUs for hundreds of epochs"
NO_PHONE = "needs the phone"


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.data is Data.imagenet:
        run.require_gpu("a search on 100 classes of ImageNet")
        raise UserError("there is no loader of ImageNet here; the sizes of preset=paper are its own, the images must be yours")
    values: dict[str, Value] = counts(run) | arithmetic()
    space = config.space()
    if run.wants("twin"):
        from papers.fbnet import twin

        values["twin"] = twin.apart(config.seed, config.twin_bits)
    if run.wants("memory"):
        from papers.fbnet import speed

        kept = speed.saved_bytes(space, config.batch)
        run.keep("saved_bytes", kept)
        values["memory"] = kept["super-net"] / kept["one path"]
    values |= searches(config, run, space)
    values |= timings(config, run, space)
    return values | {
        "accuracy": NotRun(NO_IMAGENET),
        "over_mobilenet": NotRun(NO_IMAGENET),
        "phone": NotRun(NO_PHONE),
    }


def counts(run: Run) -> dict[str, Value]:
    """Multiply-adds and parameters of the published nets, in every reading of the paper and its code."""
    found = count.costs()
    run.keep("counts", {name: each._asdict() for name, each in found.items()})

    def macs(name: str) -> float:
        return found[name].macs / 1e6

    def weights(name: str) -> float:
        # Norms and biases left out, as the paper seems to count.
        return found[name].weights / 1e6

    values: dict[str, Value] = {
        f"zoo_{net}": {"MACs and pool": found[f"{net}, zoo"].macs + found[f"{net}, zoo"].pool, "weights": found[f"{net}, zoo"].weights}
        for net in "ABC"
    }  # fmt: skip
    readings = {"zoo": "B, zoo", "file": "B, file", "file, narrow last": "B, file, narrow last"}
    values["B_flops"] = {name: macs(reading) for name, reading in readings.items()}
    values["B_parameters"] = {name: weights(reading) for name, reading in readings.items()}
    values["C_paper"] = {"FLOPs": macs("C, zoo"), "parameters": weights("C, zoo")}
    for claim, net in (("A_paper", "A, paper"), ("S8", "Samsung S8"), ("iPhone", "iPhone X"), ("narrow", "96-0.35-1")):
        values[claim] = {"FLOPs": macs(net), "parameters": weights(net)}
    peers = {width: f"MobileNetV2-{width}, 224" for width in ("1.0", "1.3")}
    values["mobilenet_flops"] = {width: macs(name) for width, name in peers.items()}
    values["mobilenet_parameters"] = {width: weights(name) for width, name in peers.items()}
    values["space"] = count.space_size(Space.of("A"))
    return values


def arithmetic() -> dict[str, Value]:
    """The paper's own figures combined."""
    ms, hours = published.MILLISECONDS, published.GPUS * published.HOURS
    larger = {
        name: of["MobileNetV2-1.3"] / of["FBNet-B"]
        for name, of in (("FLOPs", published.MACS), ("parameters", published.PARAMETERS))
    }
    return {
        "search_hours": {"GPU-hours": hours, "times less": published.MNASNET_HOURS / hours},
        "frames": 1e3 / ms["FBNet-96-0.35-1 on S8"],
        "faster": ms["MobileNetV2-1.3 on S8"] / ms["FBNet-B on S8"],
        "smaller": larger,
        "own_device": ms["S8 net on iPhone X"] / ms["iPhone X net on iPhone X"],
        "anneal": tau_at(published.EPOCHS - 1, published.TAU, published.TAU_DECAY),
    }


def searches(config: Config, run: Run, space: Space) -> dict[str, Value]:
    """The table of this CPU and what is found with it.

    On a busy machine the table is wrong, so nothing is claimed; a whole run searches all the same, for the details.
    """
    finds = [name for name in ("search", "random_search", "device") if run.wants(name)]
    wanted = [*finds, *(["lut"] if run.wants("lut") else [])]
    if not wanted or (run.busy and run.only is not None):
        return dict.fromkeys(wanted, run.busy) if run.busy else {}
    here = table(config, run, space)
    values: dict[str, Value] = {}
    if not run.busy and run.wants("lut"):
        values["lut"] = predicted(config, run, space, here)
    if finds:
        from papers.fbnet import compare, data

        parts = data.load(config)
        run.used("images", parts.source, parts.sha256)
        device = latency.roofline(space, config.device, "fp16", 2, config.device_batch)
        there = latency.costs(space, device, "other device")
        run.keep("tables", {"codes": compare.CODES, "here": here.blocks, "there": there.blocks, "rest": [here.rest, there.rest]})
        values |= compare.claims(config, run, space, parts, here, there)
        draw(run)
    return dict.fromkeys(wanted, run.busy) if run.busy else values


def table(config: Config, run: Run, space: Space) -> latency.Costs:
    """Of this CPU; kept beside the results of this configuration, those of a busy machine apart."""
    file = run.folder / f"latency-{'' if run.alone else 'busy-'}{run.key[:12]}.yaml"
    with run.timing():
        found = latency.measured(
            space, config.lut_batch, file, lambda parts: run.track(parts, "table of this CPU"), config.table_repeats
        )
    if config.shuffled_table:
        found = latency.permuted(found, config.seed)
    return latency.costs(space, found, "this CPU")


def predicted(config: Config, run: Run, space: Space, here: latency.Costs) -> Value:
    """Latencies by the table and measured, of random nets."""
    from papers.fbnet import speed

    with run.timing():
        told, found = speed.net_seconds(space, here, config)
    correlation = float(np.corrcoef(told, found)[0, 1])
    run.keep("lut_nets", {"predicted": told, "measured": found})
    run.figure("table", lambda: pictures.scatter(told.tolist(), found.tolist(), correlation))
    return run.busy or {"Pearson": correlation, "median error": float(np.median(np.abs(told / found - 1)))}


def timings(config: Config, run: Run, space: Space) -> dict[str, Value]:
    """Claims about time; nothing that was not asked for is timed."""
    wanted = [name for name in ("supernet", "kernel_speed") if run.wants(name)]
    if run.busy:
        return dict.fromkeys(wanted, run.busy)
    if not wanted:
        return {}
    from papers.fbnet import speed

    values: dict[str, Any] = {}
    with run.timing():
        if "supernet" in wanted:
            values["supernet"] = speed.forward_over_parts(space, config.batch, config.repeats)
            run.keep("step_seconds", speed.step_seconds(space, config.batch, config.repeats))
        if "kernel_speed" in wanted:
            seconds = speed.kernel_speeds(config.kernel_shapes, config.repeats)
            run.keep("kernel_seconds", seconds)
            gains = [min(each["channels last"], each["channels first"]) / each["fused"] for each in seconds.values()]
            values["kernel_speed"] = float(np.exp(np.mean(np.log(gains))))
    return dict.fromkeys(values, run.busy) if run.busy else values


def draw(run: Run) -> None:
    here = run.details["here"]
    first = here[0]
    run.figure("search", lambda: pictures.curves(first["history"], first["uniform"]))
    last = len(first["thetas"]) - 1
    run.figure("logits", lambda: pictures.logits(first["thetas"], sorted({0, last // 2, last})))
    if "random_nets" in run.details:
        points = [[net["latency"], net["accuracy"]] for found in here for net in found["nets"]]
        run.figure("trade", lambda: pictures.trade([point for nets in run.details["random_nets"] for point in nets], points))


if __name__ == "__main__":
    raise SystemExit(main("fbnet"))
