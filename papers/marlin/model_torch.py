"""Packed linear layers in PyTorch; the twin is :mod:`papers.marlin.model_jax`.

found = hessians(model, windows)               # what each layer's inputs look like
layers = quantize(model, found)                # every linear layer of a block runs from 4-bit words
save(path, layers); attach(other_model, load(path))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.gptq import Hessian, Rounded, gptq, nearest
from kernels.gemm_w4a16 import GROUP, dequantize, matmul
from papers.marlin.store import Packed, padded


class MarlinLinear(nn.Module):
    """y = x W^T from packed words; no bias, and nothing to train. x and y are padded with zeros where the format wants it."""

    def __init__(self, layer: Packed):
        super().__init__()
        self.out_features, self.in_features, self.group = layer.outputs, layer.inputs, layer.group
        self.B: Tensor
        self.s: Tensor
        self.register_buffer("B", torch.as_tensor(layer.words))
        self.register_buffer("s", torch.as_tensor(layer.scales))

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        wide = F.pad(x, (0, 16 * self.B.shape[0] - self.in_features))
        return matmul(wide, self.B, self.s, group=self.group)[..., : self.out_features]

    def weight(self) -> Float[Tensor, "n k"]:
        """W in float32, made anew."""
        whole = dequantize(self.B, self.s.float(), group=self.group)
        return whole.T[: self.out_features, : self.in_features]

    def packed(self) -> Packed:
        return Packed(self.B, self.s, self.out_features, self.in_features, self.group)


def linear(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks, by name; embedding and head stay as they are."""
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and name.startswith("blocks.")}


@torch.no_grad()
def hessians(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Float[Tensor, "wide wide"]]:
    """H of the inputs of each linear layer, in float64, padded with zeros, over batches of tokens (of any lengths)."""
    found = {name: Hessian() for name in linear(model)}

    def keep(name: str) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name].add(inputs[0].double())

        handles.append(linear(model)[name].register_forward_pre_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in found:
            keep(name)
        for tokens in batches:
            model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _pad(each.value, *(padded(1, each.value.shape[0])[1],) * 2) for name, each in found.items()}


def rounded(weight: Float[Tensor, "n k"], hessian: Float[Tensor, "wide wide"] | None, group: int = GROUP) -> Rounded:
    """The codes of one layer, padded: GPTQ with the improved clipping, or to the nearest where there is no Hessian."""
    wide = _pad(weight.detach(), *padded(*weight.shape))
    return nearest(wide, group=group) if hessian is None else gptq(wide, hessian, group=group)


def quantize(model: nn.Module, hessians: Mapping[str, Tensor] | None, group: int = GROUP) -> dict[str, Packed]:
    """Replace every linear layer of the blocks by its packed form, in place; without Hessians weights go to the nearest code."""
    layers = {
        name: Packed.of(
            rounded(each.weight, None if hessians is None else hessians[name], group), tuple(each.weight.shape), group
        )
        for name, each in linear(model).items()
    }
    attach(model, layers)
    return layers


def attach(model: nn.Module, layers: Mapping[str, Packed]) -> nn.Module:
    """Put packed layers where linear ones are, in place.

    Raises:
        ValueError: a layer that the model does not have, or of another shape.
    """
    there = linear(model)
    for name, layer in layers.items():
        shape = tuple(there[name].weight.shape) if name in there else "nothing"
        if shape != (layer.outputs, layer.inputs):
            raise ValueError(
                f"layer {name!r}: the file has {(layer.outputs, layer.inputs)}, the model {shape}; build the same model"
            )
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, MarlinLinear(layer))
    return model


def _pad(x: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(x, (0, columns - x.shape[1], 0, rows - x.shape[0]))
