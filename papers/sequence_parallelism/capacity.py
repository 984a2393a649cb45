"""The largest batch and length that fit, by the memory model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from common.distributed import Crew
from common.hardware import GIB
from common.ledger import Value
from common.runner import Run
from papers.sequence_parallelism import held, memory_model
from papers.sequence_parallelism.config import Config, Fault
from papers.sequence_parallelism.memory_model import BERT_BASE
from papers.sequence_parallelism.published import BATCH_LENGTH, LENGTH_BATCH, NUMBER_BYTES, SPARSE_BATCH, SPARSE_DEVICES


def numbers_of(config: Config) -> float:
    """Numbers that fit into a device."""
    return config.memory * GIB / NUMBER_BYTES


def largest(numbers: Callable[[Any], Any], limit: float) -> int:
    return int(memory_model.largest(numbers, limit, np.zeros((), np.int64), np))


def dense(config: Config, run: Run, crew: Crew) -> dict[str, Value]:
    """Ratios of sequence parallelism on all devices to tensor parallelism on as many as there are heads."""
    limit, whole = numbers_of(config), config.fault is Fault.whole
    places = {"sequence": config.devices, "tensor": BERT_BASE.heads}

    def ratio(*batch: int, **known: Any) -> float:
        """By what is left open, the batch or the length."""
        found = {
            how: largest(partial(memory_model.device, how, count, *batch, whole=whole, **known), limit)
            for how, count in places.items()
        }
        return found["sequence"] / found["tensor"]

    counted = held.layer_numbers(crew)
    run.keep("layer_numbers", counted)
    most = {how: largest(partial(_counted, counted, how, count, whole), limit) for how, count in places.items()}
    names = {"formulas": False, "formulas and logits": True}
    batch = {name: ratio(length=BATCH_LENGTH, logits=logits) for name, logits in names.items()}
    length = {name: ratio(LENGTH_BATCH, logits=logits) for name, logits in names.items()}
    return {"batch": {**batch, "counted blocks": most["sequence"] / most["tensor"]}, "length": length}


def _counted(counted: dict[str, float], how: str, devices: int, whole: bool, batch: float) -> float:
    """Numbers of a device by what built layers keep, for a batch of sequences of 512 tokens."""
    count = 1 if whole and how == "sequence" else devices
    weights, kept = (counted[f"{how}, {what}, shared"] / count + counted[f"{how}, {what}, whole"] for what in ("weights", "kept"))
    words = BERT_BASE.vocabulary * BERT_BASE.width / (devices if how == "tensor" else 1)
    embedded = batch * BATCH_LENGTH * BERT_BASE.width / (1 if how == "tensor" else count)
    layers = BERT_BASE.depth * (held.COPIES * weights + batch * kept)
    return layers + held.COPIES * (words + BERT_BASE.length * BERT_BASE.width) + embedded


def sparse(config: Config) -> dict[str, Value]:
    """The longest sequence with Linformer attention, and over that of one device."""
    limit = numbers_of(config)

    def longest(devices: int, split: bool) -> int:
        kind = {"dense": config.fault is Fault.dense, "split_positions": split}
        return largest(partial(memory_model.sparse_device, devices, SPARSE_BATCH, **kind), limit)

    names = {"positions whole": False, "positions split": True}
    return {
        "sparse_length": longest(SPARSE_DEVICES, False),
        "sparse_ratio": {name: longest(SPARSE_DEVICES, split) / longest(1, split) for name, split in names.items()},
    }


def tables() -> dict[str, Value]:
    """BL/H from which on sequence parallelism holds less, from the formulas alone, for any number of devices."""
    import sympy

    devices, batch, length, heads, dim, width, x = sympy.symbols("N B L Z A H x", positive=True)
    gap = memory_model.mlp("sequence", devices, batch * length, width) - memory_model.mlp(
        "tensor", devices, batch * length, width
    )
    (first,) = sympy.solve(gap.subs(length, x * width / batch), x)
    gap = memory_model.attention("sequence", devices, batch, length, heads * dim, heads) - memory_model.attention(
        "tensor", devices, batch, length, heads * dim, heads
    )
    (second,) = sympy.solve(sympy.simplify(gap.subs(length, x * heads * dim / batch)), x)
    return {"tables": {"MLP": float(first), "attention": float(second)}}
