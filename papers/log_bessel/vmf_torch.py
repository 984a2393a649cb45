"""Von Mises-Fisher distribution on the unit sphere of R^p, in PyTorch: density, maximum likelihood, samples.

f(x) = C_p(kappa) exp(kappa mu . x),  log C_p(kappa) = (p/2 - 1) log kappa - (p/2) log 2 pi - log I_(p/2 - 1)(kappa).
All of it is computed in float64: in 32,768 dimensions log C_p is of the order 1e5, and float32 would keep two decimals.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .kernel import bessel_ratio, log_bessel_i

NEWTON_STEPS = 8
UNIT_TOLERANCE = 1e-4
"""How far a row's norm may be from 1: float32 rows of 32,768 entries are within 1e-5."""


class VonMisesFisher(NamedTuple):
    """A fit: mean direction, concentration, and what is left of the score equation, |A_p(kappa) - R|."""

    direction: Float[Tensor, " dim"]
    kappa: Float[Tensor, ""]
    residual: Float[Tensor, ""]


def vmf_log_normalizer(dim: int, kappa: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log C_p(kappa), p = ``dim`` >= 2, kappa >= 0; at 0 that of the uniform distribution.

    Its derivative is -A_p(kappa) = -I_(p/2)(kappa) / I_(p/2 - 1)(kappa), taken as this ratio: the derivatives of the
    terms are p / (2 kappa) each and cancel.
    """
    _check_dim(dim)
    if not bool(((kappa >= 0) & (kappa < math.inf)).all()):
        raise ValueError(f"kappa must be finite and >= 0, got {kappa.detach().flatten().tolist()[:4]}")
    return _LogNormalizer.apply(kappa.to(torch.float64), dim)


def vmf_logpdf(
    x: Float[Tensor, "*batch dim"],
    direction: Float[Tensor, " entries"],
    kappa: Float[Tensor, "*#batch"],
    *,
    normalize: bool = False,
) -> Float[Tensor, "*batch"]:
    """log f(x) of unit rows x for a unit ``direction``; rows of other length are refused unless ``normalize``."""
    if direction.shape != x.shape[-1:]:
        raise ValueError(f"direction must have the {x.shape[-1]} entries of a row of x, got shape {tuple(direction.shape)}")
    x = _unit_rows("x", x, normalize)
    direction = _unit_rows("direction", direction, normalize)
    return vmf_log_normalizer(x.shape[-1], kappa) + kappa * (x @ direction)


def vmf_fit(x: Float[Tensor, "n dim"], *, normalize: bool = False, steps: int = NEWTON_STEPS) -> VonMisesFisher:
    """Maximum likelihood: mu = m / R for the mean m of the rows and R = |m|; kappa solves A_p(kappa) = R.

    kappa starts at R (p - R^2) / (1 - R^2) and takes Newton's steps kappa - (A - R) / A', A' = 1 - A^2 - (p - 1) A /
    kappa. For R near 1 the terms of A' cancel; it is kept within a factor 2 of the derivative that belongs to the start.

    Args:
        x: unit rows; with ``normalize`` of any length but 0.
        steps: Newton's steps; two suffice in high dimension, the default everywhere.

    Raises:
        ValueError: rows that are not unit; NaN; a mean of 0, where every direction is as good and kappa is 0; rows that
            are all the same (one row, too), for which kappa has no maximum.
    """
    if x.ndim != 2 or not len(x):
        raise ValueError(f"x must hold rows of points, (n, dim) with n >= 1, got shape {tuple(x.shape)}")
    dim = x.shape[1]
    _check_dim(dim)
    mean = _unit_rows("x", x, normalize).mean(0)
    resultant = torch.linalg.vector_norm(mean)
    _check_resultant(float(resultant), len(x))
    kappa = _inverse(dim, resultant)
    for _ in range(steps):
        ratio = bessel_ratio(dim / 2 - 1, kappa)
        guess = 1 / _inverse_slope(dim, ratio)
        slope = torch.clamp(1 - ratio**2 - (dim - 1) * ratio / kappa, guess / 2, guess * 2)
        # Never below a tenth: a step too far must not leave the domain.
        kappa = torch.maximum(kappa - (ratio - resultant) / slope, kappa / 10)
    residual = (bessel_ratio(dim / 2 - 1, kappa) - resultant).abs()
    return VonMisesFisher(mean / resultant, kappa, residual)


def vmf_sample(
    direction: Float[Tensor, " dim"], kappa: float, n: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "n dim"]:
    """n independent points (Wood, Communications in Statistics: Simulation and Computation 23, 1994).

    The component along the direction, w, comes by rejection from a transformed Beta((p - 1)/2, (p - 1)/2); what is
    orthogonal is uniform. 1 - w is kept rather than w, which rounds to 1 at large kappa.
    """
    dim = len(direction)
    _check_dim(dim)
    if not 0 <= kappa < math.inf or n < 0:
        raise ValueError(f"kappa must be finite and >= 0 and n >= 0, got kappa {kappa} and n {n}")
    direction = _unit_rows("direction", direction, False)
    gap = _gaps(dim, float(kappa), n, direction.device, generator)[:, None]
    across = torch.randn(n, dim, dtype=torch.float64, device=direction.device, generator=generator)
    across -= (across @ direction)[:, None] * direction
    across /= torch.linalg.vector_norm(across, dim=1, keepdim=True)
    return (1 - gap) * direction + torch.sqrt(gap * (2 - gap)) * across


class _LogNormalizer(torch.autograd.Function):
    @staticmethod
    def forward(kappa: Tensor, dim: int) -> Tensor:
        positive = torch.where(kappa > 0, kappa, 1.0)
        value = (dim / 2 - 1) * positive.log() - dim / 2 * math.log(2 * math.pi) - log_bessel_i(dim / 2 - 1, positive)
        return torch.where(kappa > 0, value, math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        kappa, ctx.dim = inputs
        ctx.save_for_backward(kappa)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -gradient * bessel_ratio(ctx.dim / 2 - 1, ctx.saved_tensors[0]), None


def _gaps(dim: int, kappa: float, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """n draws of 1 - w; those refused are drawn again, about a third of them at worst."""
    half = torch.full((), (dim - 1) / 2, dtype=torch.float64, device=device)
    b = (dim - 1) / (2 * kappa + math.sqrt(4 * kappa**2 + (dim - 1) ** 2))
    mode = (1 - b) / (1 + b)
    level = kappa * mode + (dim - 1) * math.log(4 * b / (1 + b) ** 2)
    found = torch.empty(0, dtype=torch.float64, device=device)
    while len(found) < n:
        gammas = torch._standard_gamma(half.expand(2, n - len(found)), generator=generator)
        z = gammas[0] / gammas.sum(0)
        gap = 2 * b * z / (1 - (1 - b) * z)
        log_ratio = kappa * (1 - gap) + (dim - 1) * torch.log(1 - mode * (1 - gap)) - level
        uniform = torch.rand(len(z), dtype=torch.float64, device=device, generator=generator)
        found = torch.cat([found, gap[log_ratio >= torch.log(uniform)]])
    return found


def _inverse(dim: int, ratio: Any) -> Any:
    """kappa from A_p(kappa) = ratio, to a few per cent (Banerjee et al., JMLR 6, 2005)."""
    return ratio * (dim - ratio**2) / (1 - ratio**2)


def _inverse_slope(dim: int, ratio: Any) -> Any:
    rest = 1 - ratio**2
    return (dim - 3 * ratio**2) / rest + 2 * ratio**2 * (dim - ratio**2) / rest**2


def _check_dim(dim: int) -> None:
    if dim < 2:
        raise ValueError(f"a sphere needs at least 2 dimensions, got {dim}")


def _check_resultant(resultant: float, n: int) -> None:
    if not resultant > 1e-14:
        raise ValueError(f"the mean of the rows is 0 (R = {resultant:.1e}): kappa is 0 and no direction is better than another")
    if resultant > 1 - 1e-12:
        raise ValueError(f"all {n} rows are the same (R = 1): the likelihood grows with kappa without bound")


def _unit_rows(name: str, x: Tensor, normalize: bool) -> Tensor:
    """The rows in float64, of norm 1 to the last digit."""
    x = x.to(torch.float64)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if not bool(torch.isfinite(norm).all()) or bool((norm == 0).any()):
        raise ValueError(f"{name} holds NaN, inf or a row of zeros, which is no direction")
    if not normalize and float((norm - 1).abs().max()) > UNIT_TOLERANCE:
        worst = float(norm.flatten()[(norm - 1).abs().argmax()])
        raise ValueError(f"rows of {name} must have norm 1, got {worst:.6g}; normalise them or pass normalize=True")
    return x / norm
