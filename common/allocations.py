"""Bytes of live torch storage, counted as a program runs: its high-water mark is a measurement, not a formula."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the storage of every tensor that an operation makes while the mode is on, until it is freed.

        with Allocations(q, k, v) as bytes:
            attention(q, k, v)
        bytes.peak

    It works on real tensors and on the meta device, where the largest run costs nothing. Storage that an operation of
    PyTorch's own allocates and frees inside itself is not seen.

    Args:
        held: tensors that exist already and are counted too.
        granularity: every storage is rounded up to a multiple of this many bytes; 512 is what the CUDA allocator does.
    """

    def __init__(self, *held: torch.Tensor, granularity: int = 1) -> None:
        super().__init__()
        self.granularity = granularity
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in held:
            self._count(tensor)

    def reset_peak(self) -> None:
        self.peak = self.live

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        outputs = function(*arguments, **(options or {}))
        for each in tree_leaves(outputs):
            if isinstance(each, torch.Tensor):
                self._count(each)
        return outputs

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = -(-storage.nbytes() // self.granularity) * self.granularity
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size
