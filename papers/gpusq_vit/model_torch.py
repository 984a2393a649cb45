"""The method in PyTorch: a linear layer whose weights and inputs go through transforms, and the three losses of distillation.

The twin is :mod:`papers.gpusq_vit.model_jax`; both have the same functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.architecture import VisionTransformer
from common.models.vision_torch import ViT
from common.models.weights import Weights, from_torch, to_torch
from kernels import sparse24
from kernels.fake_quant import fake_quantize, limits
from papers.gpusq_vit import compress
from papers.gpusq_vit.store import Compressed, others


class Linear(nn.Linear):
    """y = F(x) T(W)^T + b with T and F the transforms of weights and inputs, one after the other; none at first."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, dtype: torch.dtype | None = None):
        super().__init__(inputs, outputs, bias, dtype=dtype)
        self.on_weight, self.on_input = nn.ModuleDict(), nn.ModuleDict()
        self.watch: Callable[[Tensor], None] | None = None

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        if self.watch is not None:
            self.watch(x)
        weight = self.weight
        for transform in self.on_weight.values():
            weight = transform(weight)
        for transform in self.on_input.values():
            x = transform(x)
        return F.linear(x, weight, self.bias)


class Pruned(nn.Module):
    """W where the mask is true, zero elsewhere."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask[:, : weight.shape[1]]


class QuantizedWeight(nn.Module):
    """W on the grid of each row, which follows the weights: symmetric, by channel."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, compress.weight_scale(weight.detach(), self.bits), bits=self.bits, axis=0)


class QuantizedInput(nn.Module):
    """x on one grid, chosen beforehand: symmetric, by tensor, static."""

    def __init__(self, bits: int, scale: Tensor):
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale.to(x.dtype), bits=self.bits)


class PackedLinear(nn.Module):
    """y = s_x s_W (W_int x_int) + b from the packed weights alone.

    On a CPU the weights are unpacked once, when they are first multiplied by more than a few vectors.
    """

    def __init__(self, packed: compress.Packed, input_scale: float | None, bias: np.ndarray | None):
        super().__init__()
        self.k, self.bits, self.paired = packed.k, packed.bits, packed.bits == 4
        self.values, self.meta = torch.from_numpy(packed.values), torch.from_numpy(packed.meta)
        self.input_scale = input_scale
        step = torch.ones(len(packed.values)) if packed.scale is None else torch.from_numpy(packed.scale.astype(np.float32))
        self.scale = step if input_scale is None else step * input_scale
        self.bias = None if bias is None else torch.from_numpy(bias.astype(np.float32))

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        if self.input_scale is not None:
            low, high = limits(self.bits)
            x = (x * (1 / torch.tensor(self.input_scale))).clamp(low, high).round()
        x = F.pad(x, (0, compress.filled(self.k, self.bits) - self.k))
        values = self.values.float() if self.bits == 16 else self.values
        y = sparse24.matmul(x, values, self.meta, self.scale, paired=self.paired)
        return y if self.bias is None else y + self.bias


def build(architecture: VisionTransformer, weights: Weights, double: bool = False) -> ViT:
    """A dense model whose linear layers can be compressed."""
    model = ViT(architecture, linear=Linear, dtype=torch.float64 if double else torch.float32)
    to_torch(model, weights)
    return model.eval()


def copied(model: ViT) -> ViT:
    return copy.deepcopy(model)


def weights_of(model: nn.Module) -> Weights:
    return from_torch(model)


def layers(model: nn.Module) -> dict[str, Linear]:
    return {name: each for name, each in model.named_modules() if isinstance(each, Linear)}


def prune(model: nn.Module, bits: int, classifier: bool = True, ragged: str = "pad") -> None:
    """Fix the mask of each layer from its weights as they are now; 4 bits take the paired pattern."""
    known = layers(model)
    for name in compress.compressed_layers(known, classifier):
        mask = compress.layer_mask(name, known[name].weight.detach(), bits, ragged)
        if mask is not None:
            known[name].on_weight["pruned"] = Pruned(mask)


def take_masks(model: nn.Module, source: nn.Module) -> None:
    """Prune a model by the masks of another."""
    known = layers(model)
    for name, each in layers(source).items():
        if "pruned" in each.on_weight:
            known[name].on_weight["pruned"] = Pruned(each.on_weight["pruned"].mask)


def quantize(model: nn.Module, bits: int, images: Float[np.ndarray, n * shape]) -> None:
    """Put grids on the weights and the inputs of all pruned layers; ranges of inputs are those that the images make."""
    pruned = {name: each for name, each in layers(model).items() if "pruned" in each.on_weight}
    for name, scale in calibrate(model, images, bits, list(pruned)).items():
        place = pruned[name].weight
        pruned[name].on_weight["quantized"] = QuantizedWeight(bits)
        pruned[name].on_input["quantized"] = QuantizedInput(bits, torch.tensor(scale, dtype=place.dtype, device=place.device))


@torch.no_grad()
def calibrate(model: nn.Module, images: np.ndarray, bits: int, names: list[str]) -> dict[str, float]:
    """The input scale of each layer."""
    known, seen = layers(model), {}
    for name in names:
        known[name].watch = partial(seen.__setitem__, name)
    model(_like(model, images))
    for name in names:
        known[name].watch = None
    return {name: compress.input_scale(x.float().cpu().numpy(), bits) for name, x in seen.items()}


def features(model: ViT, images: Tensor) -> tuple[Float[Tensor, "batch classes"], list[Tensor]]:
    """Logits, and what each block gives to the next."""
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, y: found.append(y)) for block in model.blocks]
    try:
        return model(images), found
    finally:
        for hook in hooks:
            hook.remove()


def distillation(
    student: tuple[Float[Tensor, "batch classes"], list[Tensor]],
    teacher: tuple[Float[Tensor, "batch classes"], list[Tensor]],
    labels: Int[Tensor, " batch"] | None,
    *,
    critical: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Float[Tensor, " blocks"]]:
    """L_hard, L_soft and the feature loss of each of the last ``critical`` blocks.

    L_hard = CE(student, labels), or the teacher's predictions without labels
    L_soft = T^2 KL(teacher / T || student / T)
    l_i = mean |F_i^S - F_i^T|^2 over the samples for which both predict one class; others count as zero
    """
    (logits, maps), (wanted, aims) = student, teacher
    predicted = wanted.argmax(1)
    hard = F.cross_entropy(logits, predicted if labels is None else labels)
    soft = F.kl_div(
        F.log_softmax(logits / temperature, 1), F.log_softmax(wanted / temperature, 1), reduction="batchmean", log_target=True
    )
    agree = (logits.argmax(1) == predicted).to(logits.dtype)
    late = zip(maps[-critical:], aims[-critical:], strict=True)
    feature = torch.stack([(agree * (mine - theirs).square().mean((1, 2))).mean() for mine, theirs in late])
    return hard, temperature**2 * soft, feature


def loss(
    teacher: nn.Module, weights: tuple[float, float, float], blocks: np.ndarray, temperature: float, labelled: bool,
    shuffled: bool = False, log: list[list[float]] | None = None,
) -> Callable[[nn.Module, Any], Tensor]:  # fmt: skip
    """alpha L_hard + beta L_soft + gamma sum w_i l_i, as the training loop takes it; ``log`` gets the three terms of each step.

    ``shuffled`` gives each image the teacher of another one: a control.
    """

    def value(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            aim = features(teacher, images.flip(0) if shuffled else images)
        parts = distillation(
            features(model, images), aim, labels if labelled else None, critical=len(blocks), temperature=temperature
        )
        terms = torch.stack([parts[0], parts[1], (parts[2] * torch.as_tensor(blocks, dtype=parts[2].dtype)).sum()])
        if log is not None:
            log.append(terms.tolist())
        return (terms * torch.tensor(weights, dtype=terms.dtype)).sum()

    return value


@torch.no_grad()
def feature_losses(student: ViT, teacher: ViT, images: np.ndarray, critical: int, batch: int = 256) -> np.ndarray:
    """l_i of each critical block over all images."""
    total = np.zeros(critical)
    for some in torch.split(_like(student, images), batch):
        found = distillation(features(student, some), features(teacher, some), None, critical=critical, temperature=1.0)
        total += found[2].double().cpu().numpy() * len(some)
    return total / len(images)


@torch.no_grad()
def predictions(model: nn.Module, images: np.ndarray, batch: int = 512) -> np.ndarray:
    """The class of the largest logit of each image."""
    pieces = torch.split(torch.from_numpy(images), batch)
    return torch.cat([model(each).argmax(1) for each in pieces]).numpy()


def train(model: nn.Module, objective: Any, batch_at: Any, rate: float, decay: float, steps: int, **options: Any) -> Any:
    from common.training import torch_loop

    return torch_loop.train(model, objective, batch_at, torch_loop.adamw(model, rate, decay), steps, **options)


def export(model: ViT, bits: int) -> Compressed:
    """The compressed model as it goes into a file: weights of 16 bits, or quantised as in training."""
    packed, scales = {}, {}
    for name, layer in layers(model).items():
        if "pruned" not in layer.on_weight:
            continue
        packed[name] = compress.pack_layer(layer.weight.detach(), layer.on_weight["pruned"].mask, bits)
        if "quantized" in layer.on_input:
            scales[name] = float(layer.on_input["quantized"].scale)
    return Compressed(packed, scales, others(from_torch(model), packed), bits, model.architecture)


def load(compressed: Compressed) -> ViT:
    """A model that runs from the packed weights."""
    assert compressed.architecture is not None
    model = ViT(compressed.architecture)
    whole = {name: array.astype(np.float32) for name, array in compressed.others.items()}
    to_torch(model, whole | {f"{name}.weight": layer.weights() for name, layer in compressed.layers.items()})
    for name, layer in compressed.layers.items():
        owner, _, last = name.rpartition(".")
        made = PackedLinear(layer, compressed.input_scales.get(name), compressed.others.get(f"{name}.bias"))
        setattr(model.get_submodule(owner), last, made)
    return model.eval()


def _like(model: nn.Module, images: np.ndarray) -> Tensor:
    place = next(model.parameters())
    return torch.from_numpy(images).to(place.device, place.dtype)
