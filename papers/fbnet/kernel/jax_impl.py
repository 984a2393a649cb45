"""JAX: one product for all groups; XLA writes it in the shuffled order."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jaxtyping import Float


def group_pointwise_shuffle(
    x: Float[Array, "*places inputs"], weight: Float[Array, "group each_in each_out"]
) -> Float[Array, "*places outputs"]:
    inputs = rearrange(x, "... (group each) -> ... group each", group=weight.shape[0])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.einsum("...gi,gij->...jg", inputs, weight, preferred_element_type=wide, precision="highest")
    return rearrange(y, "... each group -> ... (each group)").astype(x.dtype)
