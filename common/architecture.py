"""Descriptions of networks: what models are built from and what hardware counts count. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass

_CHOICES = {"feed_forward": ("swiglu", "gelu"), "norm": ("rms", "layer"), "positions": ("rope", "learned", "none")}


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A pre-norm decoder: x += attention(norm(x)); x += feed_forward(norm(x)); logits = head(norm(x)).

    Linear layers have no bias.

    Attributes:
        vocabulary: tokens that can be told apart (256: bytes).
        width: features of the residual stream.
        depth: blocks of attention and feed-forward.
        heads: query heads.
        kv_heads: key and value heads, each shared by heads / kv_heads query heads (as many as heads: multi-head
            attention; fewer: grouped-query; 1: multi-query).
        head_dim: features of one head; heads * head_dim need not be width.
        hidden: features between the layers of the feed-forward network.
        feed_forward: "swiglu", down(silu(gate(x)) * up(x)), or "gelu", down(gelu(up(x))) with the exact GELU.
        norm: "rms" (a scale) or "layer" (mean removed; a scale and a shift).
        positions: "rope" (rotated queries and keys), "learned" (a vector added to the embedding) or "none".
        context: longest sequence, in tokens.
        tied: whether the head is the transposed embedding.
        output_norm: whether the attention output, all heads together, is divided by its root mean square before the
            output projection; linear attention needs it, as its weights do not sum to one. It has no parameters.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context: int
    vocabulary: int = 256
    feed_forward: str = "swiglu"
    norm: str = "rms"
    positions: str = "rope"
    tied: bool = True
    output_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "kv_heads", "head_dim", "hidden", "context", "vocabulary"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, but {self.kv_heads} does not divide {self.heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"rope rotates pairs, so head_dim must be even, not {self.head_dim}; or choose other positions")

    def parameters(self) -> int:
        """Number of trainable parameters; a tied head counts once."""
        return sum(self.breakdown().values())

    def breakdown(self) -> dict[str, int]:
        """Trainable parameters by part, all blocks together."""
        matrices = {"swiglu": 3, "gelu": 2}[self.feed_forward]
        vectors = {"rms": 1, "layer": 2}[self.norm]
        return {
            "embedding": self.vocabulary * self.width,
            "positions": self.context * self.width if self.positions == "learned" else 0,
            # Queries and outputs have all heads; keys and values have kv_heads.
            "attention": self.depth * self.width * self.head_dim * 2 * (self.heads + self.kv_heads),
            "feed_forward": self.depth * self.width * self.hidden * matrices,
            "norms": (2 * self.depth + 1) * self.width * vectors,
            "head": 0 if self.tied else self.vocabulary * self.width,
        }
