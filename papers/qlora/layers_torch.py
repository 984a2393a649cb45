"""Linear layers in 4 bits and low-rank adapters in PyTorch; the twin is :mod:`papers.qlora.layers_jax`.

quantize(model)                       # every linear layer of a block is held in 4 bits
add_adapters(model, rank=64)          # and gets the only parameters that are trained
save_adapters(model, path)
merge(model); unmerge(model)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from papers.qlora.kernel import dequantize_nf4, matmul_nf4
from papers.qlora.weights import ALL_LINEAR, FourBit, first_factor, matching


class Linear4bit(nn.Module):
    """y = x W^T with W held as packed indices and quantised scales only; no bias, and nothing to train.

    Args:
        weight: (n, k), which is not kept.
        kind, double, block, name: as :meth:`papers.qlora.weights.FourBit.of`.
    """

    def __init__(
        self, weight: Float[Tensor, "n k"], kind: str = "nf4", *, double: bool = True, block: int = 64, name: str = "weight"
    ):
        super().__init__()
        made = FourBit.of(weight.detach(), kind, double=double, block=block, name=name)
        self.block = made.block
        self.out_features, self.in_features = weight.shape
        for each in ("packed", "absmax", "code", "scales", "offset"):
            value = getattr(made, each)
            self.register_buffer(each, torch.tensor(value, device=weight.device) if isinstance(value, np.ndarray) else value)

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        return matmul_nf4(x, self.packed, self.absmax, self.code, scales=self.scales, offset=self.offset, block=self.block)

    def weight(self) -> Float[Tensor, "n k"]:
        """W in float32, made anew."""
        return dequantize_nf4(self.packed, self.absmax, self.code, scales=self.scales, offset=self.offset, block=self.block)


class LoRA(nn.Module):
    """y = base(x) + s dropout(x) L1 L2 with s = alpha / rank; the base is frozen.

    L1 (k, rank) comes from :func:`papers.qlora.weights.first_factor`, L2 (rank, n) is zero, so a new adapter changes
    nothing. Source: Hu et al., LoRA (arXiv 2106.09685), section 4; QLoRA, equation 3.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, l1: np.ndarray, dtype: torch.dtype):
        super().__init__()
        inputs, outputs = base.in_features, base.out_features
        device = next((t.device for t in [*base.parameters(), *base.buffers()]), torch.device("cpu"))
        self.base, self.scale, self.dropout = base.requires_grad_(False), alpha / rank, dropout
        self.l1 = nn.Parameter(torch.from_numpy(l1).to(device, dtype))
        self.l2 = nn.Parameter(torch.zeros(rank, outputs, device=device, dtype=dtype))
        self.in_features, self.out_features = inputs, outputs

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        down = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return self.base(x) + self.scale * (down.to(self.l1.dtype) @ self.l1 @ self.l2).to(x.dtype)

    def weight(self) -> Float[Tensor, "n k"]:
        """W^T + s L1 L2, transposed, in float32."""
        return _weight(self.base).float() + self.scale * (self.l1.float() @ self.l2.float()).T


class Merged(nn.Module):
    """One dense matrix in place of a base and its adapter, which it keeps so that they can come back."""

    def __init__(self, source: LoRA, dtype: torch.dtype):
        super().__init__()
        self.source = source
        self.register_buffer("dense", source.weight().detach().to(dtype), persistent=False)

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        return F.linear(x, self.dense)


def quantize(model: nn.Module, kind: str = "nf4", *, double: bool = True, block: int = 64, target: str = ALL_LINEAR) -> nn.Module:
    """Replace the linear layers that ``target`` matches by :class:`Linear4bit`, in place, and freeze all the rest.

    Raises:
        ValueError: a weight that is not finite, by its name; a target that matches no linear layer.
    """
    model.requires_grad_(False)
    layers = _linear(model)
    for name in matching(target, layers):
        _put(model, name, Linear4bit(layers[name].weight, kind, double=double, block=block, name=f"{name}.weight"))
    return model


def add_adapters(
    model: nn.Module, rank: int, *, alpha: float = 16.0, dropout: float = 0.0, target: str = ALL_LINEAR, seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:  # fmt: skip
    """Freeze the model and put a :class:`LoRA` around every linear layer that ``target`` matches, in place.

    The adapters are drawn layer by layer from the seed, the same as :func:`papers.qlora.layers_jax.add_adapters` draws.

    Raises:
        ValueError: a rank below 1; a target that matches no layer, with a list of those there are.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; wanted at least 1")
    model.requires_grad_(False)
    layers, rng = _linear(model), np.random.default_rng(seed)
    for name in matching(target, layers):
        l1 = first_factor(rng, layers[name].in_features, rank)
        _put(model, name, LoRA(layers[name], rank, alpha, dropout, l1, dtype))
    return model


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' parameters by name."""
    found = [(name, each) for name, each in model.named_modules() if isinstance(each, LoRA)]
    return {f"{name.removesuffix('.source')}.{part}": getattr(each, part) for name, each in found for part in ("l1", "l2")}


def save_adapters(model: nn.Module, path: Path) -> None:
    """Write the adapters alone, as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.detach().contiguous() for name, value in adapters(model).items()}, path)


def load_adapters(model: nn.Module, source: Path | dict[str, np.ndarray]) -> None:
    """Fill the adapters from a file of :func:`save_adapters` (of either framework) or from arrays.

    Raises:
        ValueError: names or shapes that differ, the first of them.
    """
    from safetensors.torch import load_file

    values = load_file(source) if isinstance(source, Path) else {name: torch.from_numpy(a) for name, a in source.items()}
    mine = adapters(model)
    for name in mine.keys() | values.keys():
        if name not in mine or name not in values or mine[name].shape != values[name].shape:
            shapes = [tuple(each[name].shape) if name in each else "nothing" for each in (mine, values)]
            raise ValueError(
                f"adapter {name!r}: the model has {shapes[0]}, the file {shapes[1]}; build the model as it was saved"
            )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(values[name])


def merge(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Replace every base and adapter by the one matrix W^T + s L1 L2, in place: no adapter to compute, all in ``dtype``."""
    for name, each in _of(model, LoRA):
        _put(model, name, Merged(each, dtype))
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Bring back the bases and adapters, to the bit."""
    for name, each in _of(model, Merged):
        _put(model, name, each.source)
    return model


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]


def held(model: nn.Module) -> list[Tensor]:
    """All tensors of a model, each once."""
    return list({id(each): each for each in [*model.parameters(), *model.buffers()]}.values())


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Linear4bit)) and not n.endswith(".base")}


def _of(model: nn.Module, kind: type[nn.Module]) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in list(model.named_modules()) if isinstance(each, kind)]


def _weight(base: nn.Module) -> Tensor:
    return base.weight() if isinstance(base, Linear4bit) else base.weight


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
