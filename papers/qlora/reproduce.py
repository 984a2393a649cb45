"""Measure the claims of QLoRA: ``python -m papers.qlora.reproduce preset=smoke``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.qlora import published
from papers.qlora.config import Config, Fault

GIGA = 1e9


def measure(config: Config, run: Run) -> dict[str, Value]:
    trained = Lazy(config, run)
    values: dict[str, Value] = {}
    if run.wants("recover", "all_layers", "untuned_order", "untuned_double", "mse_order") and config.model.startswith("llama"):
        run.require_gpu(f"fine-tuning {config.model}")
    if run.wants("fits", "saved_65b", "scale_bits"):
        values |= counted_bytes()
    if run.wants("chatgpt", "order_bias"):
        values |= scores()
    if run.wants("elo", "elo_rank"):
        values |= tournament(config, run)
    if run.wants("mse", "mse_order", "equal_mass", "constants"):
        from papers.qlora.quantisation import errors

        values |= errors(config, run, trained.model)
    if run.wants("untuned_order", "untuned_double"):
        from papers.qlora.quantisation import untuned_losses

        values |= untuned_losses(config, run, [trained.load(name) for name in config.quantised], trained.first_text)
    if run.wants("gradients"):
        values["gradients"] = gradients(config)
    if run.wants("recover", "all_layers"):
        from papers.qlora import tuning

        values |= tuning.measure(config, run, trained.model)
    if run.wants("memory"):
        values["memory"] = step_memory(config, run)
    if run.wants("paged_survives", "paged_equal", "paged_speed"):
        from papers.qlora import paged_run

        if run.wants("paged_survives"):
            values |= paged_run.long_batch(config, run)
        if run.wants("paged_equal"):
            values |= paged_run.trajectories(config)
        if run.wants("paged_speed"):
            values |= paged_run.cost(config, run)
    return values | {
        "day": NotRun("needs LLaMA-65B, the OASST1 data and a GPU of 48 GB"),
        "mmlu": NotRun("needs LLaMA models, the instruction data and MMLU"),
        "models": NotRun("needs LLaMA and T5 models and eight instruction data sets"),
    }


class Lazy:
    """Trained models and the held-out text of their language, loaded when something asks for them."""

    def __init__(self, config: Config, run: Run):
        self.config, self.run = config, run

    @cached_property
    def model(self) -> Any:
        """The one that is fine-tuned."""
        return self.load(self.config.model)

    def load(self, name: str) -> Any:

        from common import zoo

        found = zoo.load(name)
        self.run.used(name, found.source, found.sha256)
        return found

    @cached_property
    def first_text(self) -> list[np.ndarray]:
        from common.data.text import king_james, windows
        from papers.qlora.finetune import take

        text = king_james()
        self.run.used("King James text", text.source, text.sha256)
        return take(windows(text.held_out, 16, 2 * self.config.seq_len), max(1, self.config.quantised_windows // 16))


def counted_bytes() -> dict[str, Value]:
    """Memory of LLaMA-65B from tensors on the meta device, and bits of the scales from real buffers."""
    from papers.qlora import memory_model

    a = memory_model.llama(**published.LLAMA_65B)
    by_part = {
        name: memory_model.fine_tuning_bytes(a, **published.RECIPE_65B, double=double)
        for name, double in (("double", True), ("plain", False))
    }
    return {
        "fits": {"QLoRA": sum(by_part["double"].values()) / GIGA, "full 16-bit": memory_model.full_bytes(a) / GIGA},
        "saved_65b": (by_part["plain"]["scales"] - by_part["double"]["scales"]) / GIGA,
        "scale_bits": memory_model.overhead_bits(),
    }


def scores() -> dict[str, Value]:
    """Percentages of ChatGPT's score from the sums of GPT-4's scores in both orders."""
    from papers.qlora.elo import of_reference

    found = {size: of_reference(*sums) for size, sums in published.SCORES.items()}
    largest = found["65B"]
    return {
        "chatgpt": {size: each["mean"] for size, each in found.items()},
        "order_bias": {name: largest[name] for name in ("shown second", "shown first")},
    }


def tournament(config: Config, run: Run) -> dict[str, Value]:
    from papers.qlora.elo import ratings

    found = ratings(published.VERDICTS, orders=config.elo_orders, seed=config.seed)
    run.keep("elo", found)
    return {"elo": found, "elo_rank": {name: place for place, name in enumerate(found, 1)}}


def gradients(config: Config) -> Value:
    """Worst relative error, in float64, of y, dx, dL1, dL2 of a 4-bit layer with an adapter against autograd through W."""
    import jax
    import jax.numpy as jnp
    import torch

    from common.agreement import relative_error
    from papers.qlora.kernel import dequantize_nf4, matmul_nf4
    from papers.qlora.weights import FourBit

    rng = np.random.default_rng(config.seed)
    n, k, r, s = 40, 96, 4, 0.5
    made = FourBit.of(rng.standard_normal((n, k)).astype(np.float32))
    arrays = {"x": rng.standard_normal((5, k)), "l1": rng.standard_normal((k, r)), "l2": rng.standard_normal((r, n))}
    seed = rng.standard_normal((5, n))
    outer = {"scales": made.scales, "offset": made.offset}
    w = dequantize_nf4(made.packed, made.absmax, made.code, **outer)
    want = _by_torch(lambda x, l1, l2: x @ torch.tensor(w).double().T + s * x @ l1 @ l2, arrays, seed)
    if config.fault is Fault.drop_offset:
        outer["offset"] = np.zeros_like(made.offset)

    def layer(like: Any) -> Any:
        held = [like(each) for each in (made.packed, made.absmax, made.code)]
        more = {name: like(value) for name, value in outer.items()}
        return lambda x, l1, l2: matmul_nf4(x, *held, **more) + s * x @ l1 @ l2

    with jax.enable_x64(True):
        function = layer(jnp.asarray)

        @jax.jit
        def both(leaves: list[Any], seed: Any) -> Any:
            y, pull = jax.vjp(function, *leaves)
            return y, *pull(seed)

        by_jax = [np.asarray(each) for each in both([jnp.asarray(each) for each in arrays.values()], jnp.asarray(seed))]
    got = {"torch": _by_torch(layer(torch.tensor), arrays, seed), "jax": by_jax}
    return {name: max(relative_error(a, b) for a, b in zip(found, want, strict=True)) for name, found in got.items()}


def _by_torch(function: Any, arrays: dict[str, np.ndarray], seed: np.ndarray) -> list[np.ndarray]:
    import torch

    leaves = [torch.tensor(each, requires_grad=True) for each in arrays.values()]
    y = function(*leaves)
    return [each.detach().numpy() for each in (y, *torch.autograd.grad(y, leaves, torch.tensor(seed)))]


def step_memory(config: Config, run: Run) -> Value:
    """High-water marks of a QLoRA step over those of LoRA in 16 bits and of full fine-tuning, in both frameworks."""
    from common.architecture import Transformer
    from papers.qlora import memory

    shape = Transformer(
        width=config.memory_width, depth=config.memory_depth, heads=4, kv_heads=4, head_dim=config.memory_width // 4,
        hidden=config.memory_width * 11 // 4 // 32 * 32, context=config.memory_tokens,
    )  # fmt: skip
    options = {"rank": config.rank, "tokens": config.memory_tokens, "seed": config.seed}
    keep = config.fault is Fault.keep_dense
    peaks: dict[str, dict[str, dict[str, int]]] = {"torch": {}, "jax": {}}
    for variant in run.track(memory.VARIANTS, "memory of a step"):
        peaks["torch"][variant] = memory.peak_torch(shape, variant, keep=keep, **options)
        if not keep:  # one framework is enough to show the fault
            peaks["jax"][variant] = memory.peak_jax(shape, variant, **options)
    run.keep("step_memory", {"parameters": shape.parameters(), **peaks})
    values: dict[str, float] = {}
    for framework, found in {name: by_variant or peaks["torch"] for name, by_variant in peaks.items()}.items():
        for base in ("LoRA-16", "full"):
            values[f"{framework}, over {base}"] = found["QLoRA"]["peak"] / found[base]["peak"]
    return values


if __name__ == "__main__":
    raise SystemExit(main("qlora"))
