"""GPTQ in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ratios

BLOCK = 128
"""Columns whose errors are passed on to the rest at once."""


def dense(codes: Tensor, scales: Tensor) -> Tensor:
    group = codes.shape[-1] // scales.shape[-1]
    return codes.float() * scales.float().repeat_interleave(group, dim=-1)


def nearest(weights: Tensor, bits: int, group: int, clip: str) -> tuple[Tensor, Tensor]:
    weights = _real(weights)
    grouped = weights.unflatten(-1, (-1, group))
    scales = _scales(grouped, bits, clip, None)
    codes = _round(grouped, scales.to(weights.dtype)[..., None], bits)
    return codes.flatten(-2).to(torch.int8), scales


def prepare(hessian: Tensor, damping: float, order: str) -> tuple[Tensor | None, Tensor]:
    """The order of the columns, and U, upper, with U^T U the inverse of the damped Hessian in it; NaN where there is none."""
    columns, diagonal = None, hessian.diagonal(dim1=-2, dim2=-1)
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    damped = hessian + damping * diagonal.mean(-1)[..., None, None] * eye
    if order == "activation":
        columns = diagonal.argsort(dim=-1, descending=True, stable=True)
        damped = damped.take_along_dim(columns[..., None], -2).take_along_dim(columns[..., None, :], -1)
    lower, bad = torch.linalg.cholesky_ex(damped)
    half = torch.linalg.solve_triangular(lower, eye, upper=False)
    upper, worse = torch.linalg.cholesky_ex(half.mT @ half, upper=True)
    return columns, torch.where(((bad + worse) != 0)[..., None, None], torch.nan, upper)


def gptq(weights: Tensor, upper: Tensor, columns: Tensor | None, bits: int, group: int, clip: str) -> tuple[Tensor, Tensor]:
    weights, k = weights.to(upper.dtype).clone(), weights.shape[-1]
    if columns is None:
        return _natural(weights, upper, bits, group, clip)
    scales, spread = _scales(weights.unflatten(-1, (-1, group)), bits, clip, None), columns[..., None, :]
    steps = scales.to(weights.dtype).repeat_interleave(group, dim=-1).take_along_dim(spread, -1)
    weights, codes = weights.take_along_dim(spread, -1), torch.empty_like(weights)
    for start in range(0, k, BLOCK):
        block = slice(start, min(start + BLOCK, k))
        codes[..., block], errors = _block(weights[..., block].clone(), upper[..., block, block], steps[..., block], bits)
        weights[..., block.stop :] -= errors @ upper[..., block, block.stop :]
    return codes.take_along_dim(columns.argsort(dim=-1)[..., None, :], -1).to(torch.int8), scales


def _natural(weights: Tensor, upper: Tensor, bits: int, group: int, clip: str) -> tuple[Tensor, Tensor]:
    codes, scales = torch.empty_like(weights), []
    for start in range(0, weights.shape[-1], group):
        block = slice(start, start + group)
        inner = upper[..., block, block]
        scales.append(_scales(weights[..., block].unsqueeze(-2), bits, clip, inner))
        steps = scales[-1].to(weights.dtype).expand(weights[..., block].shape)
        codes[..., block], errors = _block(weights[..., block].clone(), inner, steps, bits)
        weights[..., block.stop :] -= errors @ upper[..., block, block.stop :]
    return codes.to(torch.int8), torch.cat(scales, -1)


def _block(weights: Tensor, upper: Tensor, steps: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes of one block of columns, and its errors for the columns behind it."""
    codes, errors = torch.empty_like(weights), torch.empty_like(weights)
    for column in range(weights.shape[-1]):
        value, step = weights[..., column], steps[..., column]
        codes[..., column] = _round(value, step, bits)
        errors[..., column] = (value - step * codes[..., column]) / upper[..., column, column, None]
        weights[..., column + 1 :] -= errors[..., column, None] * upper[..., column, None, column + 1 :]
    return codes, errors


def _scales(grouped: Tensor, bits: int, clip: str, upper: Tensor | None) -> Tensor:
    """(..., rows, groups) in float16 for (..., rows, groups, group); with "hessian" there is one group and its factor."""
    largest = grouped.abs().amax(-1)
    best, least = _half(largest, bits, 1.0), torch.full_like(largest, torch.inf)
    if clip == "none":
        return best
    inverse = None if upper is None or clip == "error" else torch.linalg.inv(upper)
    for ratio in ratios().tolist():
        scales = _half(largest, bits, ratio)
        step = scales.to(grouped.dtype)[..., None]
        error = step * _round(grouped, step, bits) - grouped
        if inverse is not None:
            error = (error.squeeze(-2) @ inverse).unsqueeze(-2)
        error = error.square().sum(-1)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    return best


def _half(largest: Tensor, bits: int, ratio: float) -> Tensor:
    scales = (largest * (2.0 * ratio / (2**bits - 1))).half()
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _round(values: Tensor, step: Tensor, bits: int) -> Tensor:
    return (values / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _real(weights: Tensor) -> Tensor:
    return weights if weights.dtype == torch.float64 else weights.float()
