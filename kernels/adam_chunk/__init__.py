"""One step of Adam or AdamW on a flat stretch of the parameters, in one pass over memory.

Optimisers that keep their state in slices (of a rank, in host memory, in a file) update it stretch by stretch: the step is
elementwise, so the result does not depend on how the parameters were cut.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

from jaxtyping import Float

from common.ops import framework, operation


@operation(backends=("torch", "triton", "jax", "pallas"))
def adam_chunk(
    parameter: Float[Any, " size"],
    gradient: Float[Any, " size"],
    mean: Float[Any, " size"],
    square: Float[Any, " size"],
    *,
    step: Any,
    learning_rate: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    backend: str | None = None,
    out: tuple[Any, Any, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p = p - eta mhat / (sqrt(vhat) + epsilon).

    mhat = m / (1 - beta1^t) and vhat = v / (1 - beta2^t) at step t, which counts from 1. With ``decoupled`` (AdamW) p is first
    multiplied by 1 - eta weight_decay; otherwise (Adam) weight_decay p is added to g. The gradient is widened to the dtype of
    the state as it is read: a 16-bit gradient costs no copy.

    Args:
        parameter, mean, square: p, m, v, float32 or float64, all the same; Triton and Pallas have float32 alone.
        gradient: g; float16, bfloat16, float32 or float64, not wider than the state.
        step: t >= 1, an integer; JAX: also traced.
        learning_rate: eta >= 0; JAX: also traced.
        beta1, beta2: in [0, 1).
        epsilon, weight_decay: >= 0.
        decoupled: AdamW instead of Adam with the decay in the gradient.
        out: PyTorch alone: three contiguous tensors that receive the result, which may be parameter, mean and square
            themselves: the update in place. The result is the same, bit for bit.

    Returns:
        parameter, mean, square after the step: new arrays, or ``out``. Not differentiable.

    Raises:
        ValueError: arrays of different lengths or with more than one axis, numbers out of their range, an ``out`` that does
            not fit or that lies on another input.
        TypeError: dtypes that are not offered, a step that is no integer, ``out`` for another framework.

    Source: Kingma and Ba, Adam (arXiv 1412.6980), algorithm 1; Loshchilov and Hutter, AdamW (arXiv 1711.05101), algorithm 2.
    """
    _check_arrays({"parameter": parameter, "gradient": gradient, "mean": mean, "square": square})
    step = _count(step)
    ranges = {
        "beta1": (beta1, 1.0),
        "beta2": (beta2, 1.0),
        "epsilon": (epsilon, math.inf),
        "weight_decay": (weight_decay, math.inf),
    }
    if framework(learning_rate) != "jax":
        ranges["learning_rate"] = learning_rate, math.inf
    for name, (value, end) in ranges.items():
        if not 0 <= value < end:
            raise ValueError(f"adam_chunk: {name} is {value}; wanted a number in [0, {'1' if end == 1 else 'infinity'})")
    options: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "weight_decay": weight_decay}
    if out is not None:
        _check_out(out, (parameter, mean, square), gradient, backend)
        options["out"] = out
    return adam_chunk.operation(
        parameter, gradient, mean, square, step=step, learning_rate=learning_rate, decoupled=decoupled, backend=backend, **options
    )


def _check_arrays(given: dict[str, Any]) -> None:
    wrong = [f"{name} is a {type(value).__name__}" for name, value in given.items() if framework(value) is None]
    if wrong:
        raise TypeError(f"adam_chunk: {', '.join(wrong)}; wanted torch tensors, jax arrays or NumPy arrays")
    shapes = [tuple(value.shape) for value in given.values()]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"adam_chunk: {', '.join(given)} have shapes {', '.join(map(str, shapes))}; wanted one flat length")
    kinds = {name: _dtype(value) for name, value in given.items()}
    state = kinds["parameter"]
    fits = state in ("float32", "float64") and kinds["mean"] == kinds["square"] == state
    if not fits or kinds["gradient"] not in ("float16", "bfloat16", "float32", state):
        listed = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise TypeError(
            f"adam_chunk: dtypes are {listed}; wanted parameter, mean and square in float32 (or all in float64) and a floating "
            "gradient that is not wider"
        )


def _count(step: Any) -> Any:
    """A Python integer, or a traced one as it is."""
    if not isinstance(step, int) and framework(step) == "jax":
        if step.shape or not str(step.dtype).startswith(("int", "uint")):
            raise TypeError(f"adam_chunk: step is {step.dtype}{list(step.shape)}; wanted an integer")
        return step
    try:
        step = operator.index(step)
    except TypeError:
        raise TypeError(f"adam_chunk: step is {step!r}; wanted an integer") from None
    if step < 1:
        raise ValueError(f"adam_chunk: step is {step}; wanted 1 for the first step")
    return step


def _check_out(out: Any, state: tuple[Any, Any, Any], gradient: Any, backend: str | None) -> None:
    if framework(state[0]) != "torch" or backend not in (None, "torch", "triton"):
        raise TypeError("adam_chunk: out is for the backends torch and triton; leave it away and take what is returned")
    fits = isinstance(out, tuple) and len(out) == 3 and all(framework(each) == "torch" for each in out)
    for mine, theirs in zip(out, state, strict=True) if fits else ():
        fits = fits and (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device)
        fits = fits and mine.is_contiguous()
    if not fits:
        raise ValueError(
            "adam_chunk: out wants three contiguous tensors with the lengths, dtypes and devices of parameter, mean and square"
        )
    if sys.modules["torch"].compiler.is_compiling() or state[0].is_meta or not len(gradient):
        return
    places = [each.data_ptr() for each in out]
    for place, mine in zip(places, state, strict=True):
        others = [each.data_ptr() for each in (*state, gradient) if each is not mine]
        if place in others or places.count(place) > 1:
            raise ValueError(
                "adam_chunk: a tensor of out lies on another input or output; wanted its own memory, or its own input's"
            )


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]
