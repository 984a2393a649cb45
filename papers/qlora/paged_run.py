"""Runs with paged optimizer states: what one long batch does under a memory budget, and what paging costs without it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from common.architecture import Transformer
from common.ledger import Value
from common.offload import Block, OutOfBudget
from common.runner import Run
from papers.qlora.config import Config, Fault
from papers.qlora.paging import KIB, PageStore

SMALL_PAGE = 64 * KIB
LONG_AT, STEPS = 3, 7
"""The step with the long batch, and how many there are."""


class LosingStore(PageStore):
    """A fault: what was evicted comes back as zeros."""

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Block]:
        if name not in self._resident:
            self._known.discard(name)
        with super().use(name) as page:
            yield page


def long_batch(config: Config, run: Run) -> dict[str, Value]:
    """Train under a budget that holds the state beside a short batch's activations, but not beside a long one's.

    The budget stands in for a GPU's memory: every step takes the bytes that its activations were counted to need from the
    same arena as the pages, and gives them back before the optimizer step. Whether the parameters are those of AdamW in
    memory is looked at bit by bit.
    """
    import torch

    from common.models.transformer_torch import TransformerLM
    from common.training.torch_loop import next_token_loss
    from papers.qlora.paged_torch import PagedAdamW

    shape = Transformer(width=64, depth=2, heads=2, kv_heads=2, head_dim=32, hidden=176, context=config.long_length)
    rng = np.random.default_rng(config.seed)
    lengths = [config.long_length if step == LONG_AT else config.long_length // 8 for step in range(STEPS)]
    batches = [torch.from_numpy(rng.integers(0, 256, (2, length + 1))) for length in lengths]
    plain, paged = TransformerLM(shape, seed=config.seed), TransformerLM(shape, seed=config.seed)
    needs = {length: activation_bytes(plain, batches[lengths.index(length)]) for length in sorted(set(lengths))}
    pages = sum(-(-p.numel() * 8 // SMALL_PAGE) for p in plain.parameters())
    budget = max(needs[min(lengths)] + pages * SMALL_PAGE, needs[max(lengths)] + SMALL_PAGE)
    ours, timeline, survived = torch.optim.AdamW(plain.parameters(), lr=1e-3), [], True
    with tempfile.TemporaryDirectory() as folder, _kind(config)(budget, folder, page=SMALL_PAGE) as store:
        theirs = PagedAdamW(paged.parameters(), store, lr=1e-3)
        for step, batch in enumerate(run.track(batches, "paging under a budget")):
            try:
                with store.reserve(needs[lengths[step]]):
                    resident = store.resident
                    next_token_loss(paged, batch).backward()
                theirs.step()
            except OutOfBudget:
                survived = False
                break
            next_token_loss(plain, batch).backward()
            ours.step()
            for optimizer in (ours, theirs):
                optimizer.zero_grad()
            moved = store.moved()
            timeline.append({
                "length": lengths[step], "activations": needs[lengths[step]], "resident beside them": resident,
                "faults": store.faults, "evictions": store.evictions, "read": moved["read"], "written": moved["write"],
            })  # fmt: skip
        same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), paged.parameters(), strict=True))
        run.keep("paging", {"budget": budget, "pages": pages, "page": SMALL_PAGE, "steps": timeline})
        run.figure("paging", lambda: draw(timeline, budget))
        first, last = timeline[0], timeline[-1]
        return {
            "paged_survives": {
                "survives": survived,
                "pages leave and come back": last["evictions"] > first["evictions"] and last["read"] > 0,
                "stays within the budget": store.peak <= budget,
                "parameters are the same bits": survived and same,
            }
        }


def activation_bytes(model: Any, batch: Any) -> int:
    """Most bytes that forward and backward hold beside the model, gradients included."""
    from common.allocations import Allocations
    from common.training.torch_loop import next_token_loss

    with Allocations(*model.parameters(), *model.buffers(), batch) as counted:
        held = counted.live
        next_token_loss(model, batch).backward()
    model.zero_grad()
    return counted.peak - held


def trajectories(config: Config) -> dict[str, Value]:
    """Largest difference between paged and plain AdamW after some steps under a budget that pages all the time."""
    import jax.numpy as jnp
    import torch

    from papers.qlora import paged_jax, paged_torch

    rng, shapes = np.random.default_rng(config.seed), {"a": (90, 200), "b": (7,), "c": (20_001,)}
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(4)]

    @contextlib.contextmanager
    def store() -> Iterator[PageStore]:
        with tempfile.TemporaryDirectory() as folder, _kind(config)(2 * SMALL_PAGE, folder, page=SMALL_PAGE) as made:
            yield made

    def by_torch(make: Callable[[list[Any]], Any]) -> list[np.ndarray]:
        parameters = [torch.tensor(p, requires_grad=True) for p in start.values()]
        optimizer = make(parameters)
        for step in gradients:
            for p, g in zip(parameters, step.values(), strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
        return [p.detach().numpy() for p in parameters]

    with store() as pages:
        got = by_torch(lambda p: paged_torch.PagedAdamW(p, pages, lr=1e-2))
    want = by_torch(lambda p: torch.optim.AdamW(p, lr=1e-2))
    with store() as pages:
        paged, plain = (paged_jax.PagedAdamW(pages, 1e-2) for _ in range(2))
        mine = theirs = {name: jnp.asarray(p) for name, p in start.items()}
        state = {name: (jnp.zeros(p.size), jnp.zeros(p.size)) for name, p in mine.items()}
        for number, step in enumerate(gradients):
            given = {name: jnp.asarray(g) for name, g in step.items()}
            mine = paged.step(mine, given)
            theirs, state = plain.dense(number + 1, theirs, given, state)
    differences = {"torch": zip(got, want, strict=True), "jax": zip(mine.values(), theirs.values(), strict=True)}
    return {
        "paged_equal": {
            n: float(max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs)) for n, pairs in differences.items()
        }
    }


def cost(config: Config, run: Run) -> dict[str, Value]:
    """Time of an optimizer step with paged state over one with plain state, on the same parameters in turns."""
    if not run.alone:
        return {"paged_speed": run.busy}
    import torch

    from common.meter import median_seconds
    from papers.qlora.paged_torch import PagedAdamW

    page = config.page * KIB
    parameters = [torch.zeros(config.paged_parameters // 4) for _ in range(4)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    pages = sum(-(-p.numel() * 8 // page) for p in parameters)
    budget = max(page, int(config.resident * pages) * page)
    with tempfile.TemporaryDirectory() as folder, PageStore(budget, folder, page=page) as store, run.timing():
        functions = {"plain": torch.optim.AdamW(parameters).step, "paged": PagedAdamW(parameters, store).step}
        seconds = median_seconds(functions, repeats=config.repeats, warmup=2, least=0.02)
    run.keep("paged_seconds", seconds)
    return {"paged_speed": seconds["paged"] / seconds["plain"]}


def _kind(config: Config) -> type[PageStore]:
    return LosingStore if config.fault is Fault.lose_pages else PageStore


def draw(timeline: list[dict[str, Any]], budget: int) -> Any:
    """The budget at every step: activations, pages that stayed, and the faults that the optimizer step then takes."""
    from common.figures import COLOURS, style

    with style() as plt:
        figure, axes = plt.subplots()
        x, faults = np.arange(len(timeline)), np.diff([0, *(step["faults"] for step in timeline)])
        activations = np.array([step["activations"] for step in timeline]) / KIB
        resident = np.array([step["resident beside them"] for step in timeline]) / KIB
        axes.bar(x, activations, color=COLOURS[0], label="activations")
        axes.bar(x, resident, bottom=activations, color=COLOURS[2], label="pages that stay")
        axes.axhline(budget / KIB, color="#333333", ls="--", label="budget")
        for i, count in enumerate(faults):
            axes.annotate(f"{count} faults", (x[i], activations[i] + resident[i]), ha="center", va="bottom", fontsize=8)
        axes.set(xlabel="step", ylabel="KiB", title="One long batch pushes the optimizer's pages out")
        axes.legend(loc="upper left")
        return figure
