"""The layers on the CPU. Of 8-bit codes there are so few that exponentials and sigmoids are read from tables; the tables are
made by the whole-array form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Int, Int8, Int32
from torch import Tensor

from common.threads import in_parts

SMALL = 1 << 14
"""Entries below which a second thread costs more than it saves."""


def shiftmax(x: Int[Tensor, "*rows count"], unit: int, n: int, bits: int, dtype: torch.dtype) -> Int[Tensor, "*rows count"]:
    out = torch.empty(x.shape, dtype=dtype)
    source, target = _rows(x), _rows(out)
    if x.dtype == torch.int8:
        table = _exponentials(unit, n)
        _spread(lambda a, b: _shiftmax_table(source[a:b], table, 32 - bits, target[a:b]), source)
    else:
        _spread(lambda a, b: _shiftmax(source[a:b], unit, n, 32 - bits, target[a:b]), source)
    return out


def shift_gelu(x: Int8[Tensor, "*rows count"], unit: int, n: int, wide: bool, shifts: bool) -> Int32[Tensor, "*rows count"]:
    out = torch.empty(x.shape, dtype=torch.int32)
    source, target, table = _rows(x), _rows(out), _products(unit, n, wide, shifts)
    _spread(lambda a, b: _gelu_table(source[a:b], table, target[a:b]), source)
    return out


def i_layernorm(x: Int[Tensor, "*rows count"], steps: int) -> Int32[Tensor, "*rows count"]:
    out = torch.empty(x.shape, dtype=torch.int32)
    source, target = _rows(x), _rows(out)
    _spread(lambda a, b: _normalise(source[a:b], steps, target[a:b]), source)
    return out


def _rows(x: Tensor) -> np.ndarray:
    return x.contiguous().view(-1, x.shape[-1]).numpy()


def _spread(work: Callable[[int, int], Any], source: np.ndarray) -> None:
    threads = torch.get_num_threads()
    in_parts(work, len(source), 1 if source.size < SMALL else min(threads, len(source)), threads)


@functools.lru_cache(maxsize=256)
def _exponentials(unit: int, n: int) -> np.ndarray:
    """Of 0, -1, ..., -255."""
    return np.array([_shift_exp(-x, unit, n) for x in range(256)], np.int32)


@functools.lru_cache(maxsize=256)
def _products(unit: int, n: int, wide: bool, shifts: bool) -> np.ndarray:
    """x sigmoid(x) for each largest code 0..127 of a row and each code -128..127 up to it."""
    from .torch_impl import gelu_by_arrays

    most, x = torch.arange(128)[:, None, None], torch.arange(-128, 128)[:, None]
    pairs = torch.cat(torch.broadcast_tensors(torch.minimum(x, most), most), -1).to(torch.int32)
    return gelu_by_arrays(pairs, unit, n, wide, shifts)[..., 0].contiguous().numpy()


@numba.njit(nogil=True, cache=True)
@no_type_check
def _shift_exp(x, unit, n):
    x = max(x + (x >> 1) - (x >> 4), -n * unit)
    q = -x // unit
    return ((x + q * unit + 2 * unit) << (n - q)) >> 1


@numba.njit(nogil=True, cache=True)
@no_type_check
def _shiftmax_table(x, table, shift, out):
    e = np.empty(x.shape[1], np.int32)
    for row in range(x.shape[0]):
        most = np.int32(-128)
        for each in x[row]:
            most = max(most, np.int32(each))
        total = np.int32(0)
        for c in range(x.shape[1]):
            e[c] = table[most - np.int32(x[row, c])]
        for c in range(x.shape[1]):
            total += e[c]
        factor = np.int32((2**31 - 1) // np.int64(total))
        for c in range(x.shape[1]):
            out[row, c] = np.int32(e[c] * factor) >> np.int32(shift)


@numba.njit(nogil=True, cache=True)
@no_type_check
def _shiftmax(x, unit, n, shift, out):
    e = np.empty(x.shape[1], np.int64)
    for row in range(x.shape[0]):
        most, total = np.int64(x[row].max()), np.int64(0)
        for c in range(x.shape[1]):
            e[c] = _shift_exp(np.int64(x[row, c]) - most, unit, n)
            total += e[c]
        factor = (2**31 - 1) // total
        for c in range(x.shape[1]):
            out[row, c] = (e[c] * factor) >> shift


@numba.njit(nogil=True, cache=True)
@no_type_check
def _gelu_table(x, table, out):
    for row in range(x.shape[0]):
        most = np.int32(0)
        for each in x[row]:
            most = max(most, np.int32(each))
        line = table[most]
        for c in range(x.shape[1]):
            out[row, c] = line[np.int32(x[row, c]) + 128]


@numba.njit(nogil=True, cache=True)
@no_type_check
def _normalise(x, steps, out):
    count = x.shape[1]
    for row in range(x.shape[0]):
        total = np.int64(0)
        for each in x[row]:
            total += each
        mean, v = (2 * total + count) // (2 * count), np.int64(0)
        for each in x[row]:
            v += (each - mean) * (each - mean)
        k = np.int64(2**16)
        for _ in range(steps):
            k = (k + v // k) >> 1
        factor = (2**31 - 1) // k
        for c in range(count):
            out[row, c] = ((x[row, c] - mean) * factor) >> 1
