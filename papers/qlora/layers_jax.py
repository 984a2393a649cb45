"""Linear layers in 4 bits and low-rank adapters in flax.nnx; the twin is :mod:`papers.qlora.layers_torch`.

What is frozen is held in :class:`Frozen` variables, so that the only ``nnx.Param`` of a model with adapters are theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from papers.qlora.kernel import dequantize_nf4, matmul_nf4
from papers.qlora.weights import ALL_LINEAR, FourBit, first_factor, matching


class Frozen(nnx.Variable):
    """A number of the model that is not trained."""


class Linear4bit(nnx.Module):
    """y = x W^T with W held as packed indices and quantised scales only; no bias, and nothing to train."""

    def __init__(
        self, weight: Float[Array, "n k"], kind: str = "nf4", *, double: bool = True, block: int = 64, name: str = "weight"
    ):
        made = FourBit.of(weight, kind, double=double, block=block, name=name)
        self.block, self.double = made.block, double
        self.out_features, self.in_features = weight.shape
        self.packed, self.absmax, self.code = Frozen(made.packed), Frozen(made.absmax), Frozen(jnp.asarray(made.code))
        if double:
            self.scales, self.offset = Frozen(made.scales), Frozen(made.offset)

    def __call__(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch n"]:
        return matmul_nf4(x, self.packed[...], self.absmax[...], self.code[...], **self._outer(), block=self.block)

    def weight(self) -> Float[Array, "n k"]:
        """W in float32, made anew."""
        return dequantize_nf4(self.packed[...], self.absmax[...], self.code[...], **self._outer(), block=self.block)

    def _outer(self) -> dict[str, Array]:
        return {"scales": self.scales[...], "offset": self.offset[...]} if self.double else {}


class LoRA(nnx.Module):
    """y = base(x) + s dropout(x) L1 L2 with s = alpha / rank; the base is frozen. As the twin in PyTorch."""

    def __init__(self, base: nnx.Module, rank: int, alpha: float, dropout: float, l1: np.ndarray, dtype: Any, seed: int):
        inputs, outputs = base.in_features, base.out_features
        self.base, self.scale = base, alpha / rank
        self.dropout = nnx.Dropout(dropout, rngs=nnx.Rngs(seed)) if dropout else None
        self.l1, self.l2 = nnx.Param(jnp.asarray(l1, dtype)), nnx.Param(jnp.zeros((rank, outputs), dtype))
        self.in_features, self.out_features = inputs, outputs

    def __call__(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch n"]:
        down = self.dropout(x) if self.dropout else x
        return self.base(x) + self.scale * (down.astype(self.l1.dtype) @ self.l1[...] @ self.l2[...]).astype(x.dtype)

    def weight(self) -> Float[Array, "n k"]:
        """W^T + s L1 L2, transposed, in float32."""
        base = self.base.weight() if isinstance(self.base, Linear4bit) else self.base.kernel[...].T
        return base.astype(jnp.float32) + self.scale * (self.l1[...].astype(jnp.float32) @ self.l2[...].astype(jnp.float32)).T


class Merged(nnx.Module):
    """One dense matrix in place of a base and its adapter, which it keeps so that they can come back."""

    def __init__(self, source: LoRA, dtype: Any):
        self.source, self.dense = source, Frozen(source.weight().astype(dtype))

    def __call__(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch n"]:
        return x @ self.dense[...].T


def quantize(
    model: nnx.Module, kind: str = "nf4", *, double: bool = True, block: int = 64, target: str = ALL_LINEAR
) -> nnx.Module:
    """Replace the linear layers that ``target`` matches by :class:`Linear4bit`, in place, and freeze all the rest."""
    layers = _linear(model)
    for name in matching(target, layers):
        weight = layers[name].kernel[...].T
        _put(model, name, Linear4bit(weight, kind, double=double, block=block, name=f"{name}.weight"))
    return freeze(model)


def freeze(model: nnx.Module) -> nnx.Module:
    """Make every ``nnx.Param`` of the model a :class:`Frozen` one, in place."""
    for _, module in list(nnx.iter_modules(model)):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Param):
                setattr(module, name, Frozen(value[...]))
    return model


def add_adapters(
    model: nnx.Module, rank: int, *, alpha: float = 16.0, dropout: float = 0.0, target: str = ALL_LINEAR, seed: int = 0,
    dtype: Any = jnp.float32,
) -> nnx.Module:  # fmt: skip
    """Freeze the model and put a :class:`LoRA` around every linear layer that ``target`` matches, in place.

    The matrices L1 are the twin's: drawn layer by layer from the seed.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; wanted at least 1")
    freeze(model)
    layers, rng = _linear(model), np.random.default_rng(seed)
    for place, name in enumerate(matching(target, layers)):
        base = layers[name]
        l1 = first_factor(rng, base.in_features, rank)
        _put(model, name, LoRA(base, rank, alpha, dropout, l1, dtype, seed + place))
    return model


def adapters(model: nnx.Module) -> dict[str, nnx.Param]:
    """The adapters' parameters by name."""
    found = {
        ".".join(str(part) for part in path if part != "source"): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LoRA)
    }
    return {f"{name}.{part}": getattr(found[name], part) for name in sorted(found, key=_natural) for part in ("l1", "l2")}


def save_adapters(model: nnx.Module, path: Path) -> None:
    """Write the adapters alone, as safetensors."""
    from safetensors.flax import save_file

    save_file({name: value[...] for name, value in adapters(model).items()}, path)


def load_adapters(model: nnx.Module, source: Path | dict[str, np.ndarray]) -> None:
    """Fill the adapters from a file of :func:`save_adapters` (of either framework) or from arrays."""
    from safetensors.flax import load_file

    values = load_file(source) if isinstance(source, Path) else source
    mine = adapters(model)
    for name in mine.keys() | values.keys():
        if name not in mine or name not in values or mine[name].shape != values[name].shape:
            shapes = [tuple(each[name].shape) if name in each else "nothing" for each in (mine, values)]
            raise ValueError(
                f"adapter {name!r}: the model has {shapes[0]}, the file {shapes[1]}; build the model as it was saved"
            )
    for name, parameter in mine.items():
        parameter[...] = jnp.asarray(values[name], parameter.dtype)


def merge(model: nnx.Module, dtype: Any = jnp.float32) -> nnx.Module:
    """Replace every base and adapter by the one matrix W^T + s L1 L2, in place."""
    for name, each in _of(model, LoRA):
        _put(model, name, Merged(each, dtype))
    return model


def unmerge(model: nnx.Module) -> nnx.Module:
    """Bring back the bases and adapters, to the bit."""
    for name, each in _of(model, Merged):
        _put(model, name, each.source)
    return model


def held(model: nnx.Module) -> list[Array]:
    """All arrays of a model."""
    return jax.tree.leaves(nnx.state(model))


def _linear(model: nnx.Module) -> dict[str, Any]:
    found = [(n, m) for n, m in _of(model, (nnx.Linear, Linear4bit)) if not n.endswith(".base")]
    return dict(sorted(found, key=lambda item: _natural(item[0])))


def _of(model: nnx.Module, kind: Any) -> list[tuple[str, Any]]:
    return [(".".join(map(str, path)), module) for path, module in list(nnx.iter_modules(model)) if isinstance(module, kind)]


def _natural(name: str) -> list[Any]:
    """Blocks by number, and layers in the order in which the model makes them, which is torch's."""
    order = ("query", "key", "value", "output", "gate", "up", "down")
    parts = name.split(".")
    return [(0, int(part), "") if part.isdigit() else (1, order.index(part) if part in order else 0, part) for part in parts]


def _put(model: nnx.Module, name: str, layer: nnx.Module) -> None:
    *path, last = name.split(".")
    parent: Any = model
    for part in path:
        parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
    setattr(parent, last, layer)
