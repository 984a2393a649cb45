"""Measure the claims of Megatron-LM: ``python -m papers.megatron_lm.reproduce preset=smoke``."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.command_line import main
from common.data import text
from common.distributed import Ranks, on_devices
from common.ledger import NotRun, Value
from common.runner import Run
from papers.megatron_lm import counting, modelled, on_gpus, pictures, ranks, reference, sleeping
from papers.megatron_lm.config import Config
from papers.megatron_lm.counting import MICROBATCHES, RANKS, SCHEDULES
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.schedule import Kind
from papers.megatron_lm.shape import initial_weights
from papers.megatron_lm.trainer import Options, assemble

PATIENCE = 600.0
"""Seconds for all calls of the ranks: eight of them on two cores that others use, too, take minutes."""

Arrays = dict[str, np.ndarray]


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.row:
        on_gpus.check(config.row)
    values: dict[str, Value] = {**counting.arithmetic(), **modelled.claims(config, run), **on_gpus.claims(config.row, run)}
    if run.wants("params_table", "params_formula", "flops"):
        values |= counting.counted()
    with Ranks(RANKS, timeout=PATIENCE) as four, Ranks(config.layout().ranks, timeout=PATIENCE) as more:
        # They start with their first work: at smoke the four are enough.
        grid = four if more.size == four.size else more
        values |= counting.sent_and_kept(config, run, four)
        if run.wants("interleave10"):
            values["interleave10"] = run.busy or interleaving(config, run, four)
        if run.wants("engine_peer"):
            values["engine_peer"] = run.busy or beside_library(config, run, four)
        if run.wants("correct_3d", "correct_float32", "duality"):
            values |= equalities(config, run, grid)
    return values


def interleaving(config: Config, run: Run, four: Ranks) -> Value:
    """Throughput of two chunks a rank over one, in processes whose stages sleep."""
    times = config.forward_ms / 1e3, config.backward_ms / 1e3
    taken, lines = {}, {}
    with run.timing():
        for name, (kind, chunks) in SCHEDULES.items():
            if not config.interleave:
                kind, chunks = Kind.one_f_one_b, 1
            found = four.run(sleeping.sleep, kind, MICROBATCHES, chunks, *times, config.batches)
            taken[name] = statistics.median(max(seconds) for seconds in zip(*(each[0] for each in found), strict=True))
            lines[name] = sleeping.timeline([each[1] for each in found])
    run.keep("seconds of a batch", taken)
    run.keep("ideal seconds of a batch", {n: sum(times) * (MICROBATCHES + (RANKS - 1) / c) for n, (_, c) in SCHEDULES.items()})
    run.figure("schedules", lambda: pictures.schedules(lines))
    gain = taken["1F1B"] / taken["interleaved"]
    ideal = (MICROBATCHES + RANKS - 1) / (MICROBATCHES + (RANKS - 1) / SCHEDULES["interleaved"][1])
    return run.busy or {"throughput": gain, "over the ideal": gain / ideal}


def beside_library(config: Config, run: Run, four: Ranks) -> Value:
    """Throughput of the engine over that of torch.distributed.pipelining, sleeping and computing."""
    from papers.megatron_lm import peers

    if not config.peer:
        return NotRun("torch.distributed.pipelining takes seconds to load in every process; take preset=laptop")
    chunks, batches = SCHEDULES["interleaved"][1], config.batches
    sleeps = config.forward_ms / 1e3 / chunks, config.backward_ms / 1e3 / chunks
    with run.timing():
        found = {
            name: four.run(peers.compare, each, MICROBATCHES, chunks, batches if each else 10 * batches)
            for name, each in (("sleeping", sleeps), ("computing", None))
        }
    run.keep("gradients beside the library", {name: max(each[2] for each in rank) for name, rank in found.items()})
    return run.busy or {
        name: max(theirs for _, theirs, _ in each) / max(ours for ours, _, _ in each) for name, each in found.items()
    }


def equalities(config: Config, run: Run, grid: Ranks) -> dict[str, Value]:
    """The grid of processes against one process, and against the mesh of devices in JAX."""
    shape, bible = config.shape, text.king_james()
    run.used("King James", bible.source, bible.sha256)
    batch_at = text.batches(bible.train, config.batch, config.seq_len, config.seed)
    double = Options(dtype=torch.float64, scatter=config.scatter, fault=config.fault)
    values: dict[str, Value] = {}
    if run.wants("correct_3d"):
        alone = one_process(config, batch_at(0), torch.float64)[1]
        errors = {f"gradients, v={v}": worst(on_grid(config, v, batch_at(0), double, grid)[1], alone) for v in (1, 2)}
        trained, want = trainings(config, batch_at, double, grid)
        values["correct_3d"] = errors | {
            "losses": float(np.abs(trained[0] / want[0] - 1).max()), "weights": worst(trained[1], want[1])
        }  # fmt: skip
        run.keep("losses, float64", {"one process": want[0]})
    if run.wants("correct_float32"):
        (found, _), (want32, _) = trainings(config, batch_at, dataclasses.replace(double, dtype=torch.float32), grid)
        run.keep("losses, float32", {"one process": want32, str(config.layout(2)): found})
        run.figure("losses", lambda: pictures.losses(want32.tolist(), found.tolist(), str(config.layout(2))))
        values["correct_float32"] = float(np.abs(found / want32 - 1).max())
    if run.wants("duality"):
        from papers.megatron_lm import model_jax

        layout = Layout(tensor=2, pipeline=2, data=2, chunks=2, microbatch=config.microbatch)
        loss, arrays = on_grid(config, 2, batch_at(0), double, grid)
        twin = on_devices(
            model_jax.loss_and_gradients, 8, shape, layout, initial_weights(shape, config.seed), batch_at(0), timeout=PATIENCE
        )
        values["duality"] = {"loss": abs(loss / twin[0] - 1), "gradients": worst(arrays, twin[1])}
    return values


def trainings(
    config: Config, batch_at: Callable[[int], np.ndarray], options: Options, grid: Ranks
) -> tuple[tuple[np.ndarray, Arrays], tuple[np.ndarray, Arrays]]:
    """Losses of all steps and the weights behind them: on the grid with two chunks, and by the definition."""
    options = dataclasses.replace(options, rate=config.rate)
    batches = [batch_at(step) for step in range(config.steps)]
    found = grid.run(ranks.losses, config.shape, config.layout(2), config.seed, batches, options)
    weights = _tensors(config, options.dtype)
    losses = reference.train(weights, config.shape, [torch.from_numpy(each) for each in batches], config.rate)
    ours = np.array(found[0][0]), assemble([each for _, each in found], config.shape)
    return ours, (np.array(losses), {name: each.detach().numpy() for name, each in weights.items()})


def on_grid(config: Config, chunks: int, tokens: np.ndarray, options: Options, grid: Ranks) -> tuple[float, Arrays]:
    """Loss and whole gradients of one batch on the configured grid."""
    found = grid.run(ranks.gradients, config.shape, config.layout(chunks), config.seed, tokens, options)
    return found[0][0], assemble([each for _, each in found], config.shape)


def one_process(config: Config, tokens: np.ndarray, dtype: torch.dtype) -> tuple[float, Arrays]:
    """The same from the definition."""
    weights = _tensors(config, dtype)
    loss = reference.loss(weights, config.shape, torch.from_numpy(tokens))
    loss.backward()
    return loss.item(), {name: each.grad.numpy() for name, each in weights.items() if each.grad is not None}


def worst(found: Arrays, wanted: Arrays) -> float:
    """Largest difference over the largest magnitude of an array, of all arrays."""
    return max(float(np.abs(found[name] - each).max() / np.abs(each).max()) for name, each in wanted.items())


def _tensors(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    weights = initial_weights(config.shape, config.seed)
    return {name: torch.from_numpy(each).to(dtype).requires_grad_() for name, each in weights.items()}


if __name__ == "__main__":
    raise SystemExit(main("megatron_lm"))
