"""Von Mises-Fisher distribution on the unit sphere of R^p, in JAX: the twin of ``vmf_torch``, same names and meaning.

Everything runs under jit; what an input's values decide (NaN, rows of other length, R = 0 or 1) is refused only outside.
It computes in the widest float there is: enable x64 for the residual of 1e-10 that the tests ask for.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .kernel import bessel_ratio, log_bessel_i

NEWTON_STEPS = 8
UNIT_TOLERANCE = 1e-4


class VonMisesFisher(NamedTuple):
    """A fit: mean direction, concentration, and what is left of the score equation, |A_p(kappa) - R|."""

    direction: Float[Array, " dim"]
    kappa: Float[Array, ""]
    residual: Float[Array, ""]


def vmf_log_normalizer(dim: int, kappa: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """log C_p(kappa) = (p/2 - 1) log kappa - (p/2) log 2 pi - log I_(p/2 - 1)(kappa), p = ``dim`` >= 2, kappa >= 0."""
    _check_dim(dim)
    if _concrete(kappa) and not bool(((kappa >= 0) & (kappa < math.inf)).all()):
        raise ValueError(f"kappa must be finite and >= 0, got {kappa.ravel().tolist()[:4]}")
    return _log_normalizer(dim, jnp.asarray(kappa, _wide()))


def vmf_logpdf(
    x: Float[Array, "*batch dim"], direction: Float[Array, " entries"], kappa: Float[Array, "*#batch"], *, normalize: bool = False
) -> Float[Array, "*batch"]:
    """log f(x) = log C_p(kappa) + kappa mu . x of unit rows; others are refused unless ``normalize``."""
    if direction.shape != x.shape[-1:]:
        raise ValueError(f"direction must have the {x.shape[-1]} entries of a row of x, got shape {direction.shape}")
    x = _unit_rows("x", x, normalize)
    direction = _unit_rows("direction", direction, normalize)
    return vmf_log_normalizer(x.shape[-1], kappa) + kappa * (x @ direction)


def vmf_fit(x: Float[Array, "n dim"], *, normalize: bool = False, steps: int = NEWTON_STEPS) -> VonMisesFisher:
    """Maximum likelihood by Newton's method; arguments, limits and errors as in ``vmf_torch.vmf_fit``."""
    if x.ndim != 2 or not len(x):
        raise ValueError(f"x must hold rows of points, (n, dim) with n >= 1, got shape {x.shape}")
    dim = x.shape[1]
    _check_dim(dim)
    mean = _unit_rows("x", x, normalize).mean(0)
    resultant = jnp.linalg.norm(mean)
    if _concrete(resultant):
        _check_resultant(float(resultant), len(x))
    return VonMisesFisher(mean / resultant, *_solve(dim, steps, resultant))


def vmf_sample(key: Array, direction: Float[Array, " dim"], kappa: Float[Array, ""] | float, n: int) -> Float[Array, "n dim"]:
    """n independent points by Wood's algorithm; every refused draw is repeated in a loop on the device."""
    _check_dim(len(direction))
    if _concrete(kappa) and not 0 <= float(kappa) < math.inf:
        raise ValueError(f"kappa must be finite and >= 0, got {kappa}")
    return _sample(key, _unit_rows("direction", direction, False), jnp.asarray(kappa, _wide()), n)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_normalizer(dim: int, kappa: Array) -> Array:
    positive = jnp.where(kappa > 0, kappa, 1.0)
    value = (dim / 2 - 1) * jnp.log(positive) - dim / 2 * math.log(2 * math.pi) - log_bessel_i(dim / 2 - 1, positive)
    return jnp.where(kappa > 0, value, math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi))


@_log_normalizer.defjvp
def _push(dim: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The derivative is -A_p(kappa); those of the terms are p / (2 kappa) each and cancel.
    return _log_normalizer(dim, *primals), -bessel_ratio(dim / 2 - 1, primals[0]) * tangents[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solve(dim: int, steps: int, resultant: Array) -> tuple[Array, Array]:
    """kappa with A_p(kappa) = resultant, and the residual."""

    def newton(_: Any, kappa: Array) -> Array:
        ratio = bessel_ratio(dim / 2 - 1, kappa)
        rest = 1 - ratio**2
        # The derivative that belongs to the start; where the terms of the exact one cancel, it stays within a factor 2 of it.
        guess = 1 / ((dim - 3 * ratio**2) / rest + 2 * ratio**2 * (dim - ratio**2) / rest**2)
        slope = jnp.clip(1 - ratio**2 - (dim - 1) * ratio / kappa, guess / 2, guess * 2)
        return jnp.maximum(kappa - (ratio - resultant) / slope, kappa / 10)

    start = resultant * (dim - resultant**2) / (1 - resultant**2)
    kappa = jax.lax.fori_loop(0, steps, newton, start)
    return kappa, jnp.abs(bessel_ratio(dim / 2 - 1, kappa) - resultant)


@functools.partial(jax.jit, static_argnums=(3,))
def _sample(key: Array, direction: Array, kappa: Array, n: int) -> Array:
    dim = len(direction)
    first, second = jax.random.split(key)
    b = (dim - 1) / (2 * kappa + jnp.sqrt(4 * kappa**2 + (dim - 1) ** 2))
    mode = (1 - b) / (1 + b)
    level = kappa * mode + (dim - 1) * jnp.log(4 * b / (1 + b) ** 2)

    def draw(carry: Any) -> Any:
        key, gap, done = carry
        key, beta, uniform = jax.random.split(key, 3)
        z = jax.random.beta(beta, (dim - 1) / 2, (dim - 1) / 2, (n,), kappa.dtype)
        proposed = 2 * b * z / (1 - (1 - b) * z)
        log_ratio = kappa * (1 - proposed) + (dim - 1) * jnp.log(1 - mode * (1 - proposed)) - level
        accepted = log_ratio >= jnp.log(jax.random.uniform(uniform, (n,), kappa.dtype))
        return key, jnp.where(done, gap, proposed), done | accepted

    start = (first, jnp.zeros(n, kappa.dtype), jnp.zeros(n, bool))
    gap = jax.lax.while_loop(lambda carry: ~carry[2].all(), draw, start)[1][:, None]
    across = jax.random.normal(second, (n, dim), kappa.dtype)
    across -= (across @ direction)[:, None] * direction
    across /= jnp.linalg.norm(across, axis=1, keepdims=True)
    return (1 - gap) * direction + jnp.sqrt(gap * (2 - gap)) * across


def _check_dim(dim: int) -> None:
    if dim < 2:
        raise ValueError(f"a sphere needs at least 2 dimensions, got {dim}")


def _check_resultant(resultant: float, n: int) -> None:
    # The rounding of the mean: 1e-12 in float64, 1e-5 in float32.
    room = 1e-12 if _wide() == jnp.float64 else 1e-5
    if not resultant > room / 100:
        raise ValueError(f"the mean of the rows is 0 (R = {resultant:.1e}): kappa is 0 and no direction is better than another")
    if resultant > 1 - room:
        raise ValueError(f"all {n} rows are the same (R = 1): the likelihood grows with kappa without bound")


def _unit_rows(name: str, x: Array, normalize: bool) -> Array:
    """The rows in the widest float, of norm 1 to the last digit."""
    x = jnp.asarray(x, _wide())
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    if _concrete(norm):
        if not bool(jnp.isfinite(norm).all()) or bool((norm == 0).any()):
            raise ValueError(f"{name} holds NaN, inf or a row of zeros, which is no direction")
        if not normalize and float(jnp.abs(norm - 1).max()) > UNIT_TOLERANCE:
            worst = float(norm.ravel()[jnp.abs(norm - 1).argmax()])
            raise ValueError(f"rows of {name} must have norm 1, got {worst:.6g}; normalise them or pass normalize=True")
    return x / norm


def _concrete(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def _wide() -> Any:
    return jax.dtypes.canonicalize_dtype(jnp.float64)
