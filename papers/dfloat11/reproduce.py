"""Measure the claims of DFloat11: ``python -m papers.dfloat11.reproduce preset=smoke``."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from common import meter, zoo
from common.command_line import main
from common.data.checkpoints import minilm
from common.data.text import king_james
from common.ledger import NotRun, Value
from common.models.weights import Weights
from common.runner import Run
from papers.dfloat11 import memory, peers, pictures, published, store
from papers.dfloat11.codec import Unit, encode, size_formula, split
from papers.dfloat11.config import Checkpoint, Coding, Config, Fault
from papers.dfloat11.huffman import entropy


def measure(config: Config, run: Run) -> dict[str, Value]:
    values: dict[str, Value] = {}
    found = _checkpoint(config, run)
    bits = np.concatenate([array.reshape(-1).view(np.int16) for array in found.values()])
    unit = _encode(bits, config)
    values |= sizes(config, run, bits, unit)
    if run.wants("gaussian"):
        values |= _gaussian(config)
    if run.wants("lossless"):
        values["lossless"] = lossless(config, run, bits, unit)
    if run.wants("decode_batch", "encode_speed", "decode_speed"):
        values |= speeds(config, run, bits) if run.alone else dict.fromkeys(_TIMED, run.busy)
    if run.wants("zipnn"):
        values["zipnn"] = compare(config, run, bits, unit)
    values["gpu_speed"] = _NO_GPU
    return values


def sizes(config: Config, run: Run, bits: np.ndarray, unit: Unit) -> dict[str, Value]:
    """Everything that follows from the bytes of the arrays."""
    exponents = np.bincount(split(bits)[0], minlength=256)
    per_weight = unit.nbytes * 8 / bits.size
    language = store.compress(store.bfloat16(zoo.load(config.language_model).weights), threads=config.threads)
    units = [unit, *(_encode(each.decode(), config) for each in language.units.values())]
    assert all(each.code is not None and each.counts is not None for each in units)
    above = [each.code.mean_bits(each.counts) - entropy(each.counts) for each in units]  # type: ignore[union-attr, arg-type]
    llama = {name: memory.sizes(shape, per_weight) for name, shape in published.LLAMA_31.items()}
    overheads = np.linspace(0, published.CARD_24GB - llama["8B"]["bfloat16"] - 0.3e9, 200)
    context = memory.context_gain(published.LLAMA_31["8B"], per_weight, published.CARD_24GB, overheads)
    sweep = memory.offload_sweep(per_weight)
    gains = [float(row["gain"]) for row in sweep] or [1.0]
    run.keep("parts", {name: array.nbytes for name, array in unit.arrays.items()})
    run.keep("exponents", exponents)
    run.keep("offload", sweep)
    run.figure("sizes", lambda: pictures.parts(unit, bits.size))
    run.figure("exponents", lambda: pictures.exponents(exponents))
    run.figure("context", lambda: pictures.context(overheads, context))
    return {
        "ratio": unit.nbytes / bits.nbytes,
        "formula": per_weight - size_formula(unit),
        "entropy": entropy(exponents),
        "exponents_used": int(np.count_nonzero(exponents)),
        "near_optimal": max(above),
        "tables": max(each.tables.nbytes for each in units),
        "llama_sizes": {
            f"{name}{kind}": llama[name][key] / published.GB
            for name in ("8B", "405B")
            for kind, key in ((" bfloat16", "bfloat16"), ("", "dfloat11"))
        },
        "fits_405b": {
            "bfloat16": llama["405B"]["bfloat16"] <= published.NODE_8X80GB,
            "dfloat11": llama["405B"]["dfloat11"] + 8 * llama["405B"]["buffer"] <= published.NODE_8X80GB,
        },
        "offload": {"least": min(gains), "most": max(gains)},
        "offload_batch": _falls(sweep),
        "context": {"least": float(context.min()), "most": float(context.max())},
    }


def lossless(config: Config, run: Run, bits: np.ndarray, unit: Unit) -> dict[str, float]:
    """Entries that differ, through the parallel decoders; logits of the language model with and without compression."""
    import jax
    import jax.numpy as jnp
    import torch
    from flax import nnx

    from papers.dfloat11 import model_jax, model_torch

    # The lock-step decoder is for accelerators; a few blocks of the checkpoint are enough for it on a CPU.
    part = bits[: 50 * unit.threads * 24]
    small = _broken(_encode(part, config), config)
    wrong = int((_broken(unit, config).decode() != bits).sum()) + int((small.decode(variant="parallel") != part).sum())
    arrays = {name: jnp.asarray(array) for name, array in small.arrays.items()}
    from papers.dfloat11.kernel import decode

    wrong += int((np.asarray(decode(**arrays, threads=small.threads)) != part).sum())

    trained = zoo.load(config.language_model)
    run.used(config.language_model, trained.source, trained.sha256)
    prompt = king_james().held_out[: 2 * config.context].astype(np.int64).reshape(2, config.context)
    compressed = store.compress(store.bfloat16(trained.weights), threads=config.threads)
    for name in list(compressed.units):
        compressed.units[name] = _broken(compressed.units[name], config)
    model = trained.torch(dtype=torch.bfloat16)
    with torch.no_grad():
        want = model(torch.from_numpy(prompt)).view(torch.int16)
        decoder = model_torch.attach(model, compressed, model_torch.tied(model))
        got = model(torch.from_numpy(prompt)).view(torch.int16)
    run.keep("resident", {"bytes": model_torch.resident_bytes(model, decoder), "decoded": decoder.decoded})

    def logits(model: Any) -> np.ndarray:
        graph, state = nnx.split(model)
        run = jax.jit(lambda state, tokens: jax.lax.bitcast_convert_type(nnx.merge(graph, state)(tokens), jnp.int16))
        return np.asarray(run(state, jnp.asarray(prompt)))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        compressed.save(path)
        theirs = logits(model_jax.from_file(trained.jax(param_dtype=jnp.bfloat16), path))
    plain = logits(trained.jax(param_dtype=jnp.bfloat16))
    return {"weights": wrong, "torch logits": int((want != got).sum()), "jax logits": int((plain != theirs).sum())}


def speeds(config: Config, run: Run, bits: np.ndarray) -> dict[str, Value]:
    import torch

    from papers.dfloat11 import model_torch

    part = bits[: config.slow_weights]
    small = encode(part, threads=config.threads)
    slow = {"loop": lambda: peers.encode_by_symbol(split(part)[0], small), "serial": lambda: small.decode(backend="reference")}
    fast = {"encode": lambda: encode(part, threads=config.threads), "decode": lambda: small.decode()}
    model = zoo.load(config.language_model).torch(dtype=torch.bfloat16)
    _, decoder = model_torch.compressed_lm(model, threads=config.threads)
    held = king_james().held_out
    spent: dict[int, float] = {}
    with run.timing():
        taken = meter.median_seconds({**slow, **fast}, repeats=config.repeats)
        for _, batch in itertools.product(range(config.repeats), config.batches):
            tokens = torch.from_numpy(held[: batch * config.context].astype(np.int64).reshape(batch, -1))
            seconds = _decoding(model, decoder, tokens)
            spent[batch] = min(spent.get(batch, np.inf), seconds)
    run.keep("decoding", {str(batch): seconds for batch, seconds in spent.items()})
    found: dict[str, Value] = {
        "decode_batch": max(spent.values()) / min(spent.values()),
        "encode_speed": taken["loop"] / taken["encode"],
        "decode_speed": taken["serial"] / taken["decode"],
    }
    return found if run.alone else dict.fromkeys(_TIMED, run.busy)


def compare(config: Config, run: Run, bits: np.ndarray, unit: Unit) -> Value:
    """Our ratio minus ZipNN's; the table of all is kept."""
    with run.timing():
        rows = peers.table(bits, unit, config.threads, config.repeats if run.alone else 1)
    run.keep("peers", rows)
    other = next((row for row in rows if row["what"] == "zipnn"), None)
    if other is None:
        return NotRun.without("zipnn")
    run.figure("peers", lambda: pictures.peers(rows))
    return unit.nbytes / bits.nbytes - other["ratio"]


def _checkpoint(config: Config, run: Run) -> dict[str, np.ndarray]:
    """The matrices in bfloat16."""
    if config.checkpoint is Checkpoint.draft:
        trained = zoo.load("byte_lm_draft.v1")
        run.used("byte_lm_draft.v1", trained.source, trained.sha256)
        weights: Weights = trained.weights
    else:
        real = minilm()
        run.used("all-MiniLM-L6-v2", real.source, real.sha256)
        weights = real.matrices
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items() if array.ndim == 2}


def _encode(bits: np.ndarray, config: Config) -> Unit:
    if config.coding is Coding.huffman:
        return encode(bits, threads=config.threads)
    return peers.fixed(bits, config.threads)


def _broken(unit: Unit, config: Config) -> Unit:
    if config.fault is Fault.none:
        return unit
    return Unit(**{**unit.arrays, "gaps": np.zeros_like(unit.gaps)}, threads=unit.threads)


def _gaussian(config: Config) -> dict[str, Value]:
    from scipy.stats import norm

    edges = 2.0 ** np.arange(-60, 8)
    closed = entropy(2 * np.diff(norm.cdf(edges)))
    sample = np.random.default_rng(config.seed).standard_normal(config.gaussian).astype(ml_dtypes.bfloat16).view(np.int16)
    return {"gaussian": entropy(np.bincount(split(sample)[0])) - closed}


def _falls(sweep: list[dict[str, Any]]) -> float:
    """The least ratio of the gain at the smallest batch to that at the largest, over copies and overflows."""
    gains: dict[tuple[Any, Any], list[float]] = {}
    for row in sweep:
        gains.setdefault((row["copy"], row["overflow"]), []).append(row["gain"])
    return min((each[0] / each[-1] for each in gains.values()), default=0.0)


def _decoding(model: Any, decoder: Any, tokens: Any) -> float:
    """Seconds that a forward pass spends decoding."""
    import torch

    before = decoder.seconds
    with torch.no_grad():
        model(tokens)
    return decoder.seconds - before


_TIMED = ("decode_batch", "encode_speed", "decode_speed")
_NO_GPU = NotRun("needs a GPU; this repository's Triton kernel is compiled for four of them ahead of time, not timed")

if __name__ == "__main__":
    raise SystemExit(main("dfloat11"))
