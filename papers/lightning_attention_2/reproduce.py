"""Measure the claims of Lightning Attention-2: ``python -m papers.lightning_attention_2.reproduce preset=smoke``."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from common import machine
from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.lightning_attention_2 import cost, published
from papers.lightning_attention_2.config import Config, Fault

KI = published.KI
LAPTOP_TOKENS = 10**9
"""More than this is no work for a CPU."""


def measure(config: Config, run: Run) -> dict[str, Value]:
    machine.interpret_triton_without_gpu()
    tokens = config.steps * config.batch * config.seq_len
    if run.wants("loss") and tokens > LAPTOP_TOKENS:
        run.require_gpu(f"training on {tokens:,} tokens")
    values: dict[str, Value] = {}
    if run.wants("equal", "equal_float32"):
        values |= equality(config, run)
    if run.wants("loss"):
        values["loss"] = train(config, run)
    if run.wants("flat", "slope", "speedup_here"):
        values |= timings(config, run)
    if run.wants("tgs_fa2", "tgs_la1", "tgs_ends", "speedup"):
        values |= training_speed(config, run)
    if run.wants("ms", "ms_ends", "crossover"):
        values |= milliseconds(config)
    if run.wants("mem_fwd", "mem_bwd", "mem_linear"):
        values |= memory_bytes(config)
    if run.wants("parameters_15b"):
        values["parameters_15b"] = parameters_15b()
    no_gpu = NotRun("needs an A100; this repository's Triton kernel is compiled for it ahead of time, not timed")
    values |= {
        "ms_gpu": no_gpu,
        "tgs_15b": NotRun("needs the authors' cluster and model"),
        "bench": NotRun("needs 100 billion tokens of training"),
    }
    return values


def equality(config: Config, run: Run) -> dict[str, Value]:
    """Worst relative error of o, the state, and all gradients against the recurrence, over variants, by backend."""
    import jax
    import jax.numpy as jnp
    import torch

    from common.agreement import relative_error
    from kernels.linear_attention import alibi_slopes, lightning_attention
    from papers.lightning_attention_2 import model_jax, model_torch

    rng = np.random.default_rng(config.seed)
    n, (d, e), heads = config.check_length, config.check_dims, 2
    shapes = {"q": (1, heads, n, d), "k": (1, heads, n, d), "v": (1, heads, n, e), "initial_state": (1, heads, d, e)}
    drawn = {name: rng.standard_normal(shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()}
    slope = alibi_slopes(heads).astype(np.float32).astype(np.float64)
    seeds = [rng.standard_normal(shape) for shape in (shapes["v"], shapes["initial_state"])]

    def by_torch(function: Any, dtype: Any) -> list[np.ndarray]:
        inputs = {name: torch.from_numpy(x).to(dtype).requires_grad_() for name, x in drawn.items()}
        outputs = function(inputs["q"], inputs["k"], inputs["v"], torch.from_numpy(slope).to(dtype), inputs["initial_state"])
        found = torch.autograd.grad(outputs, list(inputs.values()), [torch.from_numpy(s).to(dtype) for s in seeds])
        return [x.detach().numpy() for x in (*outputs, *found)]

    def by_jax(function: Any, dtype: Any) -> list[np.ndarray]:
        with jax.enable_x64(dtype == jnp.float64):
            inputs = [jnp.asarray(x, dtype) for x in drawn.values()]

            @jax.jit
            def both(*inputs: Any) -> Any:
                q, k, v, state = inputs
                outputs, pull = jax.vjp(
                    lambda q, k, v, state: function(q, k, v, jnp.asarray(slope, dtype), state), q, k, v, state
                )
                return *outputs, *pull(tuple(jnp.asarray(s, dtype) for s in seeds))

            return [np.asarray(x) for x in both(*inputs)]

    want = by_torch(model_torch.recurrence, torch.float64)

    def worst(backend: str, double: bool) -> float:
        errors = []
        # The Pallas backend has the loop alone, and one variant is enough to show a fault.
        one = backend == "pallas" or config.fault is not Fault.none
        for variant in ("loop",) if one else ("loop", "parallel", "left"):
            if config.fault is Fault.drop_state:
                attend = model_torch.forgetful if backend in ("torch", "triton") else model_jax.forgetful
            else:
                attend = lightning_attention

            def function(q: Any, k: Any, v: Any, slope: Any, state: Any, variant: str = variant, attend: Any = attend) -> Any:
                return attend(q, k, v, slope, initial_state=state, return_state=True, block=16, variant=variant, backend=backend)

            if backend in ("torch", "triton"):
                got = by_torch(function, torch.float64 if double else torch.float32)
            else:
                got = by_jax(function, jnp.float64 if double else jnp.float32)
            errors += [relative_error(mine, theirs) for mine, theirs in zip(got, want, strict=True)]
        return max(errors)

    return {
        "equal": {backend: worst(backend, True) for backend in ("torch", "jax")},
        "equal_float32": {b: worst(b, False) for b in run.track(("torch", "jax", "triton", "pallas"), "comparing backends")},
    }


def timings(config: Config, run: Run) -> dict[str, Value]:
    """Time of one attention layer as the sequence grows: softmax by SDPA, LA1 and LA2, on the same tensors in turns."""
    if not run.alone:
        return dict.fromkeys(("flat", "slope", "speedup_here"), run.busy)
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from common.meter import median_seconds
    from kernels.linear_attention import alibi_slopes, lightning_attention

    slope = torch.from_numpy(alibi_slopes(config.heads)).float()
    generator = torch.Generator().manual_seed(config.seed)
    seconds: dict[str, list[float]] = {}
    with run.timing():
        for n in run.track(config.lengths, "timing"):
            q, k, v = (torch.randn(1, config.heads, n, config.head_dim, generator=generator) / 8 for _ in range(3))
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]

            def both_ways(leaves: Any = leaves) -> None:
                o = lightning_attention(*leaves, slope, variant=config.variant.value)
                torch.autograd.grad(o, leaves, o.detach())

            functions = {
                "softmax": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v, is_causal=True),
                "LA1": lambda q=q, k=k, v=v: lightning_attention(q, k, v, slope, variant="left"),
                "LA2": lambda q=q, k=k, v=v: lightning_attention(q, k, v, slope, variant=config.variant.value),
                "LA2 forward and backward": both_ways,
            }
            for name, value in median_seconds(functions, repeats=config.repeats, least=0.02).items():
                seconds.setdefault(name, []).append(value)
    run.keep("seconds", {"lengths": config.lengths, **seconds})
    lengths = np.array(config.lengths)
    _draw_timings(run, lengths, seconds)
    token = {name: np.array(taken) / lengths for name, taken in seconds.items()}
    long = slice(-3, None)
    return {
        "flat": {
            name: float(token[full].max() / token[full].min())
            for name, full in {"forward": "LA2", "forward and backward": "LA2 forward and backward"}.items()
        },
        "slope": {name: cost.growth_exponent(lengths[long], np.array(seconds[name])[long]) for name in ("softmax", "LA1", "LA2")},
        "speedup_here": {
            name: float(
                min(later / earlier for earlier, later in itertools.pairwise(np.array(seconds[name]) / np.array(seconds["LA2"])))
            )
            for name in ("softmax", "LA1")
        },
    }


def train(config: Config, run: Run) -> Value:
    """Train the decoder with LA1, LA2 and softmax attention from the same weights; returns |loss LA1 - loss LA2| held out."""
    from common.architecture import Transformer
    from common.data.text import batches, king_james, windows
    from common.training import warmup_cosine

    text = king_james()
    run.used("King James text", text.source, text.sha256)
    dim = config.width // config.model_heads
    shape = Transformer(
        width=config.width, depth=config.depth, heads=config.model_heads, kv_heads=config.model_heads, head_dim=dim,
        hidden=config.hidden, context=config.seq_len, output_norm=True,
    )  # fmt: skip
    batch_at = batches(text.train, config.batch, config.seq_len, config.seed)
    held = list(
        itertools.islice(windows(text.held_out, config.batch, config.seq_len), max(1, config.held_out_windows // config.batch))
    )
    schedule = warmup_cosine(config.steps, max(1, config.steps // 20))
    curves, final = {}, {}
    kinds = {"LA1": "left", "LA2": config.variant.value, "softmax": "softmax"}
    for name, kind in kinds.items():
        fault = name == "LA2" and config.fault is Fault.drop_state
        if config.framework.value == "torch":
            from common.models.transformer_torch import TransformerLM
            from common.training import torch_loop as loop
            from papers.lightning_attention_2.model_torch import mechanism

            model: Any = TransformerLM(shape, mechanism(kind, config.model_heads, config.depth, fault), seed=config.seed)
            optimizer: Any = loop.adamw(model, config.learning_rate)
        else:
            from common.models.transformer_jax import TransformerLM as JaxLM
            from common.training import jax_loop as loop  # type: ignore[no-redef]
            from papers.lightning_attention_2.model_jax import mechanism as jax_mechanism

            model = JaxLM(shape, jax_mechanism(kind, config.model_heads, config.depth, fault), seed=config.seed)
            optimizer = loop.adamw(config.learning_rate)
        history = loop.train(
            model, loop.next_token_loss, batch_at, optimizer, config.steps, schedule,
            checkpoint=run.checkpoint(f"train-{name}"), every=50, track=run.track, label=f"training with {name}",
        )  # fmt: skip
        curves[name] = history.losses.tolist()
        final[name] = loop.evaluate(model, held)
    run.keep("loss_curves", curves)
    run.keep("held_out_loss", final)
    _draw_losses(run, curves)
    return abs(final["LA1"] - final["LA2"])


def training_speed(config: Config, run: Run) -> dict[str, Value]:
    """TGS between the ends of Table 1, from a cost of a token that is affine in the context."""
    names = {f"{i}Ki": i * KI for i in (2, 4, 8, 16, 32, 64, 80)}

    def predict(model: str) -> tuple[dict[str, float], tuple[float, float]]:
        ends = published.TGS_ENDS[model]
        a, b = cost.fit_affine({n: 1 / speed for n, speed in ends.items()})
        if not config.context_cost:
            a, b = 1 / max(ends.values()), 0.0
        return {name: float(cost.tokens_per_second(n, a, b)) for name, n in names.items() if n < max(ends)}, (a, b)

    fits = {model: predict(model)[1] for model in published.TGS_ENDS}
    run.keep("tgs", {model: predict(model)[0] for model in published.TGS_ENDS})
    ends = published.TGS_ENDS
    refit = {f"{model} {n // KI}Ki": round(float(cost.tokens_per_second(n, *fits[model]))) for model in ends for n in ends[model]}
    last = {model: ends[f"{model} 0.4B"][92 * KI] for model in ("LLaMA-FA2", "TNL-LA1", "TNL-LA2")}
    return {
        "tgs_fa2": predict("LLaMA-FA2 0.4B")[0],
        "tgs_la1": predict("TNL-LA1 0.4B")[0],
        "tgs_ends": refit,
        "speedup": {
            "over FA2": round(last["TNL-LA2"] / last["LLaMA-FA2"], 2),
            "over LA1": round(last["TNL-LA2"] / last["TNL-LA1"], 2),
        },
    }


def milliseconds(config: Config) -> dict[str, Value]:
    """Milliseconds of a layer on an A100 from two lengths: LA2 is a + b n in all, FA2 has the cost a + b n for a token."""
    fits = {}
    for name, ends in published.MILLISECOND_ENDS.items():
        quadratic = name.startswith("FA2") and config.context_cost
        fits[name] = cost.fit_affine({n: ms / n if quadratic else ms for n, ms in ends.items()})

    def at(name: str, n: int) -> float:
        a, b = fits[name]
        return (a + b * n) * (n if name.startswith("FA2") and config.context_cost else 1)

    token = {name: (a, b) if name.startswith("FA2") else (b, 0.0) for name, (a, b) in fits.items()}
    cross = (
        {way: cost.crossover(token[f"FA2 {way}"], token[f"LA2 {way}"]) for way in ("forward", "backward")}
        if config.context_cost
        else dict.fromkeys(("forward", "backward"), 0.0)
    )
    return {
        "ms": {f"{name} 4Ki": at(name, 4 * KI) for name in fits} | {f"{name} 16Ki": at(name, 16 * KI) for name in fits},
        "ms_ends": {f"{name} {n // KI}Ki": at(name, n) for name, ends in published.MILLISECOND_ENDS.items() for n in ends},
        "crossover": cross,
    }


def memory_bytes(config: Config) -> dict[str, Value]:
    from papers.lightning_attention_2 import memory

    counts = {(kind, n): memory.forward_and_backward(kind, n) for kind in ("LA2", "FA2") for n in (512, 32 * KI)}
    return {
        "mem_fwd": {f"{kind} {n}": forward for (kind, n), (forward, _) in counts.items()},
        "mem_bwd": {f"{kind} {n}": backward for (kind, n), (_, backward) in counts.items()},
        "mem_linear": memory.linear_growth(2 * max(config.lengths[0], 1024), variant=config.variant.value),
    }


def parameters_15b() -> int:
    """Parameters of TNL-15B with what the paper leaves open filled in as the README says."""
    from common.architecture import Transformer

    known = published.TNL_15B
    shape = Transformer(
        **known, kv_heads=known["heads"], head_dim=known["width"] // known["heads"], hidden=13824, vocabulary=64000,
        context=6144, positions="none", tied=False, output_norm=True,
    )  # fmt: skip
    gate = known["depth"] * known["width"] ** 2  # TransNormerLLM multiplies the attention output by a projection of its input
    return shape.parameters() + gate


def _draw_timings(run: Run, lengths: np.ndarray, seconds: dict[str, list[float]]) -> None:
    from common.figures import lines

    series = {name: (lengths, 1e6 * np.array(taken) / lengths) for name, taken in seconds.items()}
    labels = {"x": "sequence length", "y": "µs per token", "title": "Time per token on this CPU"}
    run.figure("time_per_token", lambda: lines(series, **labels, log="xy"))


def _draw_losses(run: Run, curves: dict[str, list[float]]) -> None:
    from common.figures import lines

    series = {name: (range(1, len(losses) + 1), losses) for name, losses in curves.items()}
    run.figure("loss", lambda: lines(series, x="step", y="loss [nats per byte]", title="The same decoder with three attentions"))


if __name__ == "__main__":
    raise SystemExit(main("lightning_attention_2"))
