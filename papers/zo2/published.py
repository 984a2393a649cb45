"""Shapes and constants from outside that the models use; nothing that is predicted stands here.

OPT's shapes: Zhang et al. 2022, table 1, and the configuration files of the models. Hardware: vendors' sheets.
"""

OPT = {
    "1.3B": (24, 2048),
    "2.7B": (32, 2560),
    "6.7B": (32, 4096),
    "13B": (40, 5120),
    "30B": (48, 7168),
    "66B": (64, 9216),
    "175B": (96, 12288),
}
"""(blocks, width); the feed-forward network has 4 times the width."""

VOCABULARY, CONTEXT, EXTRA_POSITIONS = 50272, 2048, 2

BASE_BYTES = 1_150_000_000
"""NVML's "used" before the first tensor: about 0.6 GB that the driver reserves on an 80 GB card, which that call counts as
used, and 0.55 GB of CUDA context, loaded kernels and cuBLAS workspaces. Assumed from such cards, not from the paper."""

LOGIT_BYTES = 4
"""Bytes of a logit in the loss. The code says 2 (float16); with 2 the table's smallest model comes out a quarter too small. This
is the one constant that is chosen by the table, on its first column."""

A100 = {"flops": 312e12, "memory": 1.555e12, "link": 25e9}
"""Dense float16 operations, bytes of memory, and bytes of PCIe 4.0 x16 in practice, each a second."""

EFFICIENCY = 0.5
"""Part of the peak that matrix products of this size reach: what is usual, not from the paper."""
