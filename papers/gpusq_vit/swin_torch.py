"""A Swin block in PyTorch; the twin is :mod:`papers.gpusq_vit.swin_jax`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.architecture import VisionTransformer
from common.models import EPSILON
from common.models.vision_torch import Block
from papers.gpusq_vit import swin
from papers.gpusq_vit.model_torch import Linear


class SwinBlock(nn.Module):
    """A block whose tokens attend within windows, of the image rolled by ``shift`` rows and columns.

    Norms and the feed-forward network know no neighbours, so the whole block runs on windows as if they were images.

    Args:
        side: tokens along each side of the image, whole windows.
        linear: makes every projection, as in :class:`common.models.vision_torch.ViT`.

    Source: Liu et al., Swin Transformer (arXiv 2103.14030), section 3.2.
    """

    def __init__(
        self, width: int, heads: int, side: int, window: int = 7, shift: int = 0,
        linear: Callable[..., nn.Module] = Linear, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        swin.check(side, window, shift)
        self.side, self.window, self.shift = side, window, shift
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads, dtype=dtype))
        self.register_buffer("places", torch.from_numpy(swin.relative_places(window)))
        far = torch.from_numpy(swin.strangers(side, window, shift)).to(dtype) * swin.FAR
        self.register_buffer("far", far)
        shape = VisionTransformer(image=side, patch=1, classes=1, width=width, depth=1, heads=heads, hidden=4 * width)
        norm = partial(nn.LayerNorm, width, eps=EPSILON, dtype=dtype)
        self.block = Block(shape, 0, self._attend, partial(linear, dtype=dtype), norm)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        sizes = {"wide": self.window, "high": self.window, "row": self.side // self.window}
        image = rearrange(x, "b (y x) c -> b y x c", y=self.side).roll((-self.shift, -self.shift), (1, 2))
        windows = rearrange(
            image, "b (row high) (column wide) c -> (b row column) (high wide) c", high=self.window, wide=self.window
        )
        y = rearrange(
            self.block(windows), "(b row column) (high wide) c -> b (row high) (column wide) c", column=sizes["row"], **sizes
        )
        return rearrange(y.roll((self.shift, self.shift), (1, 2)), "b y x c -> b (y x) c")

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        near = rearrange(self.bias[self.places], "i j head -> head i j")
        scores = q @ k.mT * q.shape[-1] ** -0.5 + near
        scores = rearrange(scores, "(b window) head i j -> b window head i j", window=len(self.far)) + self.far[:, None]
        return scores.flatten(0, 1).softmax(-1) @ v
