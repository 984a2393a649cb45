"""A model of packing and sending on Summit: copies block by block against one kernel, with V100s and InfiniBand."""

from __future__ import annotations

import itertools

import numpy as np

from common import hardware
from papers.tempi import published
from papers.tempi.constructions import rows
from papers.tempi.datatypes import BYTE, Datatype, Subarray
from papers.tempi.ir import StridedBlock, canonical, strided_block, translate


def form(described: Datatype) -> StridedBlock:
    tree = translate(described)
    assert tree is not None
    return strided_block(canonical(tree), described.extent)


def kernel(block: StridedBlock) -> float:
    """Seconds of packing with one kernel: launch, whole sectors of the strided side, the packed side.

    t = t_launch + (rows * ceil(counts[0] / 32) * 32 + size) / bandwidth
    """
    sectors = (block.size // block.counts[0]) * -(-block.counts[0] // published.SECTOR)
    moved = sectors * published.SECTOR + block.size
    return published.LAUNCH_SECONDS + moved / hardware.device("v100_sxm2").bandwidth


def blockwise(block: StridedBlock) -> float:
    """Seconds of packing with one copy for each contiguous block, one after the other."""
    return block.size // block.counts[0] * published.COPY_SECONDS


def pack(block: StridedBlock, layer: bool) -> float:
    return kernel(block) if layer else blockwise(block)


def network(size: int | float, rails: int = 1) -> float:
    """Seconds of a message of GPU memory between nodes."""
    edr = hardware.link("infiniband_edr")
    return edr.latency + size / (edr.usable * rails)


def speedup_of_pack(layer: bool) -> float:
    largest = form(rows(published.OBJECT, published.BLOCK, published.STRIDE))
    return blockwise(largest) / pack(largest, layer)


def speedup_of_send(layer: bool) -> float:
    """Pack, message, unpack, as half a ping-pong has them."""
    largest = form(rows(published.OBJECT, published.BLOCK, published.STRIDE))
    message = network(largest.size)
    return (2 * blockwise(largest) + message) / (2 * pack(largest, layer) + message)


def regions() -> dict[tuple[int, int, int], StridedBlock]:
    """What a rank sends of one quantity to each of its 26 neighbours, by direction along (z, y, x)."""
    n, r, item = published.LOCAL, published.RADIUS, published.ITEM
    whole, found = n + 2 * r, {}
    for direction in itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)):
        if any(direction):
            counts = [r if d else n for d in direction]
            starts = [n if d > 0 else r for d in direction]
            box = Subarray((whole, whole, whole * item), (*counts[:2], counts[2] * item), (*starts[:2], starts[2] * item), BYTE)
            found[direction] = form(box)
    return found


def exchange() -> float:
    """Seconds of moving the packed halos: what leaves the busiest node over its rails, or what stays in it over NVLink."""
    nx, ny, nz = published.GRID
    rank = np.arange(published.RANKS).reshape(nz, ny, nx)
    off, on = np.zeros(published.RANKS), np.zeros(published.RANKS)
    for direction, block in regions().items():
        # The neighbour in a periodic domain.
        other = np.roll(rank, [-d for d in direction], axis=(0, 1, 2))
        away = (other // published.PER_NODE != rank // published.PER_NODE).reshape(-1)
        size = block.size * published.QUANTITIES
        off += size * away
        on += size * ~away
    node = off.reshape(-1, published.PER_NODE).sum(axis=1).max()
    return max(network(node, published.RAILS), on.max() / published.PEER_BANDWIDTH)


def speedup_of_halo(layer: bool) -> float:
    """All quantities are packed for all neighbours, exchanged, and unpacked."""
    moved, blocks = exchange(), list(regions().values())
    ends = {on: 2 * published.QUANTITIES * sum(pack(block, on) for block in blocks) for on in (False, True)}
    return (ends[False] + moved) / (ends[layer] + moved)
