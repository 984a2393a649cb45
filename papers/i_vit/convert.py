"""From the trained network to integers: the simulation is walked once with one image, and every weight, factor and unit that it
uses is written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.architecture import VisionTransformer
from common.models.weights import Weights
from papers.i_vit import network
from papers.i_vit.simulation import Options, Simulation
from papers.i_vit.store import Exported


def convert(
    weights: Weights, names: list[str], ranges: np.ndarray, options: Options, walk: Callable[[Simulation], Any], **notes: Any
) -> Exported:
    """The integers of a calibrated network.

    Args:
        weights: by name, PyTorch's layouts.
        names, ranges: of the quantisers.
        walk: runs the network on a simulation: ``lambda a: network.vit(a, architecture, zeros)``.
        notes: kept with the integers.

    Raises:
        RuntimeError: a quantiser without a range. ValueError: a norm's weight is 0, or a scale is NaN; names the place.
        OverflowError: an integer that does not fit; names it.
    """
    check_ranges(names, ranges)
    check_norms(weights)
    found: dict[str, np.ndarray] = {}
    known: dict[str, Any] = {"softmax": {}, "gelu": {}, "norm": {}, "steps": options.steps, **notes}

    def record(kind: str, name: str, *values: Any) -> None:
        if kind == "act":
            m, e, _ = values
            found[f"{name}.m"], found[f"{name}.e"] = (_whole(name, np.atleast_1d(x), np.int32) for x in (m, e))
        elif kind == "linear":
            found[f"{name}.weight"] = _whole(f"{name}.weight", values[0], np.int8)
            found[f"{name}.bias"] = _whole(f"{name}.bias", values[1], np.int32)
        elif kind == "norm":
            known["norm"][name] = values[1]
            # Added to a code of 30 bits, so that the sum stays in 32.
            found[f"{name}.bias"] = _whole(f"{name}.bias", values[0], np.int32, 2**30)
        elif kind == "table":
            found[name] = _whole(name, values[0], np.int16)
        elif kind == "softmax":
            unit, n, bits = values
            known["softmax"][name] = {"unit": int(unit), "n": n, "bits": bits}
        else:
            unit, n, wide = values
            known["gelu"][name] = {"unit": int(unit), "n": n, "wide": int(wide)}

    simulation = Simulation(exact_weights(weights), names, np.asarray(ranges, np.float64), options, record=record)
    result = walk(simulation)
    known |= {"input_scale": float(simulation.input_scale).hex(), "output_scale": float(np.max(result.scale)).hex()}
    known["input_bits"] = simulation.input_bits
    return Exported(found, known)


def convert_vit(weights: Weights, ranges: np.ndarray, architecture: VisionTransformer, options: Options) -> Exported:
    image = np.zeros((1, architecture.image, architecture.image, architecture.channels))
    return convert(
        weights,
        network.vit_acts(architecture),
        ranges,
        options,
        lambda a: network.vit(a, architecture, image),
        architecture=dataclasses.asdict(architecture),
    )


def exact_weights(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In float64, where scales are computed in training too; a float32 is a number of float64."""
    return {name: np.asarray(array, np.float64) for name, array in weights.items()}


def check_ranges(names: list[str], ranges: np.ndarray) -> None:
    for name, ends in zip(names, np.asarray(ranges), strict=True):
        if not np.isfinite(ends).all():
            raise ValueError(f"{name}: its range is {ends.tolist()}; a scale must be a finite number above 0")
        if not ends.any():
            raise RuntimeError(
                f"{name} has seen no data (its range is empty); calibrate: run some batches in training mode first"
            )


def check_norms(weights: Mapping[str, np.ndarray]) -> None:
    for name, array in weights.items():
        if name.endswith("norm.weight") and (np.asarray(array) == 0).any():
            channel = int(np.flatnonzero(np.asarray(array) == 0)[0])
            raise ValueError(
                f"{name} is 0 in channel {channel}: its shift over its weight is undefined in integers; set it to a small number"
            )


def dropped(weights: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Low bits that each norm's code must lose: the paper adds floor((shift / weight) / scale) to a code of 30 bits, and where a
    weight is small beside its shift (all-MiniLM-L6-v2 has such channels) that leaves 32 bits. 0 for most norms."""
    found = {}
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            name = name.removesuffix(".weight")
            most = np.abs(weights[f"{name}.bias"].astype(np.float64) / weight).max() * 2.0**30 / np.sqrt(weight.size)
            found[name] = max(0, int(np.ceil(np.log2((most + 2) / 2**30))))
    return found


def _whole(name: str, values: Any, dtype: Any, below: int | None = None) -> np.ndarray:
    values = np.asarray(values)
    info = np.iinfo(dtype)
    low, high = (-below, below) if below else (info.min, info.max)
    if not (values == np.floor(values)).all() or values.min() < low or values.max() > high:
        raise OverflowError(
            f"{name} reaches from {values.min()} to {values.max()}; wanted whole numbers from {low} to {high}, "
            "widen the range of its quantiser, or pass dropped(weights) for norms"
        )
    # In rows, whatever the order before: safetensors writes memory as it lies.
    return np.ascontiguousarray(values, dtype)
