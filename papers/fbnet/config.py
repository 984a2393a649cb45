"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option
from papers.fbnet import published
from papers.fbnet.space import Space


class Data(Enum):
    digits = "digits"  # 8 x 8 digits, each pixel as 2 x 2
    photo_patches = "photo_patches"  # crops of photographs
    imagenet = "imagenet"


@dataclass(frozen=True)
class Config:
    seed: int = option(11, "seeds whatever no other seed does")
    seeds: list[int] = option([0, 1, 2], "of the searches; each draws its own weights, noise, batches and samples")
    data_seed: int = option(0, "seeds crops and the division of images into parts")

    searched: bool = option(True, "False, a control: the logits stay as they began, so architectures are drawn uniformly")
    shuffled_table: bool = option(False, "True, a control: latencies stand at the wrong blocks of the table")
    twin_bits: int = option(64, "bits of the numbers in JAX when PyTorch and JAX are compared; 32 is a control")

    data: Data = option(Data.photo_patches, "images")
    train_crops: int = option(320, "crops of each photograph for weights and architecture")
    test_crops: int = option(128, "crops of each photograph for testing, from other regions")
    architecture_share: float = option(0.2, "share of the training images that logits are trained on")

    size: int = option(32, "of an image", unit="pixels")
    channels: int = option(3, "of an image")
    classes: int = option(8, "of the images")
    stem: int = option(4, "outputs of the first convolution")
    widths: list[int] = option([4, 6, 8, 16, 28, 46], "outputs of each stage")
    layers: list[int] = option([1, 2, 2, 2, 2, 1], "layers of each stage")
    strides: list[int] = option([1, 2, 2, 1, 1, 2], "stride of the first layer of each stage")
    last: int = option(88, "outputs of the last convolution")

    epochs: int = option(16, "of the search")
    warm_epochs: int = option(4, "epochs at the beginning that train weights alone")
    weight_steps: int = option(8, "steps of an epoch that train weights")
    theta_steps: int = option(4, "steps of an epoch that train logits")
    batch: int = option(16, "images of a step")
    rate: float = option(0.1, "peak learning rate of a net alone; half a cosine")
    search_rate: float = option(0.3, "peak learning rate of weights in the search, whose loss has a factor of about a third")
    decay: float = option(1e-4, "weight decay in the search")
    child_decay: float = option(4e-5, "weight decay of a net alone")
    theta_rate: float = option(0.2, "learning rate of logits; the paper has 0.01 for some hundred times the steps")
    theta_decay: float = option(5e-4, "weight decay of logits")
    alpha: float = option(published.ALPHA, "factor of the loss")
    beta: float = option(published.BETA, "power of log latency in the loss")
    tau: float = option(published.TAU, "temperature at the beginning")
    tau_decay: float = option(published.TAU_DECAY * published.EPOCHS / 16, "of the temperature's logarithm in each epoch")

    sampled: int = option(6, "architectures drawn from what a search has learned")
    child_steps: int = option(150, "training steps of an architecture alone")

    workers: int = option(2, "processes that searches and trainings are dealt to")

    lut_batch: int = option(256, "images whose latency the table of this CPU holds")
    device: str = option("orin_nano_8", "the other device, by its key in common.hardware")
    device_batch: int = option(32768, "images whose latency its table holds, so many that it is milliseconds")
    lut_nets: int = option(30, "random nets whose latency is predicted and measured")
    repeats: int = option(5, "timings of each, of which the median counts")
    table_repeats: int = option(15, "timings of each block of the table: what is searched for depends on it")
    kernel_shapes: int = option(5, "layers of the paper's space on which the kernel is timed")

    def __post_init__(self) -> None:
        counts = (
            self.epochs, self.weight_steps, self.theta_steps, self.batch, self.sampled, self.child_steps, self.repeats,
            self.table_repeats, self.workers,
        )  # fmt: skip
        if min(counts) < 1:
            raise ValueError("epochs, steps, batch, sampled, repeats and workers count; wanted 1 or more of each")
        if not 0 <= self.warm_epochs < self.epochs:
            raise ValueError(f"warm_epochs is {self.warm_epochs}; wanted less than the {self.epochs} epochs")
        if not 0 < self.architecture_share < 1:
            raise ValueError(f"architecture_share is {self.architecture_share}; wanted a share between 0 and 1")
        if not self.tau > 0 or not self.seeds or self.lut_nets < 3:
            raise ValueError(f"tau is {self.tau}, seeds {self.seeds}, lut_nets {self.lut_nets}; wanted tau > 0, a seed, 3 nets")
        if self.twin_bits not in (32, 64):
            raise ValueError(f"twin_bits is {self.twin_bits}; wanted 32 or 64")
        self.space()

    def space(self) -> Space:
        if not len(self.widths) == len(self.layers) == len(self.strides):
            raise ValueError(
                f"widths {self.widths}, layers {self.layers}, strides {self.strides}; wanted one of each for each stage"
            )
        stages = tuple(zip(self.widths, self.layers, self.strides, strict=True))
        return Space(
            size=self.size, classes=self.classes, stages=stages, stem=self.stem, last=self.last, channels=self.channels,
        )  # fmt: skip


PRESETS = {
    "smoke": Config(
        seeds=[0], data=Data.digits, size=16, channels=1, classes=10, stem=8, widths=[8, 12, 16], layers=[1, 2, 1], strides=[1, 2, 2], last=64,
        epochs=8, warm_epochs=2, weight_steps=6, theta_steps=3, tau_decay=published.TAU_DECAY * published.EPOCHS / 8, sampled=3,
        child_steps=60, workers=1, lut_batch=512, device_batch=65536, lut_nets=12, kernel_shapes=2,
    ),
    "laptop": Config(),
    "paper": Config(
        seeds=[0], data=Data.imagenet, size=224, classes=1000, stem=published.STEM,
        widths=[s[0] for s in published.STAGES], layers=[s[1] for s in published.STAGES], strides=[s[2] for s in published.STAGES], last=published.LAST["B"], epochs=published.EPOCHS,
        warm_epochs=published.WARM_EPOCHS, weight_steps=533, theta_steps=133, batch=192, search_rate=0.1, theta_rate=0.01,
        tau_decay=published.TAU_DECAY, child_steps=360 * 6671, lut_batch=1,
    ),
}  # fmt: skip
