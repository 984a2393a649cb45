"""A Swin block in flax.nnx; the twin is :mod:`papers.gpusq_vit.swin_torch`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from common.architecture import VisionTransformer
from common.models import EPSILON
from common.models.vision_jax import Block
from papers.gpusq_vit import swin
from papers.gpusq_vit.model_jax import Linear


class SwinBlock(nnx.Module):
    """A block whose tokens attend within windows, of the image rolled by ``shift`` rows and columns; see the twin."""

    def __init__(
        self, width: int, heads: int, side: int, window: int = 7, shift: int = 0,
        linear: Callable[..., nnx.Module] = Linear, param_dtype: Any = jnp.float32,
    ) -> None:  # fmt: skip
        swin.check(side, window, shift)
        self.side, self.window, self.shift = side, window, shift
        self.bias = nnx.Param(jnp.zeros(((2 * window - 1) ** 2, heads), param_dtype))
        options = {"param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        shape = VisionTransformer(image=side, patch=1, classes=1, width=width, depth=1, heads=heads, hidden=4 * width)
        norm = partial(nnx.LayerNorm, width, epsilon=EPSILON, use_fast_variance=False, **options)
        # The mechanism is handed over at each call: it reads the table of this block, traced or not.
        self.block = Block(shape, 0, _unset, partial(linear, **options), norm)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        sizes = {"wide": self.window, "high": self.window, "row": self.side // self.window}
        image = jnp.roll(rearrange(x, "b (y x) c -> b y x c", y=self.side), (-self.shift, -self.shift), (1, 2))
        windows = rearrange(
            image, "b (row high) (column wide) c -> (b row column) (high wide) c", high=self.window, wide=self.window
        )
        self.block.attention.mechanism = self._attend
        y = rearrange(
            self.block(windows), "(b row column) (high wide) c -> b (row high) (column wide) c", column=sizes["row"], **sizes
        )
        self.block.attention.mechanism = _unset
        return rearrange(jnp.roll(y, (self.shift, self.shift), (1, 2)), "b y x c -> b (y x) c")

    def _attend(self, q: Array, k: Array, v: Array, layer: int) -> Array:
        near = rearrange(self.bias[...][swin.relative_places(self.window)], "i j head -> head i j")
        far = swin.strangers(self.side, self.window, self.shift) * jnp.asarray(swin.FAR, q.dtype)
        scores = q @ k.mT * q.shape[-1] ** -0.5 + near
        scores = rearrange(scores, "(b window) head i j -> b window head i j", window=len(far)) + far[:, None]
        return jax.nn.softmax(scores.reshape(-1, *scores.shape[2:]), axis=-1) @ v


def _unset(*_: Any) -> Array:
    raise RuntimeError("the mechanism of a Swin block is set by its call")
