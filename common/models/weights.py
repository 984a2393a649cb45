"""Weights as flat dictionaries of NumPy arrays: drawn once, loaded into PyTorch and flax.nnx, and read back.

Names and layouts are PyTorch's ("blocks.0.attention.query.weight", (out, in)). A flax.nnx model with the same attribute
names has the same names, where the leaves ``kernel``, ``scale`` and ``embedding`` are called ``weight``. Kernels of Linear
and Conv are transposed, all other arrays are as they are. The running statistics of batch normalisation (``mean`` and
``var`` of flax) are called ``running_mean`` and ``running_var``. Errors name the first parameter that does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.architecture import ResNet, Transformer, VisionTransformer

if TYPE_CHECKING:
    import torch
    from flax import nnx

Weights = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
Architecture = Transformer | VisionTransformer | ResNet

STATISTICS = ("running_mean", "running_var")
"""What batch normalisation gathers; no parameters, but part of the weights."""


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a model, by name; running statistics included."""
    match architecture:
        case Transformer():
            return _transformer(architecture)
        case VisionTransformer():
            return _vision_transformer(architecture)
        case ResNet():
            return _resnet(architecture)


def initial_weights(architecture: Architecture, seed: int) -> Weights:
    """Float64 weights for a new model, the same in both frameworks.

    Matrices are normal with deviation 0.02, those that end on the residual stream divided by sqrt(2 depth) so that its
    variance does not grow with depth (Radford et al. 2019, GPT-2, section 2.3). Convolutions are normal with deviation
    sqrt(2 / fan-in) (He et al. 2015). Scales and running variances are 1, shifts and running means 0.
    """
    rng = np.random.default_rng(seed)
    depth = 1 if isinstance(architecture, ResNet) else architecture.depth

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.zeros(shape) if name.endswith((".bias", ".running_mean")) else np.ones(shape)
        if len(shape) == 4:
            return rng.normal(0.0, math.sqrt(2 / math.prod(shape[1:])), shape)
        on_residual = name.endswith(("output.weight", "down.weight"))
        return rng.normal(0.0, 0.02 / math.sqrt(2 * depth if on_residual else 1), shape)

    return {name: draw(name, shape) for name, shape in shapes(architecture).items()}


def _transformer(a: Transformer) -> Shapes:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    found: Shapes = {"embedding.weight": (a.vocabulary, a.width)}

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
        network = f"{block}.feed_forward"
        if a.experts:
            found[f"{network}.router.weight"] = (a.experts, a.width)
        for place in [f"{network}.experts.{index}" for index in range(a.experts)] or [network]:
            if a.feed_forward == "swiglu":
                found[f"{place}.gate.weight"] = (a.hidden, a.width)
            found[f"{place}.up.weight"] = (a.hidden, a.width)
            found[f"{place}.down.weight"] = (a.width, a.hidden)
    norm("norm")
    if not a.tied:
        found["head.weight"] = (a.vocabulary, a.width)
    return found


def _vision_transformer(a: VisionTransformer) -> Shapes:
    found: Shapes = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (a.width,), (a.width,)

    linear("patches", a.patch**2 * a.channels, a.width)
    found["class_token"] = (1, a.width)
    found["positions"] = (a.tokens, a.width)
    for block in (f"blocks.{layer}" for layer in range(a.depth)):
        norm(f"{block}.attention_norm")
        for part in ("query", "key", "value", "output"):
            linear(f"{block}.attention.{part}", a.width, a.width)
        norm(f"{block}.feed_forward_norm")
        linear(f"{block}.feed_forward.up", a.width, a.hidden)
        linear(f"{block}.feed_forward.down", a.hidden, a.width)
    norm("norm")
    linear("head", a.width, a.classes)
    return found


def _resnet(a: ResNet) -> Shapes:
    found: Shapes = {}

    def convolution(name: str, inputs: int, outputs: int, size: int) -> None:
        found[f"{name}.convolution.weight"] = (outputs, inputs, size, size)
        for part in ("weight", "bias", *STATISTICS):
            found[f"{name}.norm.{part}"] = (outputs,)

    convolution("stem", a.channels, a.widths[0], 3)
    inputs = a.widths[0]
    for stage, width in enumerate(a.widths):
        for place in range(a.blocks):
            block = f"blocks.{stage * a.blocks + place}"
            convolution(f"{block}.first", inputs, width, 3)
            convolution(f"{block}.second", width, width, 3)
            if place == 0 and (stage > 0 or inputs != width):
                convolution(f"{block}.shortcut", inputs, width, 1)
            inputs = width
    found["head.weight"], found["head.bias"] = (a.classes, inputs), (a.classes,)
    return found


def to_torch(model: torch.nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy the weights into the parameters and running statistics of a module, in their dtypes and on their devices.

    Raises:
        ValueError: a parameter is missing, left over or of another shape.
    """
    import torch

    parameters = _tensors(model)
    _check({name: tuple(each.shape) for name, each in parameters.items()}, weights)
    with torch.no_grad():
        for name, parameter in parameters.items():
            # NumPy's bfloat16 is unknown to torch; float32 holds its values exactly.
            array = weights[name].astype(np.float32) if weights[name].dtype.name == "bfloat16" else weights[name]
            parameter.copy_(torch.from_numpy(np.array(array)))


def from_torch(model: torch.nn.Module) -> Weights:
    """Copies of the parameters and running statistics of a module; bfloat16 comes as float32."""
    return {name: array_of(tensor) for name, tensor in _tensors(model).items()}


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    statistics = {name: each for name, each in model.named_buffers() if name.endswith(STATISTICS)}
    return {**dict(model.named_parameters()), **statistics}


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor as a NumPy array; bfloat16, which torch cannot hand over, comes as float32."""
    import torch

    tensor = tensor.detach().cpu()
    return np.array(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def to_flax(model: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy the weights into the ``nnx.Param`` and ``nnx.BatchStat`` of a module, in their dtypes.

    Raises:
        ValueError: a parameter is missing, left over or of another shape.
    """
    import jax.numpy as jnp

    leaves = _leaves(model)
    _check({name: torch_layout(path, leaf[...]).shape for name, (path, leaf) in leaves.items()}, weights)
    for name, (path, leaf) in leaves.items():
        array = weights[name]
        if path[-1] == "kernel":
            array = array.transpose(*range(2, array.ndim), 1, 0)
        leaf[...] = jnp.asarray(array, dtype=leaf[...].dtype)


def from_flax(model: nnx.Module) -> Weights:
    """Copies of the ``nnx.Param`` and ``nnx.BatchStat`` of a module, with torch's names and layouts."""
    return {name: np.array(torch_layout(path, np.asarray(leaf[...]))) for name, (path, leaf) in _leaves(model).items()}


def torch_name(path: Iterable[Any]) -> str:
    """The name that torch gives to a path of flax.nnx."""
    *rest, last = map(str, path)
    return ".".join([*rest, _LEAF.get(last, last)])


_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


def _leaves(model: nnx.Module) -> dict[str, tuple[tuple[Any, ...], Any]]:
    from flax import nnx

    return {
        torch_name(path): (path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    }


def torch_layout(path: tuple[Any, ...], array: Any) -> Any:
    """A leaf of a flax model with its axes in PyTorch's order."""
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
