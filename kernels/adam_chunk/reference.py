"""The definition, on NumPy or torch, best in float64."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace


def adam_chunk(
    parameter: Any, gradient: Any, mean: Any, square: Any, *, step: int, learning_rate: float, beta1: float = 0.9,
    beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0, decoupled: bool = True,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p = p - eta mhat / (sqrt(vhat) + epsilon)."""
    xp = array_namespace(parameter)
    gradient = xp.astype(gradient, parameter.dtype)
    if decoupled:
        parameter = parameter * (1 - learning_rate * weight_decay)
    else:
        gradient = gradient + weight_decay * parameter
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient**2
    unbiased_mean, unbiased_square = mean / (1 - beta1**step), square / (1 - beta2**step)
    return parameter - learning_rate * unbiased_mean / (xp.sqrt(unbiased_square) + epsilon), mean, square
