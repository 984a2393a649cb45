"""Bytes of compressed files, written to disk and counted: networks of the paper's shapes, and a real checkpoint."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from papers.gpusq_vit import compress
from papers.gpusq_vit.shapes import shapes
from papers.gpusq_vit.store import Compressed


def file_sizes(name: str, bits: int, classifier: bool, seed: int) -> dict[str, float]:
    """A network with random weights in a file: how many times smaller than float32 its compressed matrices are, and the whole.

    Matrices of one shape get one random draw: their bytes are as many whatever they hold.
    """
    network = shapes(name)
    layers, others = {}, {}
    chosen = set(compress.compressed_layers((each.name for each in network.matrices), classifier))
    for each in network.matrices:
        if each.name not in chosen:
            others[f"{each.name}.weight"] = np.zeros((each.rows, each.k), np.float16)
            continue
        layers[each.name] = _random(each.rows, each.k, bits, seed)
    others["biases"] = np.zeros(sum(each.rows for each in network.matrices if each.bias), np.float16)
    others["others"] = np.zeros(network.others, np.float16)
    scales = dict.fromkeys(layers, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        size = Compressed(layers, scales, others, bits).save(Path(folder) / "model.safetensors")
    matrices = sum(each.rows * each.k for each in network.matrices if each.name in layers)
    return {
        "GEMMs": 4 * matrices / sum(each.nbytes for each in layers.values()),
        "file": 4 * network.parameters / size,
        "bytes": float(size),
    }


def saved(rows: int = 64, k: int = 256) -> dict[str, float]:
    """Share of the bytes of a dense matrix of the same format that values and places save, for each format."""
    weights = np.random.default_rng(0).standard_normal((rows, k), np.float32)
    found = {}
    for kind, bits in compress.FORMATS.items():
        packed = pack_float(weights, bits)
        found[kind] = 1 - 8 * (packed.values.nbytes + packed.meta.nbytes) / (rows * k * bits)
    return found


def checkpoint(matrices: dict[str, np.ndarray], bits: int) -> dict[str, float]:
    """Real matrices: how many times smaller they are in the file, and how long it took to pack them, in MB of float32 a second."""
    start = time.perf_counter()
    layers = {name: pack_float(array, bits) for name, array in matrices.items()}
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        size = Compressed(layers, {}, {}, bits).save(Path(folder) / "model.safetensors")
    whole = sum(array.nbytes for array in matrices.values())
    return {"ratio": whole / size, "MB/s": whole / 1e6 / seconds, "bytes": float(size)}


def pack_float(weights: np.ndarray, bits: int) -> compress.Packed:
    """Mask, quantise and pack by the PyTorch backend."""
    import torch

    tensor: Any = torch.from_numpy(weights)
    mask = compress.layer_mask("weights", tensor, bits)
    return compress.pack_layer(tensor, mask, bits)


@functools.cache
def _random(rows: int, k: int, bits: int, seed: int) -> compress.Packed:
    return pack_float(np.random.default_rng((seed, rows, k)).standard_normal((rows, k), np.float32), bits)
