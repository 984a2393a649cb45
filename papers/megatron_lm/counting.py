"""Claims that are counted: parameters, operations, bytes on the wire and activations kept; and the paper's own arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from common.distributed import Ranks, alone
from common.ledger import Value
from common.runner import Run
from papers.megatron_lm import published, ranks
from papers.megatron_lm.config import Config
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.model_torch import Stage
from papers.megatron_lm.schedule import Kind
from papers.megatron_lm.shape import Shape, initial_weights
from papers.megatron_lm.trainer import Options

SCHEDULES = {"1F1B": (Kind.one_f_one_b, 1), "interleaved": (Kind.interleaved, 2), "GPipe": (Kind.gpipe, 1)}
RANKS, MICROBATCHES = 4, 8
"""p and m of the comparisons of schedules."""


def arithmetic() -> dict[str, Value]:
    """The paper's own figures combined."""
    table, last = published.TABLE, published.TABLE["1008.0B"]
    return {
        "peta": {name: row.rate * row.gpus / 1e3 for name, row in table.items()},
        "peak52": {name: 100 * row.rate * 1e12 / published.PEAK for name, row in table.items()},
        "iter_1t": last.shape.flops(last.batch) / published.AGGREGATE,
        "days": {name: days(*figures) for name, figures in published.DAYS.items()},
    }


def days(tokens: float, parameters: float, gpus: int, rate: float) -> float:
    """8 T P / (n X), in days. Source: paper, section 5.1, equation (4)."""
    return 8 * tokens * parameters / (gpus * rate) / 86_400


def counted() -> dict[str, Value]:
    """Parameters of the ten models, and the operations of a small one."""
    sizes = {name: parameters(row.shape) for name, row in published.TABLE.items()}
    rest = sum(sizes[name] - row.shape.parameters() - 2 * row.width for name, row in published.TABLE.items())
    small = Shape(vocabulary=256, width=32, depth=3, heads=4, context=16)
    return {
        "params_table": {name: size / 1e9 for name, size in sizes.items()},
        "params_formula": round(rest),
        "flops": operations(small, 2) - round(small.flops(2)),
    }


def parameters(shape: Shape) -> int:
    """Numbers in the parameters of a model that is built without memory."""
    model = Stage(shape, Layout(), 0, alone(), device="meta")
    return sum(weight.numel() for weight in model.parameters())


def operations(shape: Shape, batch: int) -> int:
    """Operations of the matrix products of one iteration with all activations recomputed, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Stage(shape, Layout(), 0, alone(), recompute=True)
    model.load(initial_weights(shape, 0))
    model.batch = [torch.zeros(batch, shape.context + 1, dtype=torch.long)]
    with FlopCounterMode(display=False) as counter:
        model.backward(None, model.forward(0, None), None)
    return counter.get_total_flops()


def sent_and_kept(config: Config, run: Run, four: Ranks) -> dict[str, Value]:
    """What four real ranks send and keep."""
    values: dict[str, Value] = {}
    if run.wants("interleave_mem"):
        shape, tokens = _model(2 * RANKS), _tokens(MICROBATCHES)
        kinds = SCHEDULES if config.interleave else dict.fromkeys(SCHEDULES, (Kind.one_f_one_b, 1))
        values["interleave_mem"] = {
            name: four.run(ranks.in_flight, shape, tokens, kind, chunks)[0] / chunks for name, (kind, chunks) in kinds.items()
        }
    if run.wants("tp_bytes"):
        values["tp_bytes"] = {
            "t=2": tensor_bytes(four, 2),
            "t=4": tensor_bytes(four, 4),
            "t=2, recomputed": tensor_bytes(four, 2, recompute=True),
        }
    if run.wants("pipeline_bytes"):
        values["pipeline_bytes"] = {f"v={v}": pipeline_bytes(four, v if config.interleave else 1) for v in (1, 2)}
    if run.wants("scatter_gather"):
        layout = Layout(tensor=2, pipeline=2)
        sent = [
            sum(_of(each, "pp") for each in _traffic(four, _model(4), layout, 4, Options(scatter=scatter)))
            for scatter in (config.scatter, False)
        ]
        values["scatter_gather"] = {"t=2": sent[0] / sent[1]}
    return values


def tensor_bytes(four: Ranks, tensor: int, recompute: bool = False) -> float:
    """b s h numbers that a rank gives to the tensor group's all-reduces for each layer and microbatch: the difference of two
    depths, so that embedding and loss cancel out."""
    layout, count = Layout(tensor=tensor, pipeline=RANKS // tensor), 4
    deep, shallow = (
        _of(_traffic(four, _model(depth), layout, count, Options(recompute=recompute))[0], "tp", "all_reduce") for depth in (8, 4)
    )
    return (deep - shallow) / (_boundary(4) * 4 / layout.pipeline * count)


def pipeline_bytes(four: Ranks, chunks: int) -> float:
    """b s h numbers that a rank in the middle of the pipeline sends for each microbatch, mean of both directions."""
    found = _traffic(four, _model(2 * RANKS), Layout(pipeline=RANKS, chunks=chunks), MICROBATCHES, Options())
    middle = [each for each in found if each["pp"] not in (0, RANKS - 1)]
    return float(np.mean([each[way] for each in middle for way in ("next", "previous")])) / (_boundary(4) * MICROBATCHES)


def _traffic(four: Ranks, shape: Shape, layout: Layout, count: int, options: Options) -> list[dict[str, Any]]:
    return four.run(ranks.traffic, shape, layout, _tokens(count), options)


def _of(found: dict[str, Any], group: str, kind: str | None = None) -> float:
    return sum(size for (name, what), size in found["bytes"].items() if name == group and kind in (None, what))


def _model(depth: int) -> Shape:
    """Small: bytes and passes do not depend on what is computed."""
    return Shape(vocabulary=256, width=32, depth=depth, heads=4, context=16)


def _tokens(count: int) -> np.ndarray:
    return np.zeros((count, 17), np.int64)


def _boundary(element: int) -> int:
    """Bytes of b s h numbers of :func:`_model`, b = 1."""
    return 16 * 32 * element
