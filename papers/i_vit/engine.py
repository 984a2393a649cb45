"""The deployed network: integers only. Arrays are int8, int16 and int32, products of rescalings 64 bits; every scale has become
a pair (m, e) or a unit before. One text for PyTorch and JAX, on the kernels of this repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from common.architecture import VisionTransformer
from kernels.gemm_int8 import matmul_int8, matmul_int8_dyadic, requantise
from papers.i_vit import network
from papers.i_vit.kernel import i_layernorm, shift_gelu, shiftmax
from papers.i_vit.straight import with_class_token


class Codes(NamedTuple):
    """An integer array, or a product with weights that has not been made yet: it is made together with its rescaling."""

    q: Any
    weight: Any = None
    bias: Any = None


@dataclass(frozen=True)
class Engine:
    """The arithmetic of inference.

    Attributes:
        arrays: integer arrays by name: ``<linear>.weight``, ``.bias``, ``<norm>.bias``, ``<quantiser>.m``, ``.e``, tables.
        notes: units, widths and forms, all integers.
        fault: a function put around the Shiftmax, for controls.
    """

    arrays: Mapping[str, Any]
    notes: Mapping[str, Any]
    fault: Callable[[Any], Any] | None = None

    def input(self, name: str, q: Any, bits: int) -> Codes:
        return Codes(q)

    def act(self, name: str, bits: int, *parts: Codes) -> Codes:
        factors = [
            (self.arrays[f"{each}.m"], self.arrays[f"{each}.e"])
            for each in ([name] if len(parts) == 1 else [f"{name}/{place}" for place in range(len(parts))])
        ]
        if len(parts) == 1:
            (part,), ((m, e),) = parts, factors
            if part.weight is not None:
                return Codes(matmul_int8_dyadic(part.q, part.weight, part.bias, m, e, bits=bits))
            return Codes(requantise(part.q, m, e, bits=bits))
        total = sum(requantise(part.q, m, e, bits=32) for part, (m, e) in zip(parts, factors, strict=True))
        xp = array_namespace(total)
        clipped = xp.clip(total, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return Codes(xp.astype(clipped, {8: xp.int8, 16: xp.int16}[bits]))

    def linear(self, name: str, x: Codes) -> Codes:
        return Codes(x.q, self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"])

    def logits(self, name: str, x: Codes) -> Codes:
        return Codes(matmul_int8(x.q, self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]))

    def table(self, name: str) -> Codes:
        return Codes(self.arrays[name])

    def product(self, left: Codes, right: Codes, factor: float) -> Codes:
        # The factor is part of the scale, which is part of the rescaling that follows.
        xp = array_namespace(left.q)
        return Codes(xp.astype(left.q, xp.int32) @ xp.astype(right.q, xp.int32))

    def norm(self, name: str, x: Codes) -> Codes:
        y, dropped = i_layernorm(x.q, steps=self.notes["steps"]), self.notes["norm"][name]
        return Codes((y >> dropped if dropped else y) + self.arrays[f"{name}.bias"])

    def softmax(self, name: str, x: Codes) -> Codes:
        note = self.notes["softmax"][name]
        y = shiftmax(x.q, unit=note["unit"], n=note["n"], bits=note["bits"])
        return Codes(self.fault(y) if self.fault else y)

    def gelu(self, name: str, x: Codes) -> Codes:
        note = self.notes["gelu"][name]
        return Codes(shift_gelu(x.q, unit=note["unit"], n=note["n"], wide=bool(note["wide"])))

    def mapped(self, x: Codes, change: Callable[[Any], Any]) -> Codes:
        return Codes(change(x.q))

    def with_class_token(self, q: Any) -> Any:
        return with_class_token(q)


def run(arrays: Mapping[str, Any], notes: Mapping[str, Any], codes: Any, fault: Callable[[Any], Any] | None = None) -> Any:
    """int32 logits (batch, classes) of images as int8 codes (batch, height, width, channel)."""
    return network.vit(Engine(arrays, notes, fault), VisionTransformer(**notes["architecture"]), codes).q
