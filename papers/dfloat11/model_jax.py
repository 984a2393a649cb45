"""A flax.nnx language model whose matrices are held compressed and decoded, inside the compiled function, just before use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from common.models.transformer_jax import TransformerLM
from common.models.weights import torch_name
from papers.dfloat11.codec import Unit
from papers.dfloat11.kernel import decode
from papers.dfloat11.store import Compressed, load


class Packed(nnx.Module):
    """A submodule without its matrices: every call decodes them first. XLA frees them after their last use."""

    def __init__(self, module: nnx.Module, name: str, unit: Unit, members: dict[str, tuple[int, ...]]) -> None:
        graph, state = nnx.split(module)
        leaves = dict(nnx.to_flat_state(state))
        names = {f"{name}.{torch_name(path)}": path for path in leaves}
        if missing := [each for each in members if each not in names]:
            raise ValueError(f"the model has no parameter {missing[0]!r}")
        self.graph, self.threads = graph, unit.threads
        self.shapes = tuple((names[each], shape) for each, shape in members.items())
        self.rest = nnx.data({path: leaf for path, leaf in leaves.items() if path not in {p for p, _ in self.shapes}})
        self.arrays = nnx.data({part: jnp.asarray(array) for part, array in unit.arrays.items()})

    def __call__(self, *arguments: Any) -> Any:
        return self._module()(*arguments)

    def attend(self, x: Array) -> Array:
        """What a tied head asks of an embedding."""
        return self._module().attend(x)

    def _module(self) -> Any:
        bits = decode(**dict(self.arrays), threads=self.threads)
        weights, start = lax.bitcast_convert_type(bits, jnp.bfloat16), 0
        leaves = dict(self.rest)
        for path, shape in self.shapes:
            size = int(np.prod(shape))
            value = weights[start : start + size].reshape(shape)
            leaves[path] = nnx.Param(value.T if path[-1] == "kernel" else value)
            start += size
        return nnx.merge(self.graph, nnx.from_flat_state(list(leaves.items())))


def attach(model: TransformerLM, compressed: Compressed) -> TransformerLM:
    """Put compressed units in place of a model's blocks and tables; what is raw is copied.

    Raises:
        ValueError: the model lacks a parameter, or a unit is no block and no table of it.
    """
    leaves = {torch_name(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for name, array in compressed.raw.items():
        if name not in leaves:
            raise ValueError(f"the model has no parameter {name!r}")
        leaves[name][...] = jnp.asarray(array)
    for name, unit in compressed.units.items():
        head, _, index = name.partition(".")
        if head == "blocks" and index.isdigit():
            model.blocks[int(index)] = Packed(model.blocks[int(index)], name, unit, compressed.members[name])
        elif hasattr(model, head) and not index:
            setattr(model, head, Packed(getattr(model, head), name, unit, compressed.members[name]))
        else:
            raise ValueError(f"the unit {name!r} is no block and no table of this model")
    return model


def from_file(model: TransformerLM, path: Path) -> TransformerLM:
    """Give a bfloat16 language model the weights of a file, which stay compressed."""
    return attach(model, load(path))
