"""Operations: declared once, found by the type and device of their arrays.

A room (``kernels/<op>/`` or ``papers/<slug>/kernel/``) declares its public functions with :func:`operation`. The
function stays an ordinary function with a signature and a docstring; it checks its input and ends by handing over:

    @operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x",), tuning=("block",))
    def double(x, *, block=64, backend=None):
        '''y = 2 x ...'''
        return double.operation(x, block=block, backend=backend)

Each backend is one file beside it (``torch_impl.py``, ...) with a function of the same name, imported when it is first
used: who works in torch never pays for jax. ``reference.py`` is the definition and does not take the tuning arguments.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from common import ROOT

FRAMEWORK = {"torch": "torch", "triton": "torch", "jax": "jax", "pallas": "jax"}
"""Backend -> the framework whose arrays it takes. The reference takes NumPy arrays and torch tensors."""

_ARRAYS = {("torch", "Tensor"): "torch", ("jaxlib", "ArrayImpl"): "jax", ("jax", "Tracer"): "jax", ("numpy", "ndarray"): "numpy"}
# Types that torch.compile meets in calls are known from the start: while it traces, it can note no others.
_framework_of_type: dict[type, str | None] = dict.fromkeys((int, float, bool, str, tuple, list, type(None)), None)


@dataclass(frozen=True, eq=False)
class Case:
    """One input of an operation, for its tests and benchmarks.

    ``make(rng)`` returns the keyword arguments: arrays as NumPy (floats in float64, drawn once for all backends),
    everything else as it is. ``tolerance`` maps a dtype name to the largest relative error allowed (an exact operation
    ignores it); ``why`` says why it is wider than the house rule. ``large`` cases are for the benchmark alone.
    """

    id: str
    make: Callable[[np.random.Generator], dict[str, Any]]
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"float64": 1e-9, "float32": 1e-5})
    why: str = ""
    backends: tuple[str, ...] | None = None
    large: bool = False


class Shipped(NamedTuple):
    """One Triton kernel in a configuration that can be launched; compiled ahead of time for every target by the tests.

    ``signature`` gives the type of each argument in order (``"*fp32"``, ``"i32"``, ``"constexpr"``), ``constexprs`` the
    values of those, ``options`` num_warps and num_stages. ``spills`` says why registers may spill, if they may.
    """

    id: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int]
    targets: tuple[str, ...] = ("sm_80", "sm_90", "sm_100", "gfx942")
    spills: str = ""


class Exported(NamedTuple):
    """One Pallas kernel with the shapes (shape, dtype name) and the platforms it must lower for."""

    id: str
    function: Callable[..., Any]
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    platforms: tuple[str, ...] = ("cuda", "tpu")


@dataclass(frozen=True, eq=False)
class Operation:
    """What is known of an operation, and the call that dispatches it."""

    name: str
    room: str
    backends: tuple[str, ...]
    differentiable: tuple[str, ...] = ()
    exact: bool = False
    tuning: tuple[str, ...] = ()
    double: tuple[str, ...] = ("torch", "jax")
    vjp: Callable[..., Any] | None = None
    loaded: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.room.removeprefix('kernels.').removeprefix('papers.')}.{self.name}"

    def __call__(self, *arrays: Any, backend: str | None = None, **options: Any) -> Any:
        if backend is None:
            backend = self._choose(arrays, options)
        else:
            self._check(backend, arrays, options)
        if backend == "reference":
            options = {name: value for name, value in options.items() if name not in self.tuning}
        return self.implementation(backend)(*arrays, **options)

    def implementation(self, backend: str) -> Callable[..., Any]:
        """The function of one backend; its file is imported at the first call."""
        if backend not in self.loaded:
            self._load(backend)
        return self.loaded[backend]

    def cases(self) -> list[Case]:
        return importlib.import_module(f"{self.room}.cases").CASES[self.name]

    def peers(self) -> dict[str, Callable[..., Any]]:
        """What a user would take instead, by name: functions of the same keyword arguments, for the benchmark."""
        return getattr(importlib.import_module(f"{self.room}.cases"), "PEERS", {}).get(self.name, {})

    def _load(self, backend: str) -> None:
        if backend not in ("reference", *self.backends):
            raise ValueError(f"{self.name}: no backend {backend!r}; it has {', '.join(('reference', *self.backends))}")
        file = "reference" if backend == "reference" else f"{backend}_impl"
        try:
            module = importlib.import_module(f"{self.room}.{file}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in (*FRAMEWORK, "jaxlib"):
                raise
            raise RuntimeError(
                f"{self.name}: backend {backend!r} needs the package {error.name!r}, which is not installed here"
            ) from error
        self.loaded[backend] = getattr(module, self.name)

    def _choose(self, arrays: tuple[Any, ...], options: dict[str, Any]) -> str:
        array, kind = self._array(arrays, options)
        if kind == "numpy":
            return "reference"
        if kind == "torch":
            return "triton" if array.device.type == "cuda" and "triton" in self.backends else "torch"
        return "pallas" if _jax_platform(array) != "cpu" and "pallas" in self.backends else "jax"

    def _check(self, backend: str, arrays: tuple[Any, ...], options: dict[str, Any]) -> None:
        if backend not in ("reference", *self.backends):
            self._load(backend)  # raises, naming the backends there are
        array, kind = self._array(arrays, options)
        wanted = ("numpy", "torch") if backend == "reference" else (FRAMEWORK[backend],)
        if kind not in wanted:
            raise TypeError(f"{self.name}: backend {backend!r} takes {' or '.join(wanted)} arrays, got {kind} arrays")
        if backend == "triton" and array.device.type == "cpu" and not os.environ.get("TRITON_INTERPRET"):
            raise RuntimeError(
                f"{self.name}: backend 'triton' needs tensors on a GPU, got the cpu; use backend='torch', "
                "or set TRITON_INTERPRET=1 before the start to interpret the kernel"
            )

    def _array(self, arrays: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, str]:
        """The first array and the one framework that all arrays belong to."""
        first, kind = None, None
        for value in (*arrays, *options.values()):
            found = framework(value)
            if found is None:
                continue
            if kind is None:
                first, kind = value, found
            elif kind != found:
                raise TypeError(
                    f"{self.name}: all arrays must come from one framework, got {kind} and {found}; convert one of them"
                )
        if kind is None:
            raise TypeError(
                f"{self.name}: expected torch tensors, jax arrays or NumPy arrays, got {', '.join(type(a).__name__ for a in arrays)}"
            )
        return first, kind


def operation(
    *,
    backends: tuple[str, ...],
    differentiable: tuple[str, ...] = (),
    exact: bool = False,
    tuning: tuple[str, ...] = (),
    double: tuple[str, ...] = ("torch", "jax"),
    vjp: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as an operation of its room; the :class:`Operation` hangs on it as ``.operation``.

    Args:
        backends: those with a file, of torch, triton, jax, pallas (the reference always exists).
        differentiable: arguments whose gradients are checked.
        exact: results are compared by dtype and bits instead of a tolerance.
        tuning: arguments that choose how (block, variant), never what; the reference does not take them.
        double: backends that compute in float64; only these are checked in it.
        vjp: oracle of the vector-Jacobian product where the reference cannot be differentiated by torch autograd:
            ``vjp(arguments, cotangents) -> {argument: gradient}``, all NumPy float64.
    """

    def declare(function: Callable[..., Any]) -> Any:
        known = (backends, differentiable, exact, tuning, double, vjp)
        setattr(function, "operation", Operation(function.__name__, function.__module__, *known))  # noqa: B010
        return function

    return declare


def framework(value: Any) -> str | None:
    """'torch', 'jax' or 'numpy' for an array of that framework, else None. Imports nothing."""
    kind = type(value)
    if kind not in _framework_of_type:
        names = [(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__]
        _framework_of_type[kind] = next((_ARRAYS[name] for name in names if name in _ARRAYS), None)
    return _framework_of_type[kind]


def readable(array: Any) -> bool:
    """Whether looking at an array's values is free: not while tracing, and not from another device."""
    kind = framework(array)
    if kind == "torch":
        torch = sys.modules["torch"]
        plain = type(array) in (torch.Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
        return plain and array.device.type == "cpu"
    if kind == "jax":
        import jax

        if isinstance(array, jax.core.Tracer) or any(device.platform != "cpu" for device in array.devices()):
            return False
        # Inside a traced function even a constant cannot be looked at: every operation on it is traced.
        return not isinstance(jax.lax.neg(1), jax.core.Tracer)
    return kind == "numpy"


def discover() -> Iterator[Operation]:
    """Every operation of the checkout, by room and name."""
    rooms = sorted([*ROOT.glob("kernels/*/__init__.py"), *ROOT.glob("papers/*/kernel/__init__.py")])
    for room in rooms:
        module = importlib.import_module(".".join(room.parent.relative_to(ROOT).parts))
        for name in sorted(vars(module)):
            found = getattr(vars(module)[name], "operation", None)
            if isinstance(found, Operation) and found.room == module.__name__:
                yield found


def _jax_platform(array: Any) -> str:
    import jax

    # A tracer has no device; what is traced will run on the default backend.
    return jax.default_backend() if isinstance(array, jax.core.Tracer) else next(iter(array.devices())).platform
