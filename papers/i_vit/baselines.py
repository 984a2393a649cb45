"""Integer softmax and GELU of others, for comparison: I-BERT's polynomials and FQ-ViT's base-two logarithm of a softmax."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int


def ibert_exp(x: Int[np.ndarray, "*shape"], scale: float) -> Float[np.ndarray, "*shape"]:
    """exp(S x) for x <= 0 as 2^-z 0.3585 ((p + 1.353)^2 + 0.344), p in (-ln 2, 0], in integers; returned as real numbers.

    Source: Kim et al., I-BERT (arXiv 2101.01321), section 3.5, algorithm 3.
    """
    step = math.floor(math.log(2) / scale)
    z = -x.astype(np.int64) // step
    p = x + z * step
    step_out = 0.3585 * scale * scale
    return ((p + math.floor(1.353 / scale)) ** 2 + math.floor(0.344 / step_out)) * step_out / 2.0**z


def ibert_softmax(x: Int[np.ndarray, "*rows count"], scale: float) -> Float[np.ndarray, "*rows count"]:
    e = ibert_exp(x.astype(np.int64) - x.max(axis=-1, keepdims=True), scale)
    return e / e.sum(axis=-1, keepdims=True)


def ibert_gelu(x: Int[np.ndarray, "*shape"], scale: float) -> Float[np.ndarray, "*shape"]:
    """x (1 + L(x / sqrt 2)) / 2, L(u) = sign(u) (-0.2888 (min(|u|, 1.769) - 1.769)^2 + 1) in integers.

    Source: I-BERT, section 3.4, algorithm 2.
    """
    inner = scale / math.sqrt(2)
    b, one = math.floor(1.769 / inner), math.floor(1 / (0.2888 * inner * inner))
    clipped = np.minimum(np.abs(x.astype(np.int64)), b)
    square = one - (clipped - b) ** 2
    erf = np.sign(x) * square * (0.2888 * inner * inner)
    return x * scale * (1 + erf) / 2


def log_int_softmax(x: Int[np.ndarray, "*rows count"], scale: float, bits: int = 4) -> Float[np.ndarray, "*rows count"]:
    """2^-k, k = round(log2(sum e / e)) clamped to ``bits`` bits, e from :func:`ibert_exp`: attention weights become shifts.

    Source: Lin et al., FQ-ViT (arXiv 2111.13824), section 3.3.
    """
    e = ibert_exp(x.astype(np.int64) - x.max(axis=-1, keepdims=True), scale)
    ratio = np.floor(e.sum(axis=-1, keepdims=True) / np.maximum(e, 1e-30) + 0.5)
    k = np.floor(np.log2(ratio) + 0.5)
    return np.where(k >= 2**bits, 0.0, 2.0 ** -np.clip(k, 0, 2**bits - 1))
