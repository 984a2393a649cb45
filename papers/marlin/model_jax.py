"""Packed linear layers in flax.nnx; the twin is :mod:`papers.marlin.model_torch`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from common.gptq import Hessian, Rounded, gptq, nearest
from kernels.gemm_w4a16 import GROUP, dequantize, matmul
from papers.marlin.store import Packed, padded


class Stored(nnx.Variable):
    """A part of a packed layer, which is not trained."""


class MarlinLinear(nnx.Module):
    """y = x W^T from packed words; as the twin in PyTorch."""

    def __init__(self, layer: Packed):
        self.out_features, self.in_features, self.group = layer.outputs, layer.inputs, layer.group
        self.B, self.s = Stored(jnp.asarray(layer.words)), Stored(jnp.asarray(layer.scales))

    def __call__(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch n"]:
        extra = 16 * self.B.shape[0] - self.in_features
        wide = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)])
        return matmul(wide, self.B[...], self.s[...], group=self.group)[..., : self.out_features]

    def weight(self) -> Float[Array, "n k"]:
        """W in float32, made anew."""
        whole = dequantize(self.B[...], self.s[...].astype(jnp.float32), group=self.group)
        return whole.T[: self.out_features, : self.in_features]


class Recorder(nnx.Module):
    """A linear layer that adds what comes in to a Hessian; it runs outside jit."""

    def __init__(self, source: nnx.Linear):
        self.source, self.found = source, _Box()

    def __call__(self, x: Array) -> Array:
        with jax.enable_x64(True):
            self.found.hessian.add(jnp.asarray(x, jnp.float64))
        return self.source(x)


class _Box:
    """Holds the Hessian where flax does not look into it."""

    def __init__(self) -> None:
        self.hessian = Hessian()


def linear(model: nnx.Module) -> dict[str, nnx.Linear]:
    """The linear layers of the blocks, by the name that PyTorch gives them."""
    found = {".".join(map(str, path)): each for path, each in nnx.iter_modules(model) if isinstance(each, nnx.Linear)}
    return {name: each for name, each in found.items() if name.startswith("blocks.")}


def hessians(model: nnx.Module, batches: Iterable[Array]) -> dict[str, Float[Array, "wide wide"]]:
    """H of the inputs of each linear layer, in float64, padded with zeros, over batches of tokens (of any lengths)."""
    plain = linear(model)
    recorders = {name: Recorder(each) for name, each in plain.items()}
    try:
        for name, each in recorders.items():
            _put(model, name, each)
        for tokens in batches:
            model(tokens)
    finally:
        for name, layer in plain.items():
            _put(model, name, layer)
    with jax.enable_x64(True):
        values = {name: each.found.hessian.value for name, each in recorders.items()}
        return {name: jnp.pad(value, (0, padded(1, len(value))[1] - len(value))) for name, value in values.items()}


def rounded(weight: Float[Array, "n k"], hessian: Float[Array, "wide wide"] | None, group: int = GROUP) -> Rounded:
    """The codes of one layer, padded: GPTQ with the improved clipping, or to the nearest where there is no Hessian."""
    n, k = padded(*weight.shape)
    wide = jnp.pad(weight, ((0, n - weight.shape[0]), (0, k - weight.shape[1])))
    if hessian is None:
        return nearest(wide, group=group)
    with jax.enable_x64(hessian.dtype == jnp.float64):
        return gptq(wide, hessian, group=group)


def quantize(model: nnx.Module, hessians: Mapping[str, Array] | None, group: int = GROUP) -> dict[str, Packed]:
    """Replace every linear layer of the blocks by its packed form, in place; without Hessians weights go to the nearest code."""
    layers = {}
    for name, each in linear(model).items():
        weight = each.kernel[...].T
        layers[name] = Packed.of(rounded(weight, None if hessians is None else hessians[name], group), weight.shape, group)
    attach(model, layers)
    return layers


def attach(model: nnx.Module, layers: Mapping[str, Packed]) -> nnx.Module:
    """Put packed layers where linear ones are, in place; errors as in PyTorch."""
    there = linear(model)
    for name, layer in layers.items():
        shape = tuple(there[name].kernel.shape[::-1]) if name in there else "nothing"
        if shape != (layer.outputs, layer.inputs):
            raise ValueError(
                f"layer {name!r}: the file has {(layer.outputs, layer.inputs)}, the model {shape}; build the same model"
            )
    for name, layer in layers.items():
        _put(model, name, MarlinLinear(layer))
    return model


def _put(model: Any, name: str, layer: nnx.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    setattr(model, last, layer)
