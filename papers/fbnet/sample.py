"""Architectures drawn from what the search has learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import log_softmax

from papers.fbnet.space import CODES

Codes = tuple[str, ...]


class Sample(NamedTuple):
    codes: Codes
    log_probability: float


def probabilities(theta: Float64[np.ndarray, "layer candidate"]) -> Float64[np.ndarray, "layer candidate"]:
    """P(b_l = i) = softmax(theta_l)_i."""
    return np.exp(log_softmax(theta, -1))


def log_probability(theta: Float64[np.ndarray, "layer candidate"], codes: Sequence[str]) -> float:
    """log P(a) = sum_l log softmax(theta_l)[b_l]; layers choose independently (the paper, equation 5)."""
    return float(sum(row[CODES.index(code)] for row, code in zip(log_softmax(theta, -1), codes, strict=True)))


def sample(
    theta: Float64[np.ndarray, "layer candidate"],
    count: int,
    rng: np.random.Generator,
    keep: Callable[[Codes], bool] = lambda codes: True,
    tries: int = 1000,
) -> list[Sample]:
    """``count`` different architectures from P(a), or as many as ``tries`` draws bring.

    Args:
        keep: a filter, such as a bound on latency or multiply-adds.

    Raises:
        ValueError: not one draw passed the filter.
    """
    # One uniform number for each choice: its place among the summed probabilities.
    edges = np.cumsum(probabilities(theta), -1)
    found: dict[Codes, Sample] = {}
    for _ in range(tries):
        if len(found) == count:
            break
        drawn = (rng.random((len(theta), 1)) >= edges / edges[:, -1:]).sum(-1)
        codes = tuple(CODES[i] for i in drawn)
        if codes not in found and keep(codes):
            found[codes] = Sample(codes, log_probability(theta, codes))
    if not found:
        raise ValueError(f"none of {tries} architectures drawn passed the filter; loosen it")
    return list(found.values())


def uniform(layers: int) -> Float64[np.ndarray, "layer candidate"]:
    """Logits under which all architectures are as likely."""
    return np.zeros((layers, len(CODES)))


def entropy(theta: Float64[np.ndarray, "layer candidate"]) -> float:
    """Mean over layers of the entropy of a choice, as a share of its largest value."""
    logs = log_softmax(theta, -1)
    return float(-(np.exp(logs) * logs).sum(-1).mean() / math.log(theta.shape[-1]))
