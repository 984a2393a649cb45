"""A weight matrix in 4 bits, as the arrays that both frameworks hold. Imports none of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from kernels.bitpack import pack
from kernels.block_quant import code_book, double_dequantize, double_quantize, quantize_blockwise
from papers.qlora.grids import GRIDS, NAMES

ALL_LINEAR = r"attention\.(query|key|value|output)|feed_forward\.(gate|up|down)"
"""Every linear layer of a block, and not the head: where the paper says adapters must be."""
ATTENTION = r"attention\.(query|key|value|output)"


class FourBit(NamedTuple):
    """What is left of a matrix (n, k): with ``scales`` and ``offset`` its c1 are 8-bit indices, without them float32."""

    packed: UInt8[Any, "n half"]
    absmax: Shaped[Any, " blocks"]
    code: Float[Any, " 16"]
    scales: Float[Any, " outer"] | None
    offset: Float[Any, ""] | None
    block: int

    @classmethod
    def of(
        cls, w: Float[Any, "n k"], kind: str = "nf4", *, double: bool = True, block: int = 64, name: str = "weight"
    ) -> FourBit:
        """Quantise a matrix of any framework.

        Args:
            kind: a name of :data:`papers.qlora.grids.NAMES`.
            double: quantise the scales too.
            name: of the matrix, for the error that names it.

        Raises:
            ValueError: numbers that are not finite; an odd number of columns; a kind or block that is not offered.
        """
        if kind not in NAMES:
            raise ValueError(f"{name}: no 4-bit code {kind!r}; there are {', '.join(NAMES)}")
        if len(w.shape) != 2 or w.shape[1] % 2:
            raise ValueError(f"{name} has shape {tuple(w.shape)}; wanted (n, k) with k even, two weights share a byte")
        book = GRIDS[kind] if kind in GRIDS else code_book(kind)
        try:
            indices, absmax = quantize_blockwise(w, book, block=block)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        packed = pack(indices, bits=4).reshape(w.shape[0], w.shape[1] // 2)
        # Fewer than 16 codes are filled up with their largest, which no index names.
        code = np.concatenate([book, np.full(16 - book.size, book[-1], np.float32)])
        scales = offset = None
        if double:
            absmax, scales, offset = double_quantize(absmax)
        return cls(packed, absmax, code, scales, offset, block)

    def c1(self) -> Float[Any, " blocks"]:
        """The scales of the blocks in float32."""
        return self.absmax if self.scales is None else double_dequantize(self.absmax, self.scales, self.offset)

    def arrays(self) -> dict[str, Any]:
        """All that is held, by name."""
        return {name: value for name, value in self._asdict().items() if name != "block" and value is not None}


def first_factor(rng: np.random.Generator, inputs: int, rank: int) -> Float[np.ndarray, "k rank"]:
    """A new L1: uniform within 1 / sqrt(k), as PyTorch's ``nn.Linear`` draws (Kaiming uniform, a = sqrt(5))."""
    bound = 1 / math.sqrt(inputs)
    return rng.uniform(-bound, bound, (inputs, rank))


def nbytes(arrays: Iterable[Any]) -> int:
    """Bytes of arrays of any framework, the meta device's too."""
    return sum(int(np.prod(each.shape)) * each.dtype.itemsize for each in arrays)


def matching(pattern: str, linear: Iterable[str]) -> list[str]:
    """The names of linear layers in which the pattern is found.

    Raises:
        ValueError: none is; lists the layers that there are.
    """
    names = list(linear)
    found = [name for name in names if re.search(pattern, name)]
    if not found:
        raise ValueError(f"no linear layer matches {pattern!r}; there are {', '.join(names) or 'none'}")
    return found
