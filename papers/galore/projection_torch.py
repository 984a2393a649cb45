"""Projectors in PyTorch: found, applied, and kept in codes; the twins for JAX are in :mod:`papers.galore.optimizer_jax`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from papers.galore.projection import POWER, Projection, gaussian


def projectors(
    gradient: Float[Tensor, "m n"], rank: int, projection: Projection
) -> tuple[Float[Tensor, "m r"] | None, Float[Tensor, "r n"] | None]:
    """(P, Q): the leading left and right singular directions of a gradient, those that the side asks for.

    Decomposed in float32, or float64 for a float64 gradient, and returned in the gradient's dtype.
    """
    matrix = gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float()
    if projection.method == "svd":
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, _, v = randomized_svd(matrix, rank)
    on_left, on_right = projection.sides(*gradient.shape)
    left, right = u[:, :rank], v[:rank]
    if projection.signs == "fixed":
        left, right = _fixed(left, 0), _fixed(right, 1)
    # Contiguous copies: a view would keep the whole of U or V alive.
    return (
        left.to(gradient.dtype, copy=True, memory_format=torch.contiguous_format) if on_left else None,
        right.to(gradient.dtype, copy=True, memory_format=torch.contiguous_format) if on_right else None,
    )


def randomized_svd(
    matrix: Float[Tensor, "m n"], rank: int
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k n"]]:
    """About the ``rank`` leading singular triples, by a random range finder with power iterations.

    The range of G Omega, Omega a Gaussian n x (rank + OVERSAMPLING) matrix, is found with POWER multiplications by G G^T, each
    orthonormalised; the small matrix that is left is decomposed exactly. Source: Halko, Martinsson, Tropp (2011), 4.4 and 5.1.
    """
    basis = torch.linalg.qr(matrix @ torch.from_numpy(gaussian(*matrix.shape, rank)).to(matrix)).Q
    for _ in range(POWER):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
    u, s, v = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    return basis @ u, s, v


def project(gradient: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    low = gradient if left is None else left.mT @ gradient
    return low if right is None else low @ right.mT


def add_back(parameter: Tensor, direction: Tensor, left: Tensor | None, right: Tensor | None, factor: float) -> None:
    """W <- W + factor P N Q, without a matrix of the size of W beside it."""
    if left is not None and right is not None:
        parameter.addmm_(left @ direction, right, alpha=factor)
    elif left is not None:
        parameter.addmm_(left, direction, alpha=factor)
    else:
        parameter.addmm_(direction, right, alpha=factor)  # type: ignore[arg-type]


def _fixed(directions: Tensor, along: int) -> Tensor:
    """Directions turned so that the largest entry of each is positive."""
    largest = directions.abs().argmax(along, keepdim=True)
    return directions * directions.gather(along, largest).sign()


def quantize(projector: Tensor, block: int) -> tuple[Tensor, Tensor]:
    from kernels.block_quant import code_book, quantize_blockwise

    codes, scale = quantize_blockwise(projector.reshape(-1).float(), code_book("dynamic_signed"), block=block)
    return codes.view(projector.shape), scale


def dequantize(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    from kernels.block_quant import code_book, dequantize_blockwise

    return dequantize_blockwise(codes.reshape(-1), scale, code_book("dynamic_signed"), block=block).view(codes.shape).to(dtype)
