"""Agreement: every backend against the definition, PyTorch against JAX, the first thing that differs named.

The relative error of an array is max|got - want| / max|want|, so that a small entry beside a large one is not held to
more digits than its computation has. Entries that are not finite must be the same.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from common.ops import Case, Operation


def check(operation: Operation, case: Case, backend: str, dtype: str, gradients: bool = True) -> dict[str, float]:
    """Relative error of each output and each gradient of a backend against the reference in float64.

    The inputs are rounded to ``dtype`` first, so both compute from the same numbers. Gradients are vector-Jacobian
    products with one random cotangent for each output.

    Returns:
        {"output 0": error, "gradient of q": error, ...}; an exact operation has 0 or inf (dtype or bits differ).
    """
    arguments = _rounded(case.make(np.random.default_rng(0)), dtype)
    public = getattr(importlib.import_module(operation.room), operation.name)
    outputs, cotangents, wanted = _oracle(operation, case, dtype, gradients)
    run = _run_torch if backend in ("torch", "triton") else _run_jax
    inputs = [name for name in operation.differentiable if _is_float(arguments.get(name))] if gradients else []
    got, found = run(functools.partial(public, backend=backend), arguments, inputs, cotangents, dtype)
    if len(got) != len(outputs):
        raise AssertionError(f"{operation.id}: {backend} returns {len(got)} arrays, the reference {len(outputs)}")
    compare = _bits if operation.exact else relative_error
    errors = {f"output {i}": compare(mine, theirs) for i, (mine, theirs) in enumerate(zip(got, outputs, strict=True))}
    return errors | {f"gradient of {name}": relative_error(found[name], wanted[name]) for name in inputs}


def relative_error(got: Any, want: Any) -> float:
    """max|got - want| / max|want| over the finite entries; inf where shapes or non-finite entries differ."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return np.inf
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf
    if not finite.any():
        return 0.0
    worst, largest = np.abs(got[finite] - want[finite]).max(), np.abs(want[finite]).max()
    return float(worst / largest) if largest > 0 else float(worst)


def assert_trees_agree(got: Mapping[str, Any], want: Mapping[str, Any], tolerance: float, what: str = "parameter") -> float:
    """Every array of two flat trees agrees; the first that does not is named. Returns the worst relative error."""
    if set(got) != set(want):
        raise AssertionError(f"{what}s differ by name: {sorted(set(got) ^ set(want))[:3]}")
    worst = 0.0
    for name in want:
        error = relative_error(got[name], want[name])
        if not error <= tolerance:
            raise AssertionError(f"{what} {name!r} differs first: relative error {error:.3g}, allowed {tolerance:g}")
        worst = max(worst, error)
    return worst


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh torch memory is filled with NaN, so that an entry nobody wrote shows."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@functools.lru_cache(maxsize=64)
def _oracle(operation: Operation, case: Case, dtype: str, gradients: bool) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Outputs of the reference on NumPy float64, the cotangents, and the gradients by torch autograd or ``vjp``."""
    arguments = {
        name: value.astype(np.float64) if _is_float(value) and not operation.exact else value
        for name, value in _rounded(case.make(np.random.default_rng(0)), dtype).items()
        if name not in operation.tuning
    }
    reference = operation.implementation("reference")
    outputs = [np.asarray(each) for each in as_tuple(reference(**arguments))]
    rng = np.random.default_rng(1)
    cotangents = [rng.standard_normal(each.shape) for each in outputs]
    inputs = [name for name in operation.differentiable if _is_float(arguments.get(name))] if gradients else []
    if not inputs:
        return outputs, cotangents, {}
    if operation.vjp is not None:
        return outputs, cotangents, operation.vjp(arguments, cotangents)
    return outputs, cotangents, _run_torch(reference, arguments, inputs, cotangents, "float64")[1]


def _run_torch(
    function: Callable[..., Any], arguments: dict[str, Any], inputs: list[str], cotangents: list[np.ndarray], dtype: str
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    import torch

    with poisoned_memory():
        tensors = {name: to_torch(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
        for name in inputs:
            tensors[name].requires_grad_()
        outputs = as_tuple(function(**tensors))
        found: dict[str, np.ndarray] = {}
        if inputs:
            pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
            seeds = [torch.from_numpy(c).to(o.dtype) for o, c in pairs]
            wanted = [tensors[name] for name in inputs]
            gradients = (
                torch.autograd.grad([o for o, _ in pairs], wanted, seeds, allow_unused=True) if pairs else [None] * len(wanted)
            )
            for name, gradient in zip(inputs, gradients, strict=True):
                found[name] = np.zeros(arguments[name].shape) if gradient is None else _from_torch(gradient)
        return [_from_torch(each.detach()) for each in outputs], found


def _run_jax(
    function: Callable[..., Any], arguments: dict[str, Any], inputs: list[str], cotangents: list[np.ndarray], dtype: str
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(dtype == "float64"):
        arrays = {name: jnp.asarray(value) for name, value in arguments.items() if isinstance(value, np.ndarray)}
        fixed = {name: value for name, value in arguments.items() if name not in arrays}

        # Value and product are compiled together: half the time of two calls, and what users do.
        @jax.jit
        def both(arrays: dict[str, Any], seeds: list[Any]) -> tuple[Any, Any]:
            def of(some: dict[str, Any]) -> tuple[Any, ...]:
                return as_tuple(function(**{**arrays, **some}, **fixed))

            some = {name: arrays[name] for name in inputs}
            outputs, pull = jax.vjp(of, some)
            if not inputs:
                return outputs, {}
            return outputs, pull(tuple(seed.astype(each.dtype) for seed, each in zip(seeds, outputs, strict=True)))[0]

        outputs, gradients = both(arrays, [jnp.asarray(each) for each in cotangents])
        return [np.asarray(each) for each in outputs], {name: np.asarray(each, np.float64) for name, each in gradients.items()}


def _rounded(arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {name: value.astype(_numpy_dtype(dtype)) if _is_float(value) else value for name, value in arguments.items()}


def _numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)


def _is_float(value: Any) -> bool:
    # NumPy does not count bfloat16 among its floating types.
    return isinstance(value, np.ndarray) and (np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16")


def to_torch(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _bits(got: np.ndarray, want: np.ndarray) -> float:
    same = got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
    return 0.0 if same else np.inf
