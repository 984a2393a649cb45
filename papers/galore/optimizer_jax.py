"""GaLore in JAX: an optax transformation that wraps any other; its twin is :mod:`papers.galore.optimizer_torch`.

    optax.chain(galore(optax.scale_by_adam(), rank=128), optax.scale(-0.01))

Each leaf has its own projectors, its own step count and its own state of the inner transformation, which sees the projected
gradient (r x n or m x r) and never the matrix. The singular value decomposition stands under ``lax.cond``, so that a step is
one compiled function and costs a decomposition only every ``gap`` steps.
Source: Zhao et al., arXiv 2403.03507, algorithm 2 and the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from papers.galore.projection import POWER, Projection, gaussian

WORDS = ("attention", "feed_forward")
"""A matrix is projected if a part of its path contains one of these words."""


class Leaf(NamedTuple):
    """The state of one matrix.

    Attributes:
        step: updates made, t.
        skipped: refreshes that were left out because the gradient was not finite.
        left, right: the projectors P (m x r) and Q (r x n), or None.
        inner: state of the inner transformation, for the projected gradient.
    """

    step: Array
    skipped: Array
    left: Array | None
    right: Array | None
    inner: Any


def galore(
    inner: optax.GradientTransformation,
    rank: int,
    gap: int = 200,
    scale: float = 0.25,
    side: str = "std",
    *,
    method: str = "svd",
    signs: str = "fixed",
    transposed: bool = False,
    strict: bool = False,
) -> optax.GradientTransformation:
    """Project each gradient, let ``inner`` transform it, project the result back and multiply it by ``scale``.

    If the gradient of a matrix is not finite when its projectors are due, nothing of this matrix changes, ``skipped`` counts
    it, and the next gradient tries again.

    Args:
        inner: works on projected gradients, one leaf at a time; it gets zeros for parameters, from which shapes can be read.
        rank, gap, scale, side, method, signs: see :class:`papers.galore.projection.Projection`.
        transposed: kernels are (inputs, outputs), as flax keeps them, where the paper and torch have (outputs, inputs); it
            decides which side of a square matrix is projected, and what "left" and "right" mean.
        strict: a rank beyond the shorter side of a matrix is an error instead of a warning.

    Raises:
        ValueError: a leaf that is no matrix (mask it, or use :func:`optax.partition`), a gap or rank below 1.
    """
    projection = Projection(rank, gap, scale, side, method, signs)

    def init(parameters: Any) -> Any:
        def leaf(path: Any, parameter: Array) -> Leaf:
            shape = parameter.shape[::-1] if transposed else parameter.shape
            r = projection.rank_for(jax.tree_util.keystr(path), shape, strict)
            (m, n), (on_left, on_right) = shape, projection.sides(*shape)
            low = jnp.zeros((r if on_left else m, r if on_right else n), parameter.dtype)
            left = jnp.zeros((m, r), parameter.dtype) if on_left else None
            right = jnp.zeros((r, n), parameter.dtype) if on_right else None
            # No buffer twice: a caller may donate the state.
            return Leaf(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), left, right, inner.init(low))

        return jax.tree.map_with_path(leaf, parameters)

    def update(updates: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        gradients: list[Array]
        structure: Any
        gradients, structure = jax.tree.flatten(updates)
        done = [_update(g, s) for g, s in zip(gradients, structure.flatten_up_to(state), strict=True)]
        return structure.unflatten([u for u, _ in done]), structure.unflatten([s for _, s in done])

    def _update(gradient: Array, state: Leaf) -> tuple[Array, Leaf]:
        matrix = gradient.T if transposed else gradient
        due = state.step % gap == 0
        usable = jax.lax.cond(due, lambda: jnp.isfinite(matrix).all(), lambda: jnp.array(True))

        def go() -> tuple[Array, Leaf]:
            kept = state.left, state.right
            r = state.left.shape[1] if state.left is not None else state.right.shape[0]  # type: ignore[union-attr]
            left, right = jax.lax.cond(due, lambda: projectors(matrix, r, projection), lambda: kept)
            low = _project(matrix, left, right)
            direction, state_inner = inner.update(low, state.inner, jnp.zeros_like(low))
            back = scale * _back(direction, left, right)
            return back.T if transposed else back, Leaf(state.step + 1, state.skipped, left, right, state_inner)

        def skip() -> tuple[Array, Leaf]:
            return jnp.zeros_like(gradient), state._replace(skipped=state.skipped + 1)

        return jax.lax.cond(usable, go, skip)

    return optax.GradientTransformation(init, update)


def adamw(
    rate: float,
    rank: int,
    gap: int = 200,
    scale: float = 0.25,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rule: optax.GradientTransformation | None = None,
    projected: Callable[[Any, Array], bool] | None = None,
    **options: Any,
) -> optax.GradientTransformation:
    """A whole optimizer, the twin of ``GaLoreAdamW``: projected leaves by :func:`galore`, all others at full rank.

    Args:
        rate: learning rate; ``scale`` comes to it on projected leaves.
        rule: instead of :func:`scale_by_adam`, say :func:`scale_by_adam8bit`; ``betas`` and ``eps`` are then its own.
        projected: which leaves are projected, from path and leaf; by default matrices of attention and feed-forward.
        options: of :func:`galore`.
    """
    rule = rule or scale_by_adam(*betas, eps)
    chosen = projected or (lambda path, leaf: leaf.ndim == 2 and any(word in jax.tree_util.keystr(path) for word in WORDS))

    def labels(parameters: Any) -> Any:
        return jax.tree.map_with_path(lambda path, leaf: "projected" if chosen(path, leaf) else "whole", parameters)

    parts = {"projected": galore(rule, rank, gap, scale, **options), "whole": _by_leaf(rule)}
    whole = optax.chain(optax.partition(parts, labels), optax.scale(-rate))
    return optax.chain(whole, _decay_after(rate * weight_decay)) if weight_decay else whole


class Moments(NamedTuple):
    t: Array
    mean: Any
    square: Any


def scale_by_adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
    """Adam with epsilon beside the uncorrected root: sqrt(1 - beta2^t) / (1 - beta1^t) M / (sqrt(V) + eps).

    optax.scale_by_adam has it beside the corrected one.
    """

    def init(parameters: Any) -> Moments:
        mean, square = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
        return Moments(jnp.zeros((), jnp.int32), mean, square)

    def update(gradients: Any, state: Moments, parameters: Any = None) -> tuple[Any, Moments]:
        t = state.t + 1
        mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, gradients)
        square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, gradients)

        def direction(m: Array, v: Array) -> Array:
            size = jnp.sqrt(1 - jnp.asarray(beta2, _wide()) ** t) / (1 - jnp.asarray(beta1, _wide()) ** t)
            return size.astype(m.dtype) * m / (jnp.sqrt(v) + eps)

        return jax.tree.map(direction, mean, square), Moments(t, mean, square)

    return optax.GradientTransformation(init, update)


class Codes(NamedTuple):
    """Moments in block-wise 8-bit codes; without scales, in float32."""

    t: Array
    mean: Array
    mean_scale: Array | None
    square: Array
    square_scale: Array | None


def scale_by_adam8bit(
    beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, least: int = 4096, grid: bool = False
) -> optax.GradientTransformation:
    """Adam whose moments are 8-bit codes, for one leaf at a time; the twin of ``GaLoreAdamW8bit``."""
    from papers.galore.kernel import BLOCK, adam8bit

    def init(parameter: Array) -> Codes:
        coded, n = parameter.size >= least, parameter.size
        mean, square = (jnp.zeros(n, jnp.uint8 if coded else jnp.float32) for _ in range(2))
        mean_scale, square_scale = (jnp.zeros(-(-n // BLOCK), jnp.float32) if coded else None for _ in range(2))
        return Codes(jnp.zeros((), jnp.int32), mean, mean_scale, square, square_scale)

    def update(gradient: Array, state: Codes, parameters: Any = None) -> tuple[Array, Codes]:
        t, flat = state.t + 1, gradient.reshape(-1).astype(jnp.float32)
        if state.mean_scale is None:
            mean = beta1 * state.mean + (1 - beta1) * flat
            square = beta2 * state.square + (1 - beta2) * flat * flat
            new: Any = Codes(t, mean, None, square, None)
            direction = mean / (1 - beta1**t) / (jnp.sqrt(square) / jnp.sqrt(1 - beta2**t) + eps)
        else:
            direction, *codes = adam8bit(
                flat, state.mean, state.mean_scale, state.square, state.square_scale,
                step=t, beta1=beta1, beta2=beta2, epsilon=eps, grid=grid,
            )  # fmt: skip
            new = Codes(t, *codes)
        return direction.reshape(gradient.shape).astype(gradient.dtype), new

    return optax.GradientTransformation(init, update)


def projectors(
    gradient: Float[Array, "m n"], rank: int, projection: Projection
) -> tuple[Float[Array, "m r"] | None, Float[Array, "r n"] | None]:
    """(P, Q): the leading left and right singular directions of a gradient, those that the side asks for."""
    matrix = gradient if gradient.dtype in (jnp.float32, jnp.float64) else gradient.astype(jnp.float32)
    if projection.method == "svd":
        u, _, v = jnp.linalg.svd(matrix, full_matrices=False)
    else:
        u, _, v = randomized_svd(matrix, rank)
    on_left, on_right = projection.sides(*gradient.shape)
    left, right = u[:, :rank], v[:rank]
    if projection.signs == "fixed":
        left, right = _fixed(left, 0), _fixed(right, 1)
    return left.astype(gradient.dtype) if on_left else None, right.astype(gradient.dtype) if on_right else None


def randomized_svd(matrix: Float[Array, "m n"], rank: int) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
    """About the ``rank`` leading singular triples; see the twin in PyTorch."""
    basis = jnp.linalg.qr(matrix @ jnp.asarray(gaussian(*matrix.shape, rank), matrix.dtype))[0]
    for _ in range(POWER):
        basis = jnp.linalg.qr(matrix @ jnp.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, v = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, v


def _project(gradient: Array, left: Array | None, right: Array | None) -> Array:
    low = gradient if left is None else left.T @ gradient
    return low if right is None else low @ right.T


def _back(direction: Array, left: Array | None, right: Array | None) -> Array:
    high = direction if left is None else left @ direction
    return high if right is None else high @ right


def _fixed(directions: Array, along: int) -> Array:
    """Directions turned so that the largest entry of each is positive."""
    largest = jnp.abs(directions).argmax(along, keepdims=True)
    return directions * jnp.sign(jnp.take_along_axis(directions, largest, along))


def _by_leaf(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule for each leaf alone, as projected leaves have it."""

    def init(parameters: Any) -> Any:
        return jax.tree.map(rule.init, parameters)

    def update(updates: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        leaves: list[Array]
        structure: Any
        leaves, structure = jax.tree.flatten(updates)
        done = [rule.update(g, s) for g, s in zip(leaves, structure.flatten_up_to(state), strict=True)]
        return structure.unflatten([u for u, _ in done]), structure.unflatten([s for _, s in done])

    return optax.GradientTransformation(init, update)


def _decay_after(amount: float) -> optax.GradientTransformation:
    """W <- (W + update) (1 - amount)."""

    def update(updates: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        if parameters is None:
            raise ValueError("galore: weight decay needs the parameters; call update(gradients, state, parameters)")
        return jax.tree.map(lambda u, p: u * (1 - amount) - amount * p, updates, parameters), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _wide() -> Any:
    return jax.dtypes.canonicalize_dtype(jnp.float64)
