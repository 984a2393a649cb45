"""How each model of the zoo was trained, and within which band of quality a training of the same recipe ends."""

from __future__ import annotations

from dataclasses import dataclass

from common.architecture import ResNet, Transformer, VisionTransformer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training.

    Attributes:
        architecture: what is trained.
        steps, batch, length: optimizer steps, rows of a batch, tokens of a row (language models).
        rate: peak learning rate of AdamW; linear warm-up over a twentieth of the steps, cosine down to a hundredth.
        weight_decay: of matrices.
        band: the quality that a training from another seed must end in (see ``metric``), as (least, most).
        metric: what quality is, on data that training never sees.
        balance: weight of the load-balance loss (mixtures of experts).
        seed: of weights and batches.
    """

    architecture: Transformer | VisionTransformer | ResNet
    steps: int
    batch: int
    rate: float
    band: tuple[float, float]
    metric: str
    length: int = 0
    weight_decay: float = 0.1
    balance: float = 0.0
    seed: int = 1


_BITS = "bits per byte on the held-out books, in windows of the context side by side"

RECIPES: dict[str, Recipe] = {
    "byte_lm.v1": Recipe(
        architecture=Transformer(width=256, depth=4, heads=8, kv_heads=2, head_dim=32, hidden=688, context=512),
        steps=4000, batch=8, length=512, rate=2e-3, metric=_BITS, band=(1.42, 1.50),
    ),
    "byte_lm_draft.v1": Recipe(
        architecture=Transformer(width=96, depth=2, heads=4, kv_heads=2, head_dim=24, hidden=256, context=512),
        steps=3000, batch=8, length=512, rate=4e-3, metric=_BITS, band=(1.60, 1.72),
    ),
    "byte_lm_moe.v1": Recipe(
        architecture=Transformer(
            width=128, depth=4, heads=4, kv_heads=2, head_dim=32, hidden=256, context=512, experts=8, active=2
        ),
        steps=1800, batch=8, length=512, rate=3e-3, balance=0.01, metric=_BITS, band=(1.54, 1.63),
    ),
    "digits_vit.v1": Recipe(
        architecture=VisionTransformer(image=8, patch=2, channels=1, classes=10, width=64, depth=4, heads=4, hidden=256),
        steps=3000, batch=64, rate=1e-3, weight_decay=0.3, metric="share of the held-out digits that are told right", band=(0.97, 1.0),
    ),
    "photo_cnn.v1": Recipe(
        architecture=ResNet(widths=(16, 32, 64), blocks=2, classes=8),
        steps=1000, batch=128, rate=4e-3, metric="share of the crops from held-out regions that are told right", band=(0.92, 1.0),
    ),
}  # fmt: skip
