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
        experts: feed-forward networks to choose from in each block, 0 for a single one without a choice.
        active: experts that a token goes through: those of the largest router probabilities, which are divided by
            their sum and weigh the outputs.
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
    experts: int = 0
    active: int = 2
    tied: bool = True
    output_norm: bool = False

    def __post_init__(self) -> None:
        _check_whole(self, "width", "depth", "heads", "kv_heads", "head_dim", "hidden", "context", "vocabulary")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, but {self.kv_heads} does not divide {self.heads}")
        if self.experts and not 1 <= self.active <= self.experts:
            raise ValueError(f"active must be from 1 to the {self.experts} experts, not {self.active}")
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
            "feed_forward": self.depth * self.width * self.hidden * matrices * max(self.experts, 1),
            "router": self.depth * self.width * self.experts,
            "norms": (2 * self.depth + 1) * self.width * vectors,
            "head": 0 if self.tied else self.vocabulary * self.width,
        }


@dataclass(frozen=True, kw_only=True)
class VisionTransformer:
    """A pre-norm encoder of image patches behind a class token (Dosovitskiy et al. 2021): every linear layer has a bias.

    Attributes:
        image: height and width of the images, in pixels.
        channels: of the images.
        patch: height and width of a patch, in pixels; it divides image.
        classes: that are told apart.
        width: features of a token.
        depth: blocks.
        heads: of width / heads features each.
        hidden: features between the two layers of the feed-forward network, which has the exact GELU.
    """

    image: int
    patch: int
    classes: int
    width: int
    depth: int
    heads: int
    hidden: int
    channels: int = 3

    def __post_init__(self) -> None:
        _check_whole(self, "image", "patch", "classes", "width", "depth", "heads", "hidden", "channels")
        if self.image % self.patch:
            raise ValueError(f"patch must divide image, but {self.patch} does not divide {self.image}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, but {self.heads} does not divide {self.width}")

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image // self.patch) ** 2 + 1

    def parameters(self) -> int:
        """Number of trainable parameters."""
        block = 4 * self.width * (self.width + 1) + self.hidden * (2 * self.width + 1) + self.width + 4 * self.width
        patches = self.width * (self.channels * self.patch**2 + 1)
        return patches + self.width * (self.tokens + 1) + self.depth * block + 2 * self.width + self.classes * (self.width + 1)


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """A residual network of basic blocks for small images (He et al. 2016, section 4.2), with batch normalisation.

    A 3 x 3 convolution, then stages of blocks relu(x + norm(conv(relu(norm(conv(x)))))); every stage but the first halves
    the image, and where shapes change a 1 x 1 convolution with a norm stands in for x; mean over the image; linear head.

    Attributes:
        widths: channels of each stage.
        blocks: blocks of a stage.
        classes: that are told apart.
        channels: of the images.
    """

    widths: tuple[int, ...]
    blocks: int
    classes: int
    channels: int = 3

    def __post_init__(self) -> None:
        _check_whole(self, "blocks", "classes", "channels")
        if not self.widths or any(width < 1 for width in self.widths):
            raise ValueError(f"widths must be one or more positive whole numbers, not {self.widths!r}")

    def parameters(self) -> int:
        """Number of trainable parameters; running means and variances are none."""
        count, inputs = self.channels * 9 * self.widths[0] + 2 * self.widths[0], self.widths[0]
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                count += 9 * width * (inputs + width) + 4 * width
                if block == 0 and (stage > 0 or inputs != width):
                    count += inputs * width + 2 * width
                inputs = width
        return count + self.classes * (inputs + 1)


def _check_whole(architecture: object, *names: str) -> None:
    for name in names:
        value = getattr(architecture, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")
