"""The network on CIFAR-10: its counts in closed form and by torch's counter, its wiring, bad lines."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.nas.counting import count_torch
from papers.proxyless_nas import published, tree

pytestmark = pytest.mark.xdist_group("proxyless_nas")

WEIGHTS = {"3": 9, "5": 25, "7": 49, "d": 9}


def closed_form(words: tuple[str, ...], inner: tuple[int, ...], classes: int = 10) -> int:
    """Parameters, summed by hand from the description of a block."""
    total, inputs = 3 * 9 * 16 + 2 * 16, 16
    for word, c in zip(words, inner, strict=True):
        narrow = 2 * inputs + inputs * c
        root = 2 * c + 2 * c * (c // 2) * 9
        edges = sum(2 * c + WEIGHTS[letter] * c + c * c for letter in word if letter in WEIGHTS)
        total += narrow + root + edges + 2 * (2 * c) + (2 * c + 4 * c * c + 2 * 4 * c)
        inputs = 4 * c
    return total + 2 * inputs + (inputs + 1) * classes


def test_counts_by_hand_and_by_torchs_counter() -> None:
    model = tree.network(device="meta").eval()
    count = count_torch(model, torch.empty(1, 3, 32, 32, device="meta"))
    assert count.parameters == closed_form(tree.parse(published.CIFAR_EDGES), published.CIFAR_INNER)
    line, inner = "3a5mid7d3iaa 7m5577aimd3d di3a5m7idd7a", (4, 6, 8)
    small, images = tree.network(line, inner, 3).eval(), torch.zeros(1, 3, 16, 16)
    assert sum(p.numel() for p in small.parameters()) == closed_form(tree.parse(line), inner, 3)
    with FlopCounterMode(display=False) as counter:
        small(images)
    assert counter.get_total_flops() == 2 * count_torch(small, images).macs


def test_widths_grow_linearly() -> None:
    """Channels within block i of 54 are 16 + (100 - 16) i / 54, rounded to an even number; the last puts out 400."""
    blocks = 3 * published.CIFAR_BLOCKS
    for i, c in enumerate(published.CIFAR_INNER, 1):
        assert c % 2 == 0 and abs(c - (16 + (100 - 16) * i / blocks)) < 2
    assert 4 * published.CIFAR_INNER[-1] == 400


def test_a_tree_of_identities_is_what_one_computes_by_hand() -> None:
    """Identity edges: each node adds four copies, so the tree is the sum over the halves of h + norm(4 h)."""
    torch.manual_seed(0)
    whole = tree.Tree(4, 1, "i" * 12, dtype=torch.float64).eval()
    for norm in whole.norms:
        norm.running_var.fill_(4.0)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    wide = whole.root(torch.relu(whole.norm(x)))
    # Shuffled by two groups: channel 2 i comes from the first group, 2 i + 1 from the second; the first half are 0 to 3.
    shuffled = torch.stack([wide[:, :4], wide[:, 4:]], 2).flatten(1, 2)
    total = torch.zeros_like(x)
    for half in (shuffled[:, :4], shuffled[:, 4:]):
        total += half + 4 * half / (4 + 1e-5) ** 0.5
    torch.testing.assert_close(whole(x), total)


def test_order_of_edges_in_a_word() -> None:
    """Left node, its two children, right node, its two children."""
    node = tree.Node(4, "3ia5md")
    kinds = [[type(each).__name__ for each in group] for group in (node.upper, *node.lower)]
    assert kinds == [["Sequential", "Identity"], ["AvgPool2d", "Sequential"], ["MaxPool2d", "Sequential"]]
    assert node.lower[0][1][2].kernel_size == (5, 5) and node.lower[1][1][2].dilation == (2, 2)
    whole = tree.Tree(4, 1, "333333777777")
    sizes = [[m.kernel_size[0] for m in each.modules() if isinstance(m, nn.Conv2d) and m.groups > 1] for each in whole.nodes]
    assert sizes == [[3] * 6, [7] * 6]


def test_images_shrink_twice_and_gradients_reach_the_stem() -> None:
    model = tree.network("3a5mid7d3iaa 7m5577aimd3d di3a5m7idd7a", (4, 6, 8), 3)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, y: seen.append(tuple(y.shape[1:])))
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert seen == [(16, 16, 16), (24, 8, 8), (32, 4, 4)]
    assert model.stem[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3a5mid7d3iaa 7m55", r"block 2 is '7m55', 4 edges; wanted 12"),
        ("3a5mid7d3iaa 7m5577aimd3x", "block 2 is .* with the unknown edge 'x'"),
    ],
)
def test_bad_lines_are_refused_by_block(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree.parse(line)
    with pytest.raises(ValueError, match="1 words of edges and 3 widths"):
        tree.network("3a5mid7d3iaa", (4, 6, 8))
