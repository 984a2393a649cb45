"""Every backend against the product of the weights as they are stored, by the paper's own measure."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.ledger import Value
from common.runner import Run
from papers.marlin.config import Config, Fault, Weights


def kernels(config: Config, run: Run) -> dict[str, Value]:
    """mean |y - y*| / mean |y*| of each backend in its half precision, the worst over m; and in float64."""
    import jax
    import jax.numpy as jnp
    import torch

    from common.agreement import relative_error
    from kernels import gemm_w4a16, sparse24
    from papers.marlin import kernel

    weights = torch.from_numpy(_weights(config, run))
    n, k = weights.shape
    rng = np.random.default_rng(config.seed)
    mask = sparse24.mask(weights)
    stored: dict[str, tuple[Any, ...]] = {}
    dense: dict[str, np.ndarray] = {}
    for form, matrix in (("dense", weights), ("2:4", weights * mask)):
        codes, scales = _nearest(matrix)
        whole = codes.T.reshape(k // 128, 128, n).double() * scales.double()[:, None]
        dense[form] = whole.reshape(k, n).numpy()
        if form == "dense":
            stored[form] = gemm_w4a16.pack(codes.T.contiguous(), scales)
        else:
            stored[form] = kernel.sparse_pack(codes.T.contiguous(), scales, mask.T.contiguous())
        if config.fault is Fault.nibbles:
            words = stored[form][0].numpy().view(np.uint32)
            stored[form] = (torch.from_numpy((words << 4 | words >> 28).view(np.int32)), *stored[form][1:])
    functions = {"dense": gemm_w4a16.matmul, "2:4": kernel.sparse_matmul}

    def product(form: str, backend: str, x: np.ndarray, double: bool = False) -> np.ndarray:
        if backend in ("torch", "triton"):
            parts = [each.double() if double and each.is_floating_point() else each for each in stored[form]]
            return functions[form](torch.from_numpy(x), *parts, backend=backend).numpy().astype(np.float64)
        with jax.enable_x64(double):
            parts = [jnp.asarray(each.numpy()) for each in stored[form]]
            if double:
                parts[-1] = parts[-1].astype(jnp.float64)
            return np.asarray(functions[form](jnp.asarray(x), *parts, backend=backend), np.float64)

    found: dict[str, float] = {}
    exact: dict[str, float] = {}
    for form in run.track(("dense", "2:4"), "comparing kernels"):
        for backend in ("torch", "triton", "jax", "pallas"):
            # XLA compiles for every size, and treats them alike: the last stands for all.
            for m in config.sizes if backend in ("torch", "triton") else config.sizes[-1:]:
                x = rng.standard_normal((m, k)).astype(np.float16)
                want = x.astype(np.float64) @ dense[form].astype(np.float16).astype(np.float64)
                error = np.abs(product(form, backend, x) - want).mean() / np.abs(want).mean()
                found[f"{form}, {backend}"] = max(float(error), found.get(f"{form}, {backend}", 0.0))
        for backend in ("torch", "jax"):
            wide = rng.standard_normal((config.sizes[-1], k))
            exact[f"{form}, {backend}"] = relative_error(product(form, backend, wide, double=True), wide @ dense[form])
    return {"correct": found, "exact": exact}


def _nearest(matrix: Any) -> tuple[Any, Any]:
    """Codes (n, k) and scales (k / 128, n)."""
    from common.gptq import nearest

    made = nearest(matrix)
    return made.codes, made.scales.T.contiguous()


def _weights(config: Config, run: Run) -> np.ndarray:
    """(n, k) whose sizes the format has: MiniLM's widening layer, 1536 x 384, or random numbers."""
    if config.weights is Weights.random:
        return np.random.default_rng(config.seed + 1).standard_normal((512, 256)).astype(np.float32)
    from common.data.checkpoints import minilm

    real = minilm()
    run.used("all-MiniLM-L6-v2", real.source, real.sha256)
    return real.matrices["encoder.layer.0.intermediate.dense.weight"]
