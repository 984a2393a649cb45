"""This machine's own products, side by side in one run: our packed one, torch's and bitsandbytes' with 4 bits, dense ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from common import meter
from common.ledger import Value
from common.runner import Run
from papers.marlin.config import Config, Product


def cpu(config: Config, run: Run) -> dict[str, Value]:
    if not run.alone:
        return _busy(run)
    import torch

    from kernels.gemm_w4a16 import cases, dequantize, matmul

    generator = torch.Generator().manual_seed(config.seed)
    packed = torch.randint(-(2**31), 2**31, (config.k // 16, 2 * config.n), generator=generator, dtype=torch.int64).int()
    scales = (0.01 + 0.02 * torch.rand(config.k // 128, config.n, generator=generator)).half()

    def ours(x: torch.Tensor) -> Callable[[], Any]:
        if config.product is Product.unpack:
            return lambda: x @ dequantize(packed, scales).float()
        return lambda: matmul(x, packed, scales)

    seconds: dict[str, dict[str, float]] = {}
    with run.timing():
        for m in run.track(config.batches, "timing products"):
            x = torch.randn(m, config.k, generator=generator)
            functions: dict[str, Callable[[], object]] = {"ours": ours(x)}
            peers: dict[str, Any] = dict(cases.PEERS["matmul"])
            for name, peer in peers.items():
                try:
                    peer(x, packed, scales, group=128)
                except ImportError:
                    continue  # bitsandbytes is not installed
                functions[name] = functools.partial(peer, x, packed, scales, group=128)
            for name, value in meter.median_seconds(functions, repeats=config.repeats, least=0.01).items():
                seconds.setdefault(name, {})[f"m={m}"] = value
    run.keep("seconds", seconds)
    run.figure("cpu", lambda: _draw(seconds))
    if not run.alone:
        return _busy(run)
    mine = seconds["ours"]

    def over(peer: str) -> dict[str, float]:
        return {m: seconds[peer][m] / mine[m] for m in ("m=1", "m=16")}

    return {
        "cpu_int4_float32": over("torch int4, float32"),
        "cpu_int4_bfloat16": over("torch int4, bfloat16"),
        "cpu_dense": {"m=1": over("dense float32")["m=1"]},
    }


TIMED = ("cpu_int4_float32", "cpu_int4_bfloat16", "cpu_dense")


def _busy(run: Run) -> dict[str, Value]:
    assert run.busy is not None
    return dict.fromkeys(TIMED, run.busy)


def _draw(seconds: dict[str, dict[str, float]]) -> Any:
    from common.figures import lines

    series = {name: ([int(m[2:]) for m in by_m], [1e3 * value for value in by_m.values()]) for name, by_m in seconds.items()}
    return lines(series, x="rows m", y="milliseconds", title="One product on this CPU", log="xy")
