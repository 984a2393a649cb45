"""Whether a graph is free of floating point: every value of every node is looked at, constants included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def floats_torch(function: Callable[..., Any], *inputs: Any) -> list[str]:
    """Names of the nodes of the exported PyTorch graph that hold or make floating-point numbers.

    ``function`` takes tensors, or dicts of them. Nodes are those of ``torch.export``: inputs, weights, operations, outputs.
    """
    import torch

    class Whole(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    graph = torch.export.export(Whole(), inputs, strict=False).graph
    found = []
    for node in graph.nodes:
        values = [node.meta.get("val"), *node.args, *node.kwargs.values()]
        if any(_torch_float(value) for value in _leaves(values)):
            found.append(f"{node.name} ({node.target})")
    return found


def floats_jax(function: Callable[..., Any], *inputs: Any) -> list[str]:
    """Primitives of the jaxpr, those inside of loops and inner functions included, that take or make floating-point numbers."""
    import jax

    return [
        f"{primitive} ({kind})"
        for primitive, kind in _walk(jax.make_jaxpr(function)(*inputs).jaxpr)
        if kind.startswith(("float", "bfloat", "complex"))
    ]


def operations(function: Callable[..., Any], *inputs: Any) -> int:
    """Number of primitives in the jaxpr."""
    import jax

    return sum(1 for _ in _equations(jax.make_jaxpr(function)(*inputs).jaxpr))


def _walk(jaxpr: Any) -> Iterator[tuple[str, str]]:
    for value in (*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars):
        yield "argument", str(getattr(value.aval, "dtype", ""))
    for equation in _equations(jaxpr):
        for value in (*equation.invars, *equation.outvars):
            yield equation.primitive.name, str(getattr(value.aval, "dtype", ""))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _torch_float(value: Any) -> bool:
    import torch

    if isinstance(value, torch.dtype):
        return value.is_floating_point or value.is_complex
    if isinstance(value, torch.Tensor):
        return value.dtype.is_floating_point or value.dtype.is_complex
    return isinstance(value, (float, torch.SymFloat))
