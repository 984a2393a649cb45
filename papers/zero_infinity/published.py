"""The paper's inputs: models, machine and settings. Nothing that is predicted stands here. From memory where it says so."""

from __future__ import annotations

from typing import NamedTuple


class Model(NamedTuple):
    """nl blocks of width hd with ah attention heads."""

    layers: int
    hidden: int
    heads: int


TABLE = {
    "0.10T": Model(80, 10_240, 128),
    "0.50T": Model(100, 20_480, 160),
    "1.01T": Model(128, 25_600, 256),
    "10.05T": Model(195, 65_536, 512),
    "101.47T": Model(315, 163_840, 1024),
}
"""The models of the memory table (Fig. 2a), by their parameters."""

SEQ, CI = 1024, 1
"""Tokens of a sequence; blocks between two checkpoints of activations (section 3)."""
BATCH_GPU, BATCH_NODE = 2, 32
"""Sequences in the table's columns for one GPU and for one node of 16."""

PEAK = 70e12
"""FLOP/s of a V100 that real layers reach (section 4.1)."""
TENSOR_PEAK = 125e12
"""FLOP/s of its tensor cores (data sheet); of which the abstract takes its share of the peak."""

GPUS = 16
"""V100 of a DGX-2 node; all that follows is of Fig. 2b, in bytes and bytes per second."""
GPU_MEMORY = 32 * 2**30
CPU_MEMORY, NVME = 1.5e12, 28e12
"""Of one node."""
PCIE, NVME_LINK = 3.0e9, 1.6e9
"""Of one GPU when all of the node use theirs at once."""
PCIE_ALONE = 12.0e9
"""Of one GPU that has the node to itself, from host memory."""
NETWORK = 70e9
"""Between GPUs of different nodes, of one GPU (60 to 100 in the table); the paper's section 4.2 asks for 70."""

CONTEXT = 2**30
"""Bytes of a GPU that CUDA and the framework hold before the first tensor. Assumed: what is usual."""

SCALING_BATCH = 5
"""Sequences for a GPU in the scaling of the trillion-parameter model (Table 1, from memory)."""

TENSOR_PARALLEL = 16
"""Ways that 3D parallelism cuts a layer: the GPUs of a node."""

FRAGMENT = 2 * 2**30
"""Bytes of the pieces that GPU memory is cut into for the experiment on tiling (section 8.5)."""

TRAINED = {
    "10B": Model(50, 4096, 16),
    "50B": Model(62, 8192, 32),
    "100B": Model(125, 8192, 32),
    "0.5T": Model(124, 18_432, 160),
    "1T": Model(128, 25_600, 256),
    "5T": Model(174, 49_152, 512),
    "10T": Model(200, 65_536, 512),
    "20T": Model(205, 90_112, 1024),
}
"""Models of the experiments (Table 1, from memory)."""
