"""Bytes of live torch storage and of what autograd keeps, counted as a program runs: measurements, not formulas."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
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


class Saved:
    """Counts what autograd keeps for the backward pass of what runs within the block: each storage once.

        with Saved(*model.parameters()) as saved:
            loss = criterion(model(x), y)
        saved.bytes, saved.numbers

    Args:
        there: tensors that exist anyhow, such as parameters, and do not count.
    """

    def __init__(self, *there: torch.Tensor) -> None:
        self._there = {tensor.untyped_storage()._cdata for tensor in there}
        self._found: dict[int, torch.Tensor] = {}
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._found.values())

    @property
    def numbers(self) -> int:
        return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in self._found.values())

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in self._there:
            # The tensor is held, so that its storage's number is not given to another.
            self._found.setdefault(storage, tensor)
        return tensor
