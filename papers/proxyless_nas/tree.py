"""The network on CIFAR-10: a PyramidNet of 54 bottlenecks whose 3 x 3 convolutions are trees of searched edges.

Source: sections 4.1 and A of the paper for the space; the released network for orders of operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from papers.proxyless_nas import published

EDGES = "357diam"
"""Depthwise separable convolutions of 3, 5 and 7, a dilated one of 3, identity, average and maximum over 3 x 3."""
PER_BLOCK = 12

Images = Float[Tensor, "batch channel height width"]
Smaller = Float[Tensor, "batch out_channel out_height out_width"]


def parse(line: str) -> tuple[str, ...]:
    """A word of twelve edges for each block.

    Raises:
        ValueError: a word of another length or with an unknown letter, by the number of its block.
    """
    words = tuple(line.split())
    for block, word in enumerate(words, 1):
        if len(word) != PER_BLOCK:
            raise ValueError(f"block {block} is {word!r}, {len(word)} edges; wanted {PER_BLOCK}")
        if unknown := sorted(set(word) - set(EDGES)):
            raise ValueError(f"block {block} is {word!r} with the unknown edge {unknown[0]!r}; wanted letters of {EDGES}")
    return words


def network(
    edges: str = published.CIFAR_EDGES,
    inner: Sequence[int] = published.CIFAR_INNER,
    classes: int = 10,
    **options: Any,
) -> PyramidTree:
    """The searched network, or another of its space: edges, and channels inside each block, of three stages of equal length."""
    words = parse(edges)
    if len(words) != len(inner) or len(words) % 3:
        raise ValueError(f"{len(words)} words of edges and {len(inner)} widths; wanted as many, a multiple of three")
    return PyramidTree(words, tuple(inner), classes, **options)


class PyramidTree(nn.Module):
    """Images (batch, 3, 32, 32) to logits (batch, classes)."""

    def __init__(self, words: tuple[str, ...], inner: tuple[int, ...], classes: int, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False, **options), nn.BatchNorm2d(16, **options))
        blocks, inputs = [], 16
        for place, (word, width) in enumerate(zip(words, inner, strict=True)):
            stride = 2 if place and place % (len(words) // 3) == 0 else 1
            blocks.append(Block(inputs, width, stride, word, **options))
            inputs = 4 * width
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(inputs, **options)
        self.head = nn.Linear(inputs, classes, **options)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Block(nn.Module):
    """shortcut(x) + norm(widen(relu(norm(tree(narrow(norm(x))))))), the shortcut zero-padded in channels."""

    def __init__(self, inputs: int, width: int, stride: int, word: str, **options: Any) -> None:
        super().__init__()
        self.stride, self.more = stride, 4 * width - inputs
        self.narrow = nn.Sequential(nn.BatchNorm2d(inputs, **options), nn.Conv2d(inputs, width, 1, bias=False, **options))
        self.tree = Tree(width, stride, word, **options)
        self.widen = nn.Sequential(
            nn.BatchNorm2d(width, **options), nn.ReLU(), nn.Conv2d(width, 4 * width, 1, bias=False, **options),
            nn.BatchNorm2d(4 * width, **options),
        )  # fmt: skip

    def forward(self, x: Images) -> Smaller:
        shortcut = F.avg_pool2d(x, 2) if self.stride == 2 else x
        return F.pad(shortcut, (0, 0, 0, 0, 0, self.more)) + self.widen(self.tree(self.narrow(x)))


class Tree(nn.Module):
    """A grouped 3 x 3 convolution to twice the channels, shuffled; each half h goes through a node: h + norm(node(h)), added."""

    def __init__(self, width: int, stride: int, word: str, **options: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, **options)
        self.root = nn.Conv2d(width, 2 * width, 3, stride, 1, groups=2, bias=False, **options)
        self.nodes = nn.ModuleList(Node(width, half, **options) for half in (word[:6], word[6:]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, **options) for _ in range(2))

    def forward(self, x: Images) -> Smaller:
        wide = self.root(F.relu(self.norm(x)))
        shuffled = rearrange(wide, "batch (group each) height width -> batch (each group) height width", group=2)
        halves = [half.contiguous() for half in shuffled.chunk(2, dim=1)]
        left, right = (half + norm(node(half)) for half, node, norm in zip(halves, self.nodes, self.norms, strict=True))
        return left + right


class Node(nn.Module):
    """Two edges from a copy of x each, then below each edge two more; all four ends are added."""

    def __init__(self, width: int, word: str, **options: Any) -> None:
        super().__init__()
        self.upper = nn.ModuleList(edge(letter, width, **options) for letter in word[:2])
        self.lower = nn.ModuleList(
            nn.ModuleList(edge(letter, width, **options) for letter in pair) for pair in (word[2:4], word[4:])
        )

    def forward(self, x: Images) -> Images:
        total = None
        for upper, below in zip(self.upper, self.lower, strict=True):
            y = upper(x)
            for lower in below:
                total = lower(y) if total is None else total + lower(y)
        assert total is not None
        return total


def edge(letter: str, width: int, **options: Any) -> nn.Module:
    """norm, relu and a depthwise separable convolution, or an operation without weights."""
    if letter == "i":
        return nn.Identity()
    if letter == "a":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    if letter == "m":
        return nn.MaxPool2d(3, 1, 1)
    size, dilation = (3, 2) if letter == "d" else (int(letter), 1)
    return nn.Sequential(
        nn.BatchNorm2d(width, **options), nn.ReLU(),
        nn.Conv2d(width, width, size, 1, dilation * (size // 2), dilation, groups=width, bias=False, **options),
        nn.Conv2d(width, width, 1, bias=False, **options),
    )  # fmt: skip
