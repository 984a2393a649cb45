"""The matrices of DeiT and Swin, how often each is multiplied, and what that costs: from shapes alone.

Sizes: DeiT (Touvron et al. 2021, arXiv 2012.12877, Table 1), Swin (Liu et al. 2021, arXiv 2103.14030, section 3.3), both for
images of 224 x 224 and 1000 classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.architecture import VisionTransformer


@dataclass(frozen=True)
class Matrix:
    """A weight matrix (rows, k) that ``tokens`` vectors of one image are multiplied by."""

    name: str
    rows: int
    k: int
    tokens: int
    bias: bool = True

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.rows * self.k * self.tokens


@dataclass(frozen=True)
class Shapes:
    """A network as its weight matrices, what else it stores, and its products without weights.

    Attributes:
        matrices: the classifier last, named "head".
        others: numbers that are stored besides matrices and their biases.
        attention: multiply-adds of Q K^T and A V for one image.
        traffic: numbers that the layers of one image read and write between them, when nothing is fused.
    """

    matrices: tuple[Matrix, ...]
    others: int
    attention: int
    traffic: int

    @property
    def parameters(self) -> int:
        return sum(each.rows * (each.k + each.bias) for each in self.matrices) + self.others


DEIT = {
    name: VisionTransformer(image=224, patch=16, classes=1000, width=width, depth=12, heads=heads, hidden=4 * width)
    for name, width, heads in (("DeiT-T", 192, 3), ("DeiT-S", 384, 6), ("DeiT-B", 768, 12))
}
SWIN = {
    "Swin-T": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "Swin-S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "Swin-B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
"""Width of the first stage, blocks and heads of each stage."""
WINDOW, PATCH, SIDE, CLASSES = 7, 4, 56, 1000


def shapes(name: str) -> Shapes:
    """The network of that name.

    Raises:
        ValueError: there is none.
    """
    if name in DEIT:
        return vision_transformer(DEIT[name])
    if name in SWIN:
        return _swin(*SWIN[name])
    raise ValueError(f"no network {name!r}; there are {', '.join([*DEIT, *SWIN])}")


def vision_transformer(a: VisionTransformer) -> Shapes:
    n, d, h = a.tokens, a.width, a.hidden
    found = [Matrix("patches", d, a.patch**2 * a.channels, n - 1)]
    for layer in range(a.depth):
        found += _block(f"blocks.{layer}", d, h, n)
    norms = (2 * a.depth + 1) * 2 * d
    attention = 2 * a.depth * n * n * d
    traffic = a.depth * _traffic(n, d, h, a.heads * n * n)
    return Shapes((*found, Matrix("head", a.classes, d, 1)), norms + d + n * d, attention, traffic)


def _swin(width: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> Shapes:
    """Windows of 7 x 7 tokens attend among themselves; between stages 2 x 2 tokens become one of twice the width."""
    found = [Matrix("patches", width, 3 * PATCH**2, SIDE**2)]
    others, attention, traffic = 2 * width, 0, 0  # a norm after the patches
    for stage, depth in enumerate(depths):
        d, n = width << stage, (SIDE >> stage) ** 2
        for layer in range(depth):
            found += _block(f"stages.{stage}.blocks.{layer}", d, 4 * d, n)
            others += 4 * d + (2 * WINDOW - 1) ** 2 * heads[stage]
            attention += 2 * n * WINDOW**2 * d
            traffic += _traffic(n, d, 4 * d, heads[stage] * n * WINDOW**2)
        if stage + 1 < len(depths):
            found.append(Matrix(f"stages.{stage}.merge", 2 * d, 4 * d, n // 4, bias=False))
            others += 8 * d
    last = width << len(depths) - 1
    return Shapes((*found, Matrix("head", CLASSES, last, 1)), others + 2 * last, attention, traffic)


def _block(name: str, d: int, h: int, n: int) -> list[Matrix]:
    four = [Matrix(f"{name}.attention.{part}", d, d, n) for part in ("query", "key", "value", "output")]
    return [*four, Matrix(f"{name}.feed_forward.up", h, d, n), Matrix(f"{name}.feed_forward.down", d, h, n)]


def _traffic(n: int, d: int, h: int, scores: int) -> int:
    """Each layer reads its input and writes its output: two norms, four projections, two products with a softmax between
    them, two matrices with a GELU between them, two additions."""
    norms, projections, additions = 2 * 2 * n * d, 4 * 2 * n * d, 2 * 3 * n * d
    attention = (2 * n * d + scores) + 2 * scores + (scores + 2 * n * d)
    feed_forward = 2 * (n * d + n * h) + 2 * n * h
    return norms + projections + additions + attention + feed_forward
