"""Memory with a hard budget: blocks are carved from one region, and what does not fit is an error, never a larger region."""

from __future__ import annotations

import math
import mmap
import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

MIB = 2**20
ALIGNMENT = 64
"""Bytes. JAX takes NumPy memory without a copy only at multiples of this."""


class OutOfBudget(MemoryError):
    """An allocation that would exceed the budget; nothing was allocated.

    Attributes:
        needed, free, budget: bytes. ``largest``: the largest hole, less than ``free`` where memory is fragmented.
    """

    def __init__(self, memory: str, what: str, needed: int, free: int, largest: int, budget: int) -> None:
        self.needed, self.free, self.largest, self.budget = needed, free, largest, budget
        why = f"{free:,} of its {budget:,} bytes are free"
        if free >= needed:
            why += f", but the largest hole has {largest:,} (allocate blocks of one size, or large ones first)"
        super().__init__(f"{memory}: {what!r} needs {needed:,} bytes; {why}")


class Arena:
    """A region of ``budget`` bytes on one device that blocks are allocated in and freed from.

    Allocation is first fit, sizes are rounded up to ``alignment``, and neighbouring holes are joined. All methods may be
    called from several threads.

    Args:
        budget: bytes that may be held at once, rounding included.
        device: "cpu" takes pages of RAM, which count only when first written; otherwise a torch device such as "cuda".
        alignment: a power of two; every block starts at a multiple of it.
        poison: overwrite freed blocks with NaN, so that a use after the release shows. For tests.

    Attributes:
        used, peak: bytes held now and at most since the start or the last :meth:`reset_peak`.

    Raises:
        ValueError: a budget below one unit of alignment; an alignment that is no power of two.
    """

    kind = "arena"

    def __init__(self, budget: int, *, device: str = "cpu", alignment: int = ALIGNMENT, poison: bool = False) -> None:
        if alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"alignment is {alignment}; wanted a power of two")
        if budget < alignment:
            raise ValueError(f"the budget is {budget} bytes; wanted at least one unit of alignment, {alignment}")
        self.budget, self.device, self.alignment, self.poison = int(budget), device, alignment, poison
        self.used = self.peak = 0
        self._holes = [(0, self.budget)]
        self._lock = threading.Lock()
        self._region = self._reserve()

    @property
    def free(self) -> int:
        return self.budget - self.used

    def allocate(self, size: int, name: str = "block") -> Block:
        """A block of ``size`` bytes, its content undefined.

        Raises:
            OutOfBudget: no hole is large enough; says what was needed, what is free, and the budget.
            ValueError: a size below 1.
        """
        if size < 1:
            raise ValueError(f"{name!r}: {size} bytes asked for; wanted at least 1")
        room = self.rounded(size)
        with self._lock:
            index = next((i for i, (_, hole) in enumerate(self._holes) if hole >= room), None)
            if index is None:
                largest = max((hole for _, hole in self._holes), default=0)
                raise OutOfBudget(self.kind, name, room, self.free, largest, self.budget)
            offset, hole = self._holes[index]
            self._holes[index : index + 1] = [(offset + room, hole - room)] if hole > room else []
            self.used += room
            self.peak = max(self.peak, self.used)
        return Block(self, name, offset, size)

    def rounded(self, size: int) -> int:
        """The bytes that a block of this size takes from the budget."""
        return -(-size // self.alignment) * self.alignment

    def reset_peak(self) -> None:
        self.peak = self.used

    def _reserve(self) -> Any:
        """The bytes: a NumPy array over anonymous pages, or a torch tensor on another device."""
        if self.device == "cpu":
            return np.frombuffer(mmap.mmap(-1, self.budget), np.uint8)
        import torch

        return torch.empty(self.budget, dtype=torch.uint8, device=self.device)

    def _release(self, block: Block) -> None:
        with self._lock:
            if block.freed:
                raise ValueError(f"{self.kind}: {block.name!r} was freed already")
            if self.poison:
                self._region[block.offset : block.offset + block.size] = 255
            block.freed = True
            start, end = block.offset, block.offset + self.rounded(block.size)
            self.used -= end - start
            after = next((i for i, (offset, _) in enumerate(self._holes) if offset > start), len(self._holes))
            if after < len(self._holes) and self._holes[after][0] == end:
                end += self._holes.pop(after)[1]
            if after and sum(self._holes[after - 1]) == start:
                start = self._holes.pop(after - 1)[0]
                after -= 1
            self._holes.insert(after, (start, end - start))


class Pool(Arena):
    """Host memory with a budget, in pinned pages where torch is in use and sees a GPU. A cap on RAM that is kept.

    Raises:
        RuntimeError: pinned memory is asked for where there is no CUDA.
    """

    kind = "pool"

    def __init__(self, budget: int, *, pinned: bool | None = None, alignment: int = ALIGNMENT, poison: bool = False) -> None:
        torch = sys.modules.get("torch")
        possible = torch is not None and torch.cuda.is_available()
        if pinned and not possible:
            raise RuntimeError("pinned memory needs torch, imported before, and a CUDA device; leave pinned=None to do without")
        self.pinned = possible if pinned is None else pinned
        super().__init__(budget, alignment=alignment, poison=poison)

    def _reserve(self) -> Any:
        if not self.pinned:
            return super()._reserve()
        import torch

        return torch.empty(self.budget, dtype=torch.uint8, pin_memory=True).numpy()


class Block:
    """Bytes of an arena or pool: ``with arena.allocate(n) as block`` frees them at the end."""

    def __init__(self, memory: Arena, name: str, offset: int, size: int) -> None:
        self.memory, self.name, self.offset, self.size, self.freed = memory, name, offset, size, False

    def numpy(self, dtype: Any = np.uint8, shape: Sequence[int] | None = None, start: int = 0) -> np.ndarray:
        """A view as NumPy array. Without a shape it is flat and takes all that fits.

        Args:
            start: byte of the block that the view begins at.

        Raises:
            ValueError: freed; a shape that does not fit; memory of a GPU.
        """
        kind = np.dtype(dtype)
        found, wanted = self._bytes(kind.itemsize, shape, start)
        if not isinstance(found, np.ndarray):
            raise ValueError(f"{self.name!r} is on {self.memory.device}; take .torch() or .jax()")
        return found.view(kind).reshape(wanted)

    def torch(self, dtype: Any, shape: Sequence[int] | None = None, start: int = 0) -> Any:
        """A view as torch tensor of a torch dtype."""
        import torch

        found, wanted = self._bytes(dtype.itemsize, shape, start)
        return (torch.from_numpy(found) if isinstance(found, np.ndarray) else found).view(dtype).reshape(wanted)

    def jax(self, dtype: Any, shape: Sequence[int] | None = None, start: int = 0) -> Any:
        """The content as JAX array, without a copy except for bfloat16 and offsets that are no multiple of 64.

        JAX takes arrays for immutable: block until what reads the array is done before the block is written or freed.
        """
        import jax
        import jax.numpy as jnp

        kind = jnp.dtype(dtype)
        found, wanted = self._bytes(kind.itemsize, shape, start)
        if kind == jnp.bfloat16 and isinstance(found, np.ndarray):  # unknown to NumPy's side of the exchange protocol
            return jax.lax.bitcast_convert_type(jnp.from_dlpack(found.view(np.uint16).reshape(wanted)), kind)
        if not isinstance(found, np.ndarray):
            return jnp.from_dlpack(self.torch(_torch(kind), wanted, start))
        return jnp.from_dlpack(found.view(kind).reshape(wanted))

    def free(self) -> None:
        self.memory._release(self)

    def __enter__(self) -> Block:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def _bytes(self, item: int, shape: Sequence[int] | None, start: int) -> tuple[Any, tuple[int, ...]]:
        if self.freed:
            raise ValueError(f"{self.name!r} was freed; nothing of it may be used")
        wanted = ((self.size - start) // item,) if shape is None else tuple(shape)
        end = start + math.prod(wanted) * item
        if start < 0 or end > self.size:
            raise ValueError(f"{self.name!r} has {self.size} bytes; a view of {wanted} at {start} needs {end}")
        return self.memory._region[self.offset + start : self.offset + end], wanted


class Slots:
    """A fixed number of equal blocks that are handed out and given back: steady state without an allocation.

    Raises:
        OutOfBudget: the memory cannot hold them; nothing stays allocated.
    """

    def __init__(self, memory: Arena, count: int, size: int, name: str = "slot") -> None:
        needed = count * memory.rounded(size)
        if needed > memory.free:
            raise OutOfBudget(memory.kind, f"{count} x {name}", needed, memory.free, memory.free, memory.budget)
        self.size, self.blocks = size, [memory.allocate(size, f"{name} {i}") for i in range(count)]
        self._free: queue.SimpleQueue[Block] = queue.SimpleQueue()
        self._out: set[int] = set()
        for block in self.blocks:
            self._free.put(block)

    def acquire(self, timeout: float | int | None = None) -> Block:
        """A block that nobody holds; waits for one, at most ``timeout`` seconds (then TimeoutError)."""
        try:
            block = self._free.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no slot came free in {timeout} s; all {len(self.blocks)} are held") from None
        self._out.add(id(block))
        return block

    def release(self, block: Block) -> None:
        """Give a block back.

        Raises:
            ValueError: it is none of these, or was given back already.
        """
        if id(block) not in self._out:
            raise ValueError(f"{block.name!r} is not held: it belongs elsewhere or was given back already")
        self._out.remove(id(block))
        self._free.put(block)

    def close(self) -> None:
        for block in self.blocks:
            block.free()


def _torch(kind: Any) -> Any:
    import torch

    return getattr(torch, kind.name)
