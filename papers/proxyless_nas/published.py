"""What the paper and its authors' files give: searched networks, the table of the Pixel 1, figures that rows combine."""

from __future__ import annotations

SEARCHED = {
    "mobile": (
        (32, 16, 1280),
        (32, 40, 80, 96, 192, 320),
        "k5e3 k3e3 Z Z | k7e3 k3e3 k5e3 k5e3 | k7e6 k5e3 k5e3 k5e3 | k5e6 k5e3 k5e3 k5e3 | k7e6 k7e6 k7e3 k7e3 | k7e6",
    ),
    "gpu": (
        (40, 24, 1728),
        (32, 56, 112, 128, 256, 432),
        "k5e3 Z Z Z | k7e3 Z Z k3e3 | k7e6 Z Z k5e3 | k5e6 Z k3e3 k5e3 | k7e6 k7e6 k7e6 k5e6 | k7e6",
    ),
    "cpu": (
        (40, 24, 1432),
        (32, 48, 88, 104, 216, 360),
        "k3e6 k3e3 k3e3 k3e3 | k3e6 k3e3 k3e3 k5e3 | k3e6 Z Z k3e3 | k5e6 k3e3 k3e3 k3e3 | k5e6 k5e3 k5e3 k3e3 | k5e6",
    ),
    "mobile_14": (
        (48, 24, 1792),
        (40, 56, 112, 136, 256, 448),
        "k5e3 k3e3 Z Z | k7e3 k3e3 k5e3 k5e3 | k7e6 k5e3 k5e3 k5e3 | k5e6 k5e3 k5e3 k5e3 | k7e6 k7e6 k7e3 k7e3 | k7e6",
    ),
}
"""(widths of stem, first block and mixing convolution), widths of the stages, candidates; Z drops the layer.

Source: configurations in han-cai/files, folder proxylessnas; the first block is always k3e1.
"""

PIXEL_FIXED = {
    "stem 224x224x3->112x112x32": 4.084,
    "112x112x32->112x112x16 k3e1": 3.882,
    "mix 7x7x320->7x7x1280": 3.089,
    "classifier 1280->1000": 0.310,
}
"""ms on a Pixel 1 of what is not searched (same files)."""

PIXEL_CANDIDATES = ("k3e3", "k5e3", "k7e3", "k3e6", "k5e6", "k7e6")
PIXEL = {
    "112x112x16->56x56x24": (6.241, 7.519, 9.144, 16.766, 18.941, 22.105),
    "56x56x24 skip": (6.273, 7.902, 10.215, 11.095, 14.131, 18.541),
    "56x56x24->28x28x40": (3.941, 4.383, 5.026, 7.139, 7.881, 9.191),
    "28x28x40 skip": (2.857, 3.484, 4.367, 5.363, 6.622, 8.377),
    "28x28x40->14x14x80": (1.810, 1.985, 2.229, 3.454, 3.798, 4.252),
    "14x14x80 skip": (1.841, 2.127, 2.500, 3.469, 4.080, 4.880),
    "14x14x80->14x14x96": (1.961, 2.253, 2.630, 3.672, 4.289, 5.090),
    "14x14x96 skip": (2.455, 2.792, 3.235, 4.923, 5.645, 6.647),
    "14x14x96->7x7x192": (1.648, 1.755, 1.902, 3.243, 3.491, 3.788),
    "7x7x192 skip": (2.054, 2.241, 2.457, 3.800, 4.164, 4.693),
    "7x7x192->7x7x320": (2.644, 2.829, 3.050, 4.877, 5.265, 5.828),
}
"""ms on a Pixel 1 of each candidate, in the order of ``PIXEL_CANDIDATES``, by shape of input and output."""

MOBILENET_V2_MILLIONS = {0.35: 59, 0.5: 97, 0.75: 209, 1.0: 300, 1.3: 509, 1.4: 582}
"""Multiply-adds of MobileNetV2 by width, the reference of a search for few of them (authors' search code)."""

CIFAR_BLOCKS = 18
"""Blocks of each of the three stages (section 4.1)."""

CIFAR_INNER = (
    18, 18, 20, 22, 24, 24, 26, 28, 30, 32, 32, 34, 36, 38, 38, 40, 42, 44,
    46, 46, 48, 50, 52, 52, 54, 56, 58, 60, 60, 62, 64, 66, 66, 68, 70, 72,
    74, 74, 76, 78, 80, 80, 82, 84, 86, 88, 88, 90, 92, 94, 94, 96, 98, 100,
)  # fmt: skip
"""Channels inside each block of the CIFAR network; it puts out four times as many (released configuration)."""

CIFAR_EDGES = (
    "7mdi7m5d5577 aiaa3im7didd 7i3a5a3d3ad5 a55d3dd773i7 ai5dd57m7aim 7m7m35a7d3ii dmim777753ii dd5757m5aa37 7d5miimm3aad "
    "5i3i373i5757 7a7535diadd3 5da533a577d3 mm737d3ma57i 37md7d5di373 dam3ddai5i5i 5id5aad55573 7555d3idm737 mdii3i7m57id "
    "dm5aa75a73am 7di7i7dm37m5 mda3idmmm5ia da73a33a7idd dmma7i7ddiam 75m7mimiadm7 i5a5m5dd7adm 3iadddd3aaa3 d7m7immm555d "
    "3773aim737mm 7577a333ida3 5iaia5a73aam i3adi7ia7mid 7m5i7dm7dm77 37m3i353i35i d7d3d73i3dmi mii55a37aiad 7m75da737555 "
    "aaaada7i5iia m7ia5iiiai7i d37mi5ai3ima 77a5a3mia3mm iia7i7ima5a7 di5im575d7id mmiaamdai53i 77577ad73m7a dadmd37didm5 "
    "adam3mdi7dai mma7335daii3 5d7dimm735mi 773mdam5mm5m m5iad3537377 i3a577i7773a 5m53ai55am5i 3md3mai7md33 773m5i5mm337"
)
"""Searched edges of the CIFAR network, a word a block: left node, its two children, right node, its two children, two each."""

AMOEBANET_MILLIONS, CIFAR_MILLIONS = 34.9, 5.7
"""Parameters of AmoebaNet-B and of the searched network on CIFAR-10 (Table 1)."""

GPU_MS = {"MobileNetV2": 6.1, "searched": 5.1}
GPU_TOP1 = {"MobileNetV2": 72.0, "searched": 75.1}
"""Latency on a V100 and accuracy on ImageNet (Table 3)."""

SEARCH_HOURS = {"MnasNet": 40_000, "searched": 200}
"""GPU hours of a search (Table 2)."""
