"""How an unchanged model comes to its parameters: hooks of its modules, of autograd, and of the dictionaries they lie in."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.offload import Block
from papers.zero_infinity.construct import Built, absent
from papers.zero_infinity.fetch import Fetcher
from papers.zero_infinity.partition import Unit


class Reference(NamedTuple):
    """What autograd keeps of a parameter."""

    number: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Hooks:
    """Fetches what a model reads, where it reads it, and releases it behind.

    Args:
        gradient: called with (number, gradient) as soon as a parameter's gradient is whole.

    Attributes:
        external: names of parameters that a module has read which are not its own, by the module's name.
    """

    def __init__(
        self, model: nn.Module, built: Built, units: Sequence[Unit], dtype: torch.dtype, gradient: Callable[[int, Tensor], None]
    ) -> None:
        self.units, self.dtype, self.gradient = units, dtype, gradient
        self.external: dict[str, set[str]] = defaultdict(set)
        self.fetcher: Fetcher | None = None
        self._numbers, self._parameters = built.numbers, built.parameters
        self._frames: list[tuple[str, list[int]]] = []
        self._backward = False
        self._ranges: dict[int, tuple[int, int]] = {}
        for name, module in model.named_modules():
            own = [self._numbers[id(each)] for each in module._parameters.values() if each is not None]
            module._parameters = _Watched(module._parameters, self)
            module.register_forward_pre_hook(partial(self._before, name, own))
            module.register_forward_hook(self._after, always_call=True)
        for number, parameter in enumerate(self._parameters):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))

    @contextlib.contextmanager
    def running(self, fetcher: Fetcher, program: str, gradients: bool) -> Iterator[None]:
        """One pass of the model."""
        self.fetcher, self._frames, self._backward = fetcher, [("", [])], False
        saving = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack) if gradients else contextlib.nullcontext()
        try:
            with fetcher.program(program), saving:
                yield
        finally:
            self.fetcher = None

    def forward_ends(self) -> None:
        """What follows is the backward pass."""
        self._end_frame()
        self._backward = True

    def changed(self, unit: Unit, block: Block | None) -> None:
        """A tensor has become whole, or is about to go."""
        parameter = self._parameters[unit.index]
        if block is None:
            absent(parameter)
            del self._ranges[unit.index]
            return
        whole = block.torch(self.dtype)
        parameter.data = whole[: unit.count].view(unit.shape)
        self._ranges[unit.index] = whole.data_ptr(), whole.data_ptr() + whole.nbytes

    def accessed(self, parameter: nn.Parameter | None) -> None:
        """A module, or who knows it, reads a parameter."""
        if parameter is None or self.fetcher is None or not self._frames:
            return
        number = self._numbers[id(parameter)]
        if not self.fetcher.holds(number):
            self.external[self._frames[-1][0]].add(self.units[number].name)
            self._need(number)

    def _before(self, name: str, own: list[int], module: nn.Module, inputs: Any) -> None:
        if self.fetcher is not None:
            self._frames.append((name, []))
            for number in own:
                self._need(number)

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.fetcher is not None:
            self._end_frame()

    def _need(self, number: int) -> None:
        """Fetch for the module that is running, which releases what was not there when it began."""
        assert self.fetcher is not None
        if not self.fetcher.holds(number):
            self._frames[-1][1].append(number)
            self.fetcher.need(number)

    def _end_frame(self) -> None:
        """Release what a module has fetched. What a recomputation within the backward pass fetches stays until its gradient:
        it is needed again at once, and what torch's checkpoint keeps then are views of it, not references."""
        assert self.fetcher is not None
        held = self._frames.pop()[1]
        if not self._backward:
            for number in held:
                self.fetcher.release(number)

    def _arrived(self, number: int, parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None and self.fetcher is not None
        self.gradient(number, gradient)
        self.fetcher.release(number)

    def _pack(self, tensor: Tensor) -> Tensor | Reference:
        pointer = tensor.data_ptr()
        for number, (first, last) in self._ranges.items():
            if first <= pointer < last:
                return Reference(number, (pointer - first) // self.dtype.itemsize, tuple(tensor.shape), tensor.stride())
        return tensor

    def _unpack(self, saved: Tensor | Reference) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        assert self.fetcher is not None
        self.fetcher.need(saved.number)
        flat = self.fetcher.resident[saved.number].torch(self.dtype)
        return flat.as_strided(saved.shape, saved.stride, saved.offset)


class _Watched(dict[str, Any]):
    """A module's parameters, which tell when one is read."""

    def __init__(self, parameters: dict[str, Any], hooks: Hooks) -> None:
        super().__init__(parameters)
        self._hooks = hooks

    def __getitem__(self, name: str) -> Any:
        parameter = super().__getitem__(name)
        self._hooks.accessed(parameter)
        return parameter
