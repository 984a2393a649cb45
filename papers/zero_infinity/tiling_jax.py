"""Memory-centric tiling in flax.nnx; what it is says :mod:`papers.zero_infinity.tiling_torch`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from papers.zero_infinity.tiling import check, edges


class TiledLinear(nnx.Module):
    """``nnx.Linear`` in tiles; the bias is added by the last part of the input.

    Raises:
        ValueError: more parts than features, or fewer than one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = True,
        *,
        in_splits: int = 1,
        out_splits: int = 1,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        check(in_features, out_features, in_splits, out_splits)
        self.in_edges = tuple(edges(in_features, in_splits))
        self.out_edges = tuple(edges(out_features, out_splits))
        self.tiles = nnx.List(
            [
                nnx.List(
                    [
                        nnx.Linear(i1 - i0, o1 - o0, use_bias=use_bias and i1 == in_features, rngs=rngs, **options)
                        for i0, i1 in zip(self.in_edges, self.in_edges[1:], strict=False)
                    ]
                )
                for o0, o1 in zip(self.out_edges, self.out_edges[1:], strict=False)
            ]
        )

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        parts = [x[..., i0:i1] for i0, i1 in zip(self.in_edges, self.in_edges[1:], strict=False)]
        out = []
        for row in self.tiles:
            total = row[0](parts[0])
            for tile, part in zip(list(row)[1:], parts[1:], strict=True):
                total = total + tile(part)
            out.append(total)
        return jnp.concatenate(out, -1)

    @classmethod
    def of(cls, linear: nnx.Linear, in_splits: int, out_splits: int) -> TiledLinear:
        """The same function as a linear layer, in tiles."""
        kernel, bias = linear.kernel[...], None if linear.bias is None else linear.bias[...]
        tiled = cls(
            kernel.shape[0], kernel.shape[1], bias is not None, in_splits=in_splits, out_splits=out_splits, param_dtype=kernel.dtype,
            rngs=nnx.Rngs(0),
        )  # fmt: skip
        for row, o0, o1 in zip(tiled.tiles, tiled.out_edges, tiled.out_edges[1:], strict=False):
            for tile, i0, i1 in zip(row, tiled.in_edges, tiled.in_edges[1:], strict=False):
                tile.kernel[...] = kernel[i0:i1, o0:o1]
                if tile.bias is not None and bias is not None:
                    tile.bias[...] = bias[o0:o1]
        return tiled
