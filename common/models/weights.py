"""Weights as flat dictionaries of NumPy arrays: drawn once, loaded into PyTorch and flax.nnx, and read back.

Names and layouts are PyTorch's ("blocks.0.attention.query.weight", (out, in)). A flax.nnx model with the same attribute
names has the same names, where the leaves ``kernel``, ``scale`` and ``embedding`` are called ``weight``. Kernels of Linear
and Conv are transposed, all other arrays are as they are. Errors name the first parameter that does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.architecture import Transformer

if TYPE_CHECKING:
    import torch
    from flax import nnx

Weights = dict[str, np.ndarray]


def shapes(architecture: Transformer) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a :class:`TransformerLM`, by name."""
    a = architecture
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    found: dict[str, tuple[int, ...]] = {"embedding.weight": (a.vocabulary, a.width)}

    def norm(name: str) -> None:
        found[f"{name}.weight"] = (a.width,)
        if a.norm == "layer":
            found[f"{name}.bias"] = (a.width,)

    if a.positions == "learned":
        found["positions.weight"] = (a.context, a.width)
    for block in (f"blocks.{layer}" for layer in range(a.depth)):
        norm(f"{block}.attention_norm")
        found[f"{block}.attention.query.weight"] = (queries, a.width)
        found[f"{block}.attention.key.weight"] = (keys, a.width)
        found[f"{block}.attention.value.weight"] = (keys, a.width)
        found[f"{block}.attention.output.weight"] = (a.width, queries)
        norm(f"{block}.feed_forward_norm")
        if a.feed_forward == "swiglu":
            found[f"{block}.feed_forward.gate.weight"] = (a.hidden, a.width)
        found[f"{block}.feed_forward.up.weight"] = (a.hidden, a.width)
        found[f"{block}.feed_forward.down.weight"] = (a.width, a.hidden)
    norm("norm")
    if not a.tied:
        found["head.weight"] = (a.vocabulary, a.width)
    return found


def initial_weights(architecture: Transformer, seed: int) -> Weights:
    """Float64 weights for a new model, the same in both frameworks.

    Matrices are normal with deviation 0.02, those that end on the residual stream divided by sqrt(2 depth) so that its
    variance does not grow with depth (Radford et al. 2019, GPT-2, section 2.3); scales are 1, shifts 0.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.zeros(shape) if name.endswith(".bias") else np.ones(shape)
        on_residual = name.endswith(("output.weight", "down.weight"))
        return rng.normal(0.0, 0.02 / math.sqrt(2 * architecture.depth if on_residual else 1), shape)

    return {name: draw(name, shape) for name, shape in shapes(architecture).items()}


def to_torch(model: torch.nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy the weights into the parameters of a module, in their dtypes and on their devices.

    Raises:
        ValueError: a parameter is missing, left over or of another shape.
    """
    import torch

    parameters = dict(model.named_parameters())
    _check({name: tuple(each.shape) for name, each in parameters.items()}, weights)
    with torch.no_grad():
        for name, parameter in parameters.items():
            # NumPy's bfloat16 is unknown to torch; float32 holds its values exactly.
            array = weights[name].astype(np.float32) if weights[name].dtype.name == "bfloat16" else weights[name]
            parameter.copy_(torch.from_numpy(np.array(array)))


def from_torch(model: torch.nn.Module) -> Weights:
    """Copies of the parameters of a module; bfloat16 comes as float32."""
    return {name: array_of(parameter) for name, parameter in model.named_parameters()}


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor as a NumPy array; bfloat16, which torch cannot hand over, comes as float32."""
    import torch

    tensor = tensor.detach().cpu()
    return np.array(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def to_flax(model: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy the weights into the ``nnx.Param`` of a module, in their dtypes.

    Raises:
        ValueError: a parameter is missing, left over or of another shape.
    """
    import jax.numpy as jnp

    leaves = _leaves(model)
    _check({name: _torch_layout(path, leaf[...]).shape for name, (path, leaf) in leaves.items()}, weights)
    for name, (path, leaf) in leaves.items():
        array = weights[name]
        if path[-1] == "kernel":
            array = array.transpose(*range(2, array.ndim), 1, 0)
        leaf[...] = jnp.asarray(array, dtype=leaf[...].dtype)


def from_flax(model: nnx.Module) -> Weights:
    """Copies of the ``nnx.Param`` of a module, with torch's names and layouts."""
    return {name: np.array(_torch_layout(path, np.asarray(leaf[...]))) for name, (path, leaf) in _leaves(model).items()}


def torch_name(path: Iterable[Any]) -> str:
    """The name that torch gives to a path of flax.nnx."""
    *rest, last = map(str, path)
    return ".".join([*rest, "weight" if last in ("kernel", "scale", "embedding") else last])


def _leaves(model: nnx.Module) -> dict[str, tuple[tuple[Any, ...], Any]]:
    from flax import nnx

    return {torch_name(path): (path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def _torch_layout(path: tuple[Any, ...], array: Any) -> Any:
    n = array.ndim
    return array.transpose(n - 1, n - 2, *range(n - 2)) if path[-1] == "kernel" else array


def _check(wanted: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray]) -> None:
    for name, shape in wanted.items():
        if name not in weights:
            raise ValueError(f"the weights lack {name!r}, which the model has with shape {shape}")
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"the weight {name!r} has shape {tuple(weights[name].shape)}, but the model wants {shape}")
    for name in weights:
        if name not in wanted:
            raise ValueError(f"the weight {name!r} is left over: the model has no such parameter")
