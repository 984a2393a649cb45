"""Which layers follow each other, written once: on simulated integers (:mod:`.simulation`) it is the network that is trained,
on real ones (:mod:`.engine`) the one that is deployed. ``a`` is the arithmetic; what it hands around are codes.

Widths are the paper's: 8 bits everywhere but 16 for the embedding, the outputs of both branches and the residual sums.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange

from common.architecture import VisionTransformer

WIDE = 16


def vit(a: Any, architecture: VisionTransformer, images: Any) -> Any:
    """Images (batch, height, width, channel) to logits, all of one scale: their largest is the class."""
    size = architecture.patch
    x = a.input("input", images, 8)
    patches = a.mapped(
        x, lambda q: rearrange(q, "batch (row y) (column x) channel -> batch (row column) (y x channel)", y=size, x=size)
    )
    x = a.act("patches", WIDE, a.linear("patches", patches))
    # The class token is the position of a token that is zero.
    x = a.act("embedding", WIDE, a.mapped(x, a.with_class_token), a.table("positions"))
    for layer in range(architecture.depth):
        x = pre_norm_block(a, f"blocks.{layer}", x, architecture.heads)
    x = a.act("norm", 8, a.norm("norm", a.mapped(x, lambda q: q[:, 0])))
    return a.logits("head", x)


def pre_norm_block(a: Any, name: str, x: Any, heads: int) -> Any:
    """x += attention(norm(x)); x += feed_forward(norm(x))."""
    y = a.act(f"{name}.attention_norm", 8, a.norm(f"{name}.attention_norm", x))
    x = a.act(f"{name}.attention_sum", WIDE, attention(a, f"{name}.attention", y, heads), x)
    y = a.act(f"{name}.feed_forward_norm", 8, a.norm(f"{name}.feed_forward_norm", x))
    return a.act(f"{name}.feed_forward_sum", WIDE, feed_forward(a, f"{name}.feed_forward", y), x)


def post_norm_block(a: Any, name: str, x: Any, heads: int) -> Any:
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x)): a layer of BERT. x has 16 bits, products take 8."""
    y = attention(a, f"{name}.attention", a.act(f"{name}.attention_input", 8, x), heads)
    y = a.norm(f"{name}.attention_norm", a.act(f"{name}.attention_sum", WIDE, y, x))
    x = a.act(f"{name}.attention_norm", WIDE, y)
    y = feed_forward(a, f"{name}.feed_forward", a.act(f"{name}.feed_forward_input", 8, y))
    return a.act(
        f"{name}.feed_forward_norm", WIDE, a.norm(f"{name}.feed_forward_norm", a.act(f"{name}.feed_forward_sum", WIDE, y, x))
    )


def attention(a: Any, name: str, x: Any, heads: int) -> Any:
    q, k, v = (
        a.mapped(
            a.act(f"{name}.{part}", 8, a.linear(f"{name}.{part}", x)),
            lambda q: rearrange(q, "batch seq (head dim) -> batch head seq dim", head=heads),
        )
        for part in ("query", "key", "value")
    )
    dim = q.q.shape[-1]
    scores = a.act(
        f"{name}.scores", 8, a.product(q, a.mapped(k, lambda q: rearrange(q, "... seq dim -> ... dim seq")), dim**-0.5)
    )
    mixed = a.act(f"{name}.mixed", 8, a.product(a.softmax(f"{name}.scores", scores), v, 1.0))
    joined = a.mapped(mixed, lambda q: rearrange(q, "batch head seq dim -> batch seq (head dim)"))
    return a.act(f"{name}.output", WIDE, a.linear(f"{name}.output", joined))


def feed_forward(a: Any, name: str, x: Any) -> Any:
    x = a.act(f"{name}.up", 8, a.linear(f"{name}.up", x))
    x = a.act(f"{name}.gelu", 8, a.gelu(f"{name}.up", x))
    return a.act(f"{name}.down", WIDE, a.linear(f"{name}.down", x))


def block_acts(name: str, post: bool = False) -> list[str]:
    """The quantisers of a block, in a fixed order."""
    parts = [f"attention.{part}" for part in ("query", "key", "value", "scores", "mixed", "output")]
    parts += [f"feed_forward.{part}" for part in ("up", "gelu", "down")]
    parts += ["attention_norm", "attention_sum", "feed_forward_norm", "feed_forward_sum"]
    parts += ["attention_input", "feed_forward_input"] if post else []
    return [f"{name}.{part}" for part in parts]


def vit_acts(architecture: VisionTransformer) -> list[str]:
    """The quantisers of :func:`vit`, in a fixed order."""
    inside = [each for layer in range(architecture.depth) for each in block_acts(f"blocks.{layer}")]
    return ["input", "patches", "embedding", *inside, "norm"]
