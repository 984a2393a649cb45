"""Models built from an architecture, in PyTorch and in flax.nnx, with the same attribute names and the same weights.

Importing this package imports neither framework: take :mod:`common.models.transformer_torch` or
:mod:`common.models.transformer_jax`.
"""

import numpy as np
from jaxtyping import Float64

EPSILON = 1e-5
"""Added to the mean square or the variance in every norm."""


def rotary_table(context: int, head_dim: int) -> Float64[np.ndarray, "2 context half"]:
    """Cosines and sines of the angle t * 10000^(-2 i / head_dim) at position t of the pair i (Su et al. 2021, RoFormer, 3.2).

    One table in float64 for both frameworks, so that they rotate by the same angles however far the position.
    """
    angles = np.outer(np.arange(context), 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim))
    return np.stack([np.cos(angles), np.sin(angles)])
