"""Claims that need no MPI: canonical forms, the model in both frameworks, and the kernel on a GPU."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from papers.tempi.config import Config, Interpolation
from papers.tempi.constructions import boxes, lines, rows
from papers.tempi.datatypes import Datatype
from papers.tempi.ir import canonical, strided_block, translate
from papers.tempi.model import bilinear
from papers.tempi.published import BLOCK, OBJECT, STRIDE


def forms(config: Config) -> dict[str, float]:
    """Distinct (start, counts, strides) among constructions of the same bytes."""

    def distinct(types: Iterable[Datatype]) -> int:
        trees = [translate(each) for each in types]
        return len({strided_block(canonical(each) if config.canonicalise else each, 0) for each in trees if each is not None})

    found: dict[str, float] = {"box, 8 ways": distinct(boxes().values())}
    for n in (1, 2, 3, 4):
        found[f"{n} byte{'s' if n > 1 else ''}, 4 ways"] = distinct(lines(n).values())
    return found


def twin(config: Config) -> dict[str, float]:
    """Largest relative difference of the model in PyTorch and in JAX to scipy's interpolator, float64."""
    import jax
    import jax.numpy as jnp
    import torch
    from scipy.interpolate import RegularGridInterpolator

    rng = np.random.default_rng(config.seed)
    sizes, blocks = 4.0 ** np.arange(3, 12), 2.0 ** np.arange(10)
    times = rng.uniform(1e-6, 1e-3, (sizes.size, blocks.size))
    size, block = np.exp(rng.uniform(np.log(64), np.log(sizes[-1]), 500)), rng.uniform(1, 512, 500)
    want = RegularGridInterpolator((sizes, blocks), times)(np.stack([size, block], 1))
    if config.interpolation is Interpolation.lower:
        size = sizes[np.searchsorted(sizes, size, side="right") - 1]
    inputs = sizes, blocks, times, size, block
    with jax.enable_x64(True):
        found = {
            "torch": bilinear(*(torch.from_numpy(each) for each in inputs)).numpy(),
            "jax": np.asarray(jax.jit(bilinear)(*(jnp.asarray(each) for each in inputs))),
        }
    return {name: float(np.abs(each / want - 1).max()) for name, each in found.items()}


def pack_gpu() -> float:
    """A GPU's time for single copies, times their number, over that of the kernel; a 4 MiB object in blocks of one byte."""
    import torch
    from triton.testing import do_bench

    from papers.tempi.kernel import strided_pack

    described = rows(OBJECT, BLOCK, STRIDE)
    tree = translate(described)
    assert tree is not None
    block = strided_block(canonical(tree), described.extent)
    source = torch.ones(described.extent, dtype=torch.uint8, device="cuda")
    packed = torch.empty(1000, dtype=torch.uint8, device="cuda")

    def singly() -> None:
        for i in range(packed.numel()):
            packed[i : i + 1].copy_(source[i * STRIDE : i * STRIDE + 1])
            torch.cuda.synchronize()

    whole = do_bench(lambda: strided_pack(source, start=block.start, counts=block.counts, strides=block.strides))
    return do_bench(singly) / packed.numel() * block.size / whole
