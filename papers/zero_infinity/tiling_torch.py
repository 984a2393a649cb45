"""Memory-centric tiling: a linear layer as a grid of smaller ones, computed one after the other (paper, section 5.1.3).

    y_o = sum_i W_oi x_i + b_o,  x cut into ``in_splits`` parts, y into ``out_splits``

Under the engine each tile is fetched, used and released by itself, so that the device never holds more than a tile. The
same in JAX: :mod:`papers.zero_infinity.tiling_jax`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from papers.zero_infinity.tiling import check, edges


class TiledLinear(nn.Module):
    """``nn.Linear`` in tiles; the bias is added by the last part of the input.

    Args:
        in_splits, out_splits: parts of input and output; sizes differ by at most one.

    Raises:
        ValueError: more parts than features, or fewer than one.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, in_splits: int = 1, out_splits: int = 1, **options: Any
    ) -> None:
        super().__init__()
        check(in_features, out_features, in_splits, out_splits)
        self.in_edges, self.out_edges = edges(in_features, in_splits), edges(out_features, out_splits)
        self.tiles = nn.ModuleList(
            nn.ModuleList(
                nn.Linear(i1 - i0, o1 - o0, bias and i1 == in_features, **options)
                for i0, i1 in zip(self.in_edges, self.in_edges[1:], strict=False)
            )
            for o0, o1 in zip(self.out_edges, self.out_edges[1:], strict=False)
        )

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        parts = [x[..., i0:i1] for i0, i1 in zip(self.in_edges, self.in_edges[1:], strict=False)]
        out = []
        row: Any
        for row in self.tiles:
            total = row[0](parts[0])
            for tile, part in zip(row[1:], parts[1:], strict=True):
                total = total + tile(part)
            out.append(total)
        return torch.cat(out, -1)

    @classmethod
    def of(cls, linear: nn.Linear, in_splits: int, out_splits: int) -> TiledLinear:
        """The same function as a linear layer, in tiles."""
        weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        tiled = cls(
            linear.in_features, linear.out_features, bias is not None, in_splits=in_splits, out_splits=out_splits,
            dtype=weight.dtype, device=weight.device,
        )  # fmt: skip
        row: Any
        with torch.no_grad():
            for row, o0, o1 in zip(tiled.tiles, tiled.out_edges, tiled.out_edges[1:], strict=False):
                for tile, i0, i1 in zip(row, tiled.in_edges, tiled.in_edges[1:], strict=False):
                    tile.weight.copy_(weight[o0:o1, i0:i1])
                    if tile.bias is not None:
                        tile.bias.copy_(bias[o0:o1])
        return tiled
