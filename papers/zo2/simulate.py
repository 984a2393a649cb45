"""When a step ends: the three queues as a recurrence, for many scenarios at once, in PyTorch and in JAX.

The text works on arrays of both; a scenario is one entry. Times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from papers.zo2 import published
from papers.zo2.memory_model import SLOTS, block_parameters

TENSORS = 16
"""Of one block of OPT: six matrices and their biases, two norms of two."""

ALLOCATION = 1e-4
"""Seconds of one cudaMalloc with its cudaFree, which wait for the device. Assumed: what is usual."""


@dataclass(frozen=True)
class Step:
    """Durations of a step: of the first unit and the tail, and of a block's way up, its computation, its way down."""

    first: Any
    up: Any
    compute: Any
    down: Any
    tail: Any


def pipelined(step: Step, blocks: int, maximum: Any = np.maximum) -> Any:
    """End of a step whose copies overlap with the computation.

    With U, C, O the ends of upload, computation and offload of block i:
        U_i = max(U_(i-1), O_(i-3)) + up,  C_i = max(C_(i-1), U_i) + compute,  O_i = max(O_(i-1), C_i) + down

    Args:
        maximum: of the arrays' framework: ``torch.maximum``, ``jnp.maximum``.
    """
    zero = step.up * 0
    upload, compute, offload = zero, step.first + zero, zero
    left = [zero] * SLOTS
    for i in range(blocks):
        upload = maximum(upload, left[i % SLOTS]) + step.up
        compute = maximum(compute, upload) + step.compute
        offload = maximum(offload, compute) + step.down
        left[i % SLOTS] = offload
    return maximum(offload, compute + step.tail)


def pipelined_scan(step: Step, blocks: int) -> Float[Any, "*scenarios"]:
    """The same in JAX as one compiled loop."""
    import jax
    import jax.numpy as jnp

    def advance(state: Any, _: None) -> tuple[Any, None]:
        upload, compute, left = state
        upload = jnp.maximum(upload, left[0]) + step.up
        compute = jnp.maximum(compute, upload) + step.compute
        offload = jnp.maximum(left[-1], compute) + step.down
        return (upload, compute, jnp.concatenate([left[1:], offload[None]])), None

    zero = jnp.zeros_like(step.up)
    start = (zero, zero + step.first, jnp.zeros((SLOTS, *zero.shape)))
    (_, compute, left), _ = jax.lax.scan(advance, start, length=blocks)
    return jnp.maximum(left[-1], compute + step.tail)


def serial(step: Step, blocks: int) -> Any:
    """End of a step that waits for every copy."""
    return step.first + blocks * (step.up + step.compute + step.down) + step.tail


def opt_step(name: str, free_link: bool = False) -> dict[str, float]:
    """Durations of a float16 step of an OPT model on an A100 with PCIe 4.0, batch 1, whole context.

    Two forward passes of a block are 2 (24 h^2 T + 4 h T^2) operations. The three perturbations and the update move about
    74 bytes of memory for each weight: z drawn, scaled twice and added (16 bytes, three times), and 26 for the update.
    """
    depth, width = published.OPT[name]
    gpu, tokens = published.A100, published.CONTEXT
    products, memory, link = gpu["flops"] * published.EFFICIENCY, gpu["memory"], np.inf if free_link else gpu["link"]
    table = published.VOCABULARY * width
    perturb, update = 48 / memory, 26 / memory
    forward = 2 * (24 * width**2 * tokens + 4 * width * tokens**2) / products
    head = 2 * 2 * table * tokens / products
    weights = block_parameters(name)
    return {
        "blocks": depth,
        "copy": 2 * weights / link,
        "compute": forward + weights * (perturb + update),
        "update": weights * update,
        "first": table * (perturb + update),
        "tail": head + table * perturb,
    }


def variants(name: str, free_link: bool = False) -> dict[str, float]:
    """Seconds of a step: "resident" (MeZO, all in memory), "full", and with one switch off each."""
    t = opt_step(name, free_link)
    n, copy = int(t["blocks"]), t["copy"]
    full = Step(t["first"], copy, t["compute"], copy, t["tail"])
    # An update of its own: the first pass without it, a second pass of nothing else.
    lean = Step(t["first"], copy, t["compute"] - t["update"], copy, t["tail"])
    late = Step(0.0, copy, t["update"], copy, 0.0)
    # Each tensor allocated anew, and the device waits for it.
    loose = Step(t["first"], copy, t["compute"] + TENSORS * ALLOCATION, copy, t["tail"])
    return {
        "resident": t["first"] + n * t["compute"] + t["tail"],
        "full": float(pipelined(full, n)),
        "no overlap": float(serial(full, n)),
        "no reusable memory": float(pipelined(loose, n)),
        "no efficient update": float(pipelined(lean, n) + pipelined(late, n)),
    }
