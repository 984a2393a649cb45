"""Bytes on the device: exactly, of the engine here; and for the authors' code on OPT, item by item."""

from __future__ import annotations

from collections.abc import Callable

from common.architecture import Transformer
from papers.zo2 import published
from papers.zo2.units import Units

SLOTS = 3
"""Blocks on the device: one arrives, one is computed, one leaves (paper, section 5.1)."""


def arena_bytes(
    units: Units, item: int, wire: int, offloaded: int, plus: bool, bucket: bool, rounded: Callable[[int], int]
) -> int:
    """Bytes that :class:`papers.zo2.zo2_torch.ZO2` holds in its arena, never more nor less.

    Args:
        item, wire: bytes of a number on the device and on the wire.
        offloaded: blocks that travel. ``plus``: a tied embedding is held twice. ``bucket``: a slot is one allocation.
        rounded: what an allocation of so many bytes takes.
    """
    block, first, tail = units.blocks[0], units.first.count * item, units.tail.count * item
    slot = rounded(block.count * wire) if bucket else sum(rounded(each.count * wire) for each in block.parameters)
    wide = rounded(block.count * item) if wire != item else 0
    stay = (len(units.blocks) - offloaded) * rounded(block.count * item)
    return rounded(first) * (2 if plus else 1) + rounded(tail) + stay + SLOTS * slot + wide


def opt(name: str) -> Transformer:
    """The decoder of an OPT model (its linear layers have biases, which :func:`opt_parameters` adds)."""
    depth, width = published.OPT[name]
    return Transformer(
        width=width, depth=depth, heads=width // 64, kv_heads=width // 64, head_dim=64, hidden=4 * width, context=published.CONTEXT,
        vocabulary=published.VOCABULARY, feed_forward="gelu", norm="layer", positions="learned",
    )  # fmt: skip


def opt_parameters(name: str) -> int:
    """Trainable numbers with all biases, the head tied; learned positions have two more rows than the context."""
    a = opt(name)
    biases = a.depth * (3 * a.width + a.width + a.hidden + a.width)
    return a.parameters() + biases + published.EXTRA_POSITIONS * a.width


def block_parameters(name: str) -> int:
    """Numbers of one block: four square matrices, two of 4 times the size, biases, two norms: 12 h^2 + 13 h."""
    width = published.OPT[name][1]
    return 12 * width**2 + 13 * width


def opt_gigabytes(name: str, offload: bool = True, item: int = 2, logit_bytes: int = published.LOGIT_BYTES) -> dict[str, float]:
    """Device memory of a training step of the authors' code, batch 1, as NVML reports it, in GB by item.

    - base: what the driver, the CUDA context and cuBLAS hold before the first tensor (not from the paper);
    - resident: embedding, positions, last norm; the head is the embedding;
    - blocks: 3 that travel, or all;
    - workspace: the larger of the temporaries of an update, which live while the sum is formed (z, g z, decay theta and
      their sum, each as large as the largest tensor), and of the loss (both logits, both shifted copies, a log-softmax).
      One pool serves both, as PyTorch keeps what was freed.
    """
    depth, width = published.OPT[name]
    table = published.VOCABULARY * width
    resident = table + (published.CONTEXT + published.EXTRA_POSITIONS) * width + 2 * width
    blocks = (SLOTS if offload else depth) * block_parameters(name)
    update = 4 * item * max(table, 4 * width**2)
    loss = 5 * logit_bytes * published.VOCABULARY * published.CONTEXT
    items = {"base": published.BASE_BYTES, "resident": item * resident, "blocks": item * blocks, "workspace": max(update, loss)}
    return {name: size / 1e9 for name, size in items.items()}
