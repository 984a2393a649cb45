"""The method in flax.nnx; the twin is :mod:`papers.gpusq_vit.model_torch`, with the same functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from common.architecture import VisionTransformer
from common.models.vision_jax import ViT
from common.models.weights import Weights, from_flax, to_flax
from kernels import sparse24
from kernels.fake_quant import fake_quantize, limits
from papers.gpusq_vit import compress
from papers.gpusq_vit.store import Compressed, others


class Fixed(nnx.Variable):
    """An array that is not trained: a mask, a scale, packed weights."""


class Linear(nnx.Linear):
    """y = F(x) T(W)^T + b with T and F the transforms of weights and inputs, one after the other; none at first."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.on_weight, self.on_input = nnx.Dict({}), nnx.Dict({})
        self.watch: Callable[[Array], None] | None = None

    def __call__(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch n"]:
        if self.watch is not None:
            self.watch(x)
        weight = self.kernel[...].T
        for transform in self.on_weight.values():
            weight = transform(weight)
        for transform in self.on_input.values():
            x = transform(x)
        y = x @ weight.T
        return y if self.bias is None else y + self.bias[...]


class Pruned(nnx.Module):
    """W where the mask is true, zero elsewhere."""

    def __init__(self, mask: Array):
        self.mask = Fixed(mask)

    def __call__(self, weight: Array) -> Array:
        return weight * self.mask[...][:, : weight.shape[1]]


class QuantizedWeight(nnx.Module):
    """W on the grid of each row, which follows the weights: symmetric, by channel."""

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, weight: Array) -> Array:
        return fake_quantize(weight, compress.weight_scale(jax.lax.stop_gradient(weight), self.bits), bits=self.bits, axis=0)


class QuantizedInput(nnx.Module):
    """x on one grid, chosen beforehand: symmetric, by tensor, static."""

    def __init__(self, bits: int, scale: Array):
        self.bits, self.scale = bits, Fixed(scale)

    def __call__(self, x: Array) -> Array:
        return fake_quantize(x, self.scale[...].astype(x.dtype), bits=self.bits)


class PackedLinear(nnx.Module):
    """y = s_x s_W (W_int x_int) + b from the packed weights alone."""

    def __init__(self, packed: compress.Packed, input_scale: float | None, bias: np.ndarray | None):
        self.k, self.bits, self.paired, self.input_scale = packed.k, packed.bits, packed.bits == 4, input_scale
        values = packed.values.astype(np.float32) if packed.bits == 16 else packed.values
        self.values, self.meta = Fixed(jnp.asarray(values)), Fixed(jnp.asarray(packed.meta))
        step = np.ones(len(packed.values), np.float32) if packed.scale is None else packed.scale.astype(np.float32)
        self.scale = Fixed(jnp.asarray(step if input_scale is None else step * np.float32(input_scale)))
        self.bias = None if bias is None else Fixed(jnp.asarray(bias, jnp.float32))

    def __call__(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch n"]:
        if self.input_scale is not None:
            x = jnp.round(jnp.clip(x * (1 / jnp.float32(self.input_scale)), *limits(self.bits)))
        more = compress.filled(self.k, self.bits) - self.k
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])
        y = sparse24.matmul(x, self.values[...], self.meta[...], self.scale[...], paired=self.paired)
        return y if self.bias is None else y + self.bias[...]


def build(architecture: VisionTransformer, weights: Weights, double: bool = False) -> ViT:
    """A dense model whose linear layers can be compressed; ``double`` inside ``jax.enable_x64(True)`` alone."""
    model = ViT(architecture, linear=Linear, param_dtype=jnp.float64 if double else jnp.float32)
    to_flax(model, weights)
    return model


def copied(model: ViT) -> ViT:
    return nnx.clone(model)


def weights_of(model: nnx.Module) -> Weights:
    return from_flax(model)


def layers(model: nnx.Module) -> dict[str, Linear]:
    return {".".join(map(str, path)): each for path, each in nnx.iter_modules(model) if isinstance(each, Linear)}


def prune(model: nnx.Module, bits: int, classifier: bool = True, ragged: str = "pad") -> None:
    """Fix the mask of each layer from its weights as they are now; 4 bits take the paired pattern."""
    known = layers(model)
    for name in compress.compressed_layers(known, classifier):
        mask = compress.layer_mask(name, known[name].kernel[...].T, bits, ragged, compiled=jax.jit)
        if mask is not None:
            known[name].on_weight["pruned"] = Pruned(mask)


def take_masks(model: nnx.Module, source: nnx.Module) -> None:
    """Prune a model by the masks of another."""
    known = layers(model)
    for name, each in layers(source).items():
        if "pruned" in each.on_weight:
            known[name].on_weight["pruned"] = Pruned(each.on_weight["pruned"].mask[...])


def quantize(model: nnx.Module, bits: int, images: Float[np.ndarray, n * shape]) -> None:
    """Put grids on the weights and the inputs of all pruned layers; ranges of inputs are those that the images make."""
    pruned = {name: each for name, each in layers(model).items() if "pruned" in each.on_weight}
    for name, scale in calibrate(model, images, bits, list(pruned)).items():
        pruned[name].on_weight["quantized"] = QuantizedWeight(bits)
        pruned[name].on_input["quantized"] = QuantizedInput(bits, jnp.asarray(scale, pruned[name].kernel[...].dtype))


def calibrate(model: nnx.Module, images: np.ndarray, bits: int, names: list[str]) -> dict[str, float]:
    """The input scale of each layer."""

    def inputs(model: Any, images: Array) -> dict[str, Array]:
        known, seen = layers(model), {}
        for name in names:
            known[name].watch = partial(seen.__setitem__, name)
        model(images)
        return seen

    found = _compiled(inputs, model)(_like(model, images))
    return {name: compress.input_scale(np.asarray(x, np.float32), bits) for name, x in found.items()}


def features(model: ViT, images: Array) -> tuple[Float[Array, "batch classes"], list[Array]]:
    """Logits, and what each block gives to the next."""
    found: list[Array] = []

    def keep(block: Any, x: Array) -> Array:
        found.append(block(x))
        return found[-1]

    blocks = model.blocks
    try:
        model.blocks = [partial(keep, block) for block in blocks]
        return model(images), found
    finally:
        model.blocks = blocks


def distillation(
    student: tuple[Float[Array, "batch classes"], list[Array]],
    teacher: tuple[Float[Array, "batch classes"], list[Array]],
    labels: Int[Array, " batch"] | None,
    *,
    critical: int,
    temperature: float,
) -> tuple[Array, Array, Float[Array, " blocks"]]:
    """L_hard, L_soft and the feature loss of each of the last ``critical`` blocks; see the twin."""
    (logits, maps), (wanted, aims) = student, teacher
    predicted = wanted.argmax(1)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, predicted if labels is None else labels).mean()
    soft = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits / temperature), jax.nn.log_softmax(wanted / temperature)
    ).mean()
    agree = (logits.argmax(1) == predicted).astype(logits.dtype)
    late = zip(maps[-critical:], aims[-critical:], strict=True)
    feature = jnp.stack([(agree * jnp.square(mine - theirs).mean((1, 2))).mean() for mine, theirs in late])
    return hard, temperature**2 * soft, feature


def loss(
    teacher: nnx.Module, weights: tuple[float, float, float], blocks: np.ndarray, temperature: float, labelled: bool,
    shuffled: bool = False, log: list[list[float]] | None = None,
) -> Callable[[Any, Any], Array]:  # fmt: skip
    """alpha L_hard + beta L_soft + gamma sum w_i l_i; steps are compiled, so ``log`` stays empty."""
    graph, state = nnx.split(teacher)

    def value(model: Any, batch: tuple[Array, Array]) -> Array:
        images, labels = batch
        aim = features(nnx.merge(graph, state), images[::-1] if shuffled else images)
        hard, soft, feature = distillation(
            features(model, images),
            jax.lax.stop_gradient(aim),
            labels if labelled else None,
            critical=len(blocks),
            temperature=temperature,
        )
        return weights[0] * hard + weights[1] * soft + weights[2] * (feature * jnp.asarray(blocks, feature.dtype)).sum()

    return value


def feature_losses(student: ViT, teacher: ViT, images: np.ndarray, critical: int, batch: int = 256) -> np.ndarray:
    """l_i of each critical block over all images."""

    def found(both: Any, some: Array) -> Array:
        student, teacher = both
        return distillation(features(student, some), features(teacher, some), None, critical=critical, temperature=1.0)[2]

    value, total = _compiled(found, nnx.List([student, teacher])), np.zeros(critical)
    for start in range(0, len(images), batch):
        some = _like(student, images[start : start + batch])
        total += np.asarray(value(some), np.float64) * len(some)
    return total / len(images)


def predictions(model: nnx.Module, images: np.ndarray, batch: int = 512) -> np.ndarray:
    """The class of the largest logit of each image."""
    classes = _compiled(lambda model, some: model(some).argmax(1), model)
    return np.concatenate([np.asarray(classes(jnp.asarray(images[i : i + batch]))) for i in range(0, len(images), batch)])


def train(model: nnx.Module, objective: Any, batch_at: Any, rate: float, decay: float, steps: int, **options: Any) -> Any:
    from common.training import jax_loop

    return jax_loop.train(model, objective, batch_at, jax_loop.adamw(rate, decay), steps, **options)


def export(model: ViT, bits: int) -> Compressed:
    """The compressed model as it goes into a file: weights of 16 bits, or quantised as in training."""
    packed, scales = {}, {}
    for name, layer in layers(model).items():
        if "pruned" not in layer.on_weight:
            continue
        packed[name] = compress.pack_layer(layer.kernel[...].T, layer.on_weight["pruned"].mask[...], bits, compiled=jax.jit)
        if "quantized" in layer.on_input:
            scales[name] = float(layer.on_input["quantized"].scale[...])
    return Compressed(packed, scales, others(from_flax(model), packed), bits, model.architecture)


def load(compressed: Compressed) -> ViT:
    """A model that runs from the packed weights."""
    assert compressed.architecture is not None
    model = ViT(compressed.architecture)
    whole = {name: array.astype(np.float32) for name, array in compressed.others.items()}
    to_flax(model, whole | {f"{name}.weight": layer.weights() for name, layer in compressed.layers.items()})
    for name, layer in compressed.layers.items():
        *owner, last = name.split(".")
        place: Any = model
        for part in owner:
            place = place[int(part)] if part.isdigit() else getattr(place, part)
        setattr(place, last, PackedLinear(layer, compressed.input_scales.get(name), compressed.others.get(f"{name}.bias")))
    return model


def _compiled(function: Callable[..., Any], model: Any) -> Callable[..., Any]:
    graph, state = nnx.split(model)
    call = jax.jit(lambda state, *arrays: function(nnx.merge(graph, state), *arrays))
    return partial(call, state)


def _like(model: nnx.Module, images: np.ndarray) -> Array:
    return jnp.asarray(images, jax.tree.leaves(nnx.state(model, nnx.Param))[0].dtype)
