"""Time and memory of a training iteration in closed form, for numbers, NumPy, PyTorch and JAX arrays alike.

Everything is of the slowest device: the last pipeline rank, which has the logits too. Nothing is overlapped.
Source: paper, section 3; activations between checkpoints, Korthikanti et al. 2022 (arXiv 2205.05198), section 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from common.hardware import device, link
from papers.megatron_lm import published
from papers.megatron_lm.shape import Shape


class Machine(NamedTuple):
    """rate: FLOP/s that products reach. nvlink, network: bytes/s of a GPU in one direction, within and across nodes.
    node: GPUs of a node. memory: bytes of a GPU."""

    rate: float
    nvlink: float
    network: float
    node: int
    memory: float


class Plan(NamedTuple):
    """One or many combinations: t, p, d, v and b."""

    tensor: Any
    pipeline: Any
    data: Any
    chunks: Any
    microbatch: Any


class Cost(NamedTuple):
    """Seconds of an iteration and of its parts, and bytes of the first pipeline rank, which keeps the most activations."""

    seconds: Any
    compute: Any
    bubble: Any
    tensor: Any
    pipeline: Any
    data: Any
    memory: Any


class Plain:
    """The few functions of an array namespace, for plain numbers."""

    @staticmethod
    def where(condition: bool, yes: float, no: float) -> float:
        return yes if condition else no


def a100(*, share: float | None = None, free: bool = False) -> Machine:
    """The paper's machine: 8 A100 of 80 GB in a node, NVLink, and one 200 Gb/s InfiniBand card for each (sections 4 and 5)."""
    gpu = device("a100_80_sxm")
    part = published.SHARE if share is None else share
    infinite = float("inf")
    return Machine(
        rate=gpu.peak("fp16") * part,
        nvlink=infinite if free else gpu.nvlink,
        network=infinite if free else link("infiniband_hdr").rate,
        node=8,
        memory=gpu.memory,
    )


def predict(xp: Any, shape: Shape, batch: int, plan: Plan, machine: Machine, scatter: bool = True) -> Cost:
    """The cost of an iteration of B sequences in half precision with all activations recomputed.

    A microbatch takes (96 b s l h^2 + 16 b s^2 l h) / (p t) operations of a rank and 6 b s h V / t of the last one; it moves
    12 b s h (t - 1) / t numbers a layer over the tensor group (8, and 4 for the recomputation), b s h numbers in each
    direction for each chunk, a t-th of that with ``scatter``, and gradients once: 2 (d - 1) / d of the parameters of a rank. A
    batch takes m + (p - 1) / v times a microbatch. Tensor ranks are neighbours, then replicas, then stages.
    """
    t, p, d, v, b = plan
    h, l, s, heads = shape.width, shape.depth, shape.context, shape.heads
    m = batch / (d * b)
    layers = l / p
    operations = layers * (96.0 * b * s * h**2 + 16.0 * b * s**2 * h) / t + 6.0 * b * s * h * shape.vocabulary / t
    message = 2.0 * b * s * h
    within = xp.where(t <= machine.node, machine.nvlink, machine.network)
    beside = xp.where(t * d < machine.node, machine.nvlink, machine.network)
    around = xp.where(t * d <= machine.node, machine.nvlink, machine.network)
    compute = operations / machine.rate
    tensor = layers * 12 * message * (t - 1) / t / within
    pipeline = xp.where(p > 1, 2.0 * v * message / (t if scatter else 1) / beside, 0.0)
    weights = shape.parameters() / (t * p)
    data = 2 * (d - 1) / d * 2.0 * weights / around
    turns = (p - 1) / v
    one = compute + tensor + pipeline
    # Half-precision weights and gradients, and master copy and moments in float32.
    kept = 2.0 * b * s * h * layers * xp.where(m < p + turns, m, p + turns)
    working = b * s * h * (34 + 5 * heads * s / h) / t
    return Cost(
        seconds=(m + turns) * one + data,
        compute=m * compute,
        bubble=turns * one,
        tensor=m * tensor,
        pipeline=m * pipeline,
        data=data,
        memory=16 * weights + kept + working,
    )


def rate(shape: Shape, batch: int, plan: Plan, cost: Cost) -> Any:
    """FLOP/s of each GPU as the paper counts them: F over time and GPUs."""
    return shape.flops(batch) / (cost.seconds * plan.tensor * plan.pipeline * plan.data)


def fitted_share() -> float:
    """The part of the peak at which the first row of table 1 takes the time that the paper measured.

    One replica on each GPU: all that is not computation is the sum of the gradients.
    """
    row = next(iter(published.TABLE.values()))
    layout = row.layout
    plan = Plan(layout.tensor, layout.pipeline, layout.data, layout.chunks, layout.microbatch)
    cost = predict(Plain, row.shape, row.batch, plan, a100(share=1.0))
    wanted = row.shape.flops(row.batch) / (row.rate * 1e12 * row.gpus)
    return cost.compute / (wanted - cost.data)


def zero3_seconds(shape: Shape, batch: int, gpus: int, microbatch: int, machine: Machine) -> float:
    """An iteration of ZeRO-3 on replicas of one GPU: weights are gathered for the forward and for the recomputed and backward
    pass, and gradients scattered, 3 passes of 2 P bytes over the cards of a node for each accumulated microbatch.

    Source: Rajbhandari et al. 2020 (arXiv 1910.02054), section 7; nothing overlapped, no latency.
    """
    accumulated = batch / (gpus * microbatch)
    moved = 3 * accumulated * 2.0 * shape.parameters() * (gpus - 1) / gpus
    return shape.flops(batch) / gpus / machine.rate + moved / (machine.network * machine.node)
