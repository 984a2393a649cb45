"""Partitioned initialisation: each parameter is cut up the moment its module registers it, so the model never exists whole.

The model's code stays as it is. What it does to a parameter in place while it is being built (``kaiming_uniform_``,
``copy_`` ...) is done to the whole tensor, made for that call alone, and every rank keeps its slice of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from papers.zero_infinity.partition import Unit


@runtime_checkable
class Slices(Protocol):
    """Where the slices of a tensor under construction go to and come from."""

    def keep(self, unit: Unit, whole: Tensor) -> None: ...
    def whole(self, unit: Unit, dtype: torch.dtype) -> Tensor: ...


class Built:
    """What a partitioned construction has found.

    Attributes:
        units: all parameters in the order of their registration, under provisional names.
        numbers: of the units, by the identity of their parameters.
        largest: elements of the largest tensor that was whole at any time.
    """

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.parameters: list[nn.Parameter] = []
        self.numbers: dict[int, int] = {}
        self.largest = 0

    def named(self, model: nn.Module) -> list[Unit]:
        """The units under the model's names. A parameter that is no longer part of the model keeps its provisional name."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.units = [
            Unit(unit.index, names.get(id(parameter), unit.name), unit.shape)
            for unit, parameter in zip(self.units, self.parameters, strict=True)
        ]
        return self.units


@contextmanager
def partitioned(slices: Slices | None) -> Iterator[Built]:
    """Within this context, parameters that modules register are cut into slices.

    Args:
        slices: takes them; None drops all content, for models whose weights come from elsewhere or that are only counted.
    """
    built = Built()
    register = nn.Module.register_parameter

    def patched(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and id(parameter) not in built.numbers:
            unit = Unit(len(built.units), f"{type(module).__name__}.{name}", tuple(parameter.shape))
            built.numbers[id(parameter)] = unit.index
            built.units.append(unit)
            built.parameters.append(parameter)
            built.largest = max(built.largest, unit.count)
            if slices is not None:
                slices.keep(unit, parameter.detach())
            absent(parameter)

    nn.Module.register_parameter = patched  # type: ignore[method-assign, assignment]
    try:
        with _InPlace(built, slices):
            yield built
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def absent(parameter: nn.Parameter) -> None:
    """Let a parameter hold one NaN in place of its content: its shape stays, and a use that was not fetched for shows."""
    parameter.data = torch.full((1,), torch.nan, dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


class _InPlace(TorchFunctionMode):
    """Carries out changes in place to parameters that are cut up."""

    def __init__(self, built: Built, slices: Slices | None) -> None:
        super().__init__()
        self.built, self.slices = built, slices

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target: Any = args[0] if args else kwargs.get("tensor")
        if not (name.endswith("_") and not name.startswith("_") and id(target) in self.built.numbers):
            return func(*args, **kwargs)
        if self.slices is None:
            return target
        parameter, unit = target, self.built.units[self.built.numbers[id(target)]]
        parameter.data = self.slices.whole(unit, parameter.dtype)
        result = func(*args, **kwargs)
        self.slices.keep(unit, parameter.detach())
        absent(parameter)
        return result
