"""The figures of a run: loss curves, and what fits by the number of devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from common.figures import lines
from common.runner import Run
from papers.sequence_parallelism import memory_model
from papers.sequence_parallelism.capacity import numbers_of
from papers.sequence_parallelism.config import Config
from papers.sequence_parallelism.memory_model import BERT_BASE
from papers.sequence_parallelism.published import BATCH_LENGTH, SPARSE_BATCH


def draw(config: Config, run: Run) -> None:
    if "losses" in run.details:
        run.figure("losses", lambda: losses(run.details["losses"]))
    run.figure("batch", lambda: batch(config))
    run.figure("length", lambda: length(config))


def losses(curves: dict[str, Any]) -> Any:
    """The sum of both losses by step; the curves lie on each other."""
    shown = {name: (range(len(each)), np.sum(each, axis=1)) for name, each in curves.items() if "float64" in name}
    return lines(
        shown, x="step", y="loss [nats]", title="One process, sequence and tensor parallelism", dashed=["sequence, float64"]
    )


def batch(config: Config) -> Any:
    """The largest batch by the number of devices; tensor parallelism takes the divisors of the heads."""
    sizes = np.array([1, 2, 3, 4, 6, 12, 16, 32, 64])
    known = {"sequence": sizes, "tensor": sizes[BERT_BASE.heads % sizes == 0]}
    curves = {
        f"{how} parallelism": (count, most(partial(memory_model.device, how, count, length=BATCH_LENGTH), config, len(count)))
        for how, count in known.items()
    }
    return lines(curves, x="devices", y="largest batch", title="BERT Base, 512 tokens, 16 GiB", log="xy")


def length(config: Config) -> Any:
    """The longest sequence by the number of devices, with attention over all keys and with Linformer's."""
    sizes = 2 ** np.arange(7)
    curves = {
        name: (sizes, most(partial(memory_model.sparse_device, sizes, SPARSE_BATCH, dense=dense), config, len(sizes)))
        for name, dense in (("Linformer", False), ("all keys", True))
    }
    return lines(curves, x="devices", y="tokens", title="Longest sequence, sequence parallelism", log="xy")


def most(numbers: Callable[[Any], Any], config: Config, count: int) -> Any:
    """For each number of devices the largest that fits."""
    return memory_model.largest(numbers, numbers_of(config), np.zeros(count, np.int64), np)
