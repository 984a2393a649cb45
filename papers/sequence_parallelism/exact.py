"""What must be equal: attention, losses, gradients and weights on ranks and in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.agreement import relative_error
from common.architecture import Transformer
from common.data.text import Text, king_james
from common.distributed import Group
from common.models import rotary_table
from common.models.transformer_torch import TransformerLM
from papers.sequence_parallelism import parallel
from papers.sequence_parallelism.alternatives_torch import fused_attention, gathered_attention, ulysses_attention
from papers.sequence_parallelism.config import Config, Fault
from papers.sequence_parallelism.data import Batch, masked_batch
from papers.sequence_parallelism.encoder import Shape, check_tensor
from papers.sequence_parallelism.linformer_torch import linformer_attention
from papers.sequence_parallelism.online_torch import ring_attention_online
from papers.sequence_parallelism.parallel import Job, serial, train
from papers.sequence_parallelism.ring_torch import Ring, ring_attention

if TYPE_CHECKING:  # every rank imports this module
    from common.distributed import Crew
    from common.ledger import Value
    from common.runner import Run

BATCH, HEADS, CHUNK, DIM, ROWS = 2, 4, 6, 8, 5
"""Shapes of the comparisons of single attentions."""


def exactness(config: Config, crew: Crew) -> dict[str, Value]:
    """Single attentions against one process."""
    late = int(config.fault is Fault.late)
    found: dict[str, float] = {}
    for ranks in (1, 2, 4):
        found[f"torch, {ranks}"] = max(crew.run(ranks, attention_error, "ring", config.seed, late))
    found["torch, 4, all-reduce"] = max(crew.run(4, attention_error, "ring, all-reduce", config.seed, late))
    names = ("online", "online, causal", "all-gather", "all-to-all", "Linformer")
    online = {name: max(crew.run(4, attention_error, name, config.seed, late)) for name in names}
    return {"exact": found, "online": online}


def attention_error(group: Group, kind: str, seed: int, late: int = 0) -> float:
    """Largest relative error of a rank's output and gradients against PyTorch's own attention of the whole."""
    length = CHUNK * group.size
    drawn = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64).to(group.device)

    q, k, v, cotangent = draw(4, BATCH, HEADS, length, DIM)
    columns = list(draw(2, ROWS, length)) if kind == "Linformer" else []
    seen = torch.ones(BATCH, length, dtype=torch.bool, device=group.device)
    seen[0, length - 3 :] = False

    def mine(x: Tensor, axis: int) -> Tensor:
        return x.detach().chunk(group.size, axis)[group.rank].contiguous()

    whole = [each.clone().requires_grad_() for each in (q, k, v, *columns)]
    parts = [mine(each, 2 if each.dim() == 4 else 1).requires_grad_() for each in whole]
    ring = Ring(group, late=late, reduce="all" if "all-reduce" in kind else "scatter", overlap="all-reduce" not in kind)
    if kind.startswith("ring"):
        got = ring_attention(*parts, ring, mask=seen)
        want = F.scaled_dot_product_attention(*whole, attn_mask=seen[:, None, None])
    elif kind.startswith("online"):
        got = ring_attention_online(*parts, ring, causal="causal" in kind)
        want = F.scaled_dot_product_attention(*whole, is_causal="causal" in kind)
    elif kind == "Linformer":
        got = linformer_attention(*parts, group)
        want = F.scaled_dot_product_attention(whole[0], whole[3] @ whole[1], whole[4] @ whole[2])
    else:
        alternative = {"all-gather": partial(gathered_attention, attend=fused_attention), "all-to-all": ulysses_attention}[kind]
        got, want = alternative(*parts, group), F.scaled_dot_product_attention(*whole)
    want.backward(cotangent)
    got.backward(mine(cotangent, 2))
    worst = relative_error(got.detach().cpu(), mine(want, 2).cpu())
    for one, all_of_it in zip(parts, whole, strict=True):
        assert one.grad is not None and all_of_it.grad is not None
        axis = 2 if one.dim() == 4 else 1
        # Relative to the largest entry of the whole gradient, as a rank's part may be small.
        scale = float(all_of_it.grad.abs().max())
        worst = max(worst, float((one.grad - mine(all_of_it.grad, axis)).abs().max()) / scale)
    return worst


def jobs(config: Config, text: Text, **change: Any) -> Job:
    """The training of the claims trajectory and learns."""
    shape = Shape(config.width, config.depth, config.heads, config.length)
    batches = [masked_batch(text.train, config.batch, config.length, config.seed, step) for step in range(config.steps)]
    held = masked_batch(text.held_out, config.held, config.length, config.seed, config.steps)
    return Job(shape, batches, held=held, seed=config.seed, rate=config.rate, **change)


def training(config: Config, run: Run, crew: Crew) -> dict[str, Value]:
    """Loss curves of sequence and tensor parallelism beside that of one process, in two precisions."""
    text = king_james()
    run.used("king_james", text.source, text.sha256)
    job, found, curves, held = jobs(config, text), {}, {}, []
    for dtype in run.track(("float64", "float32"), "training by sequence and by tensor"):
        plain = replace(job, dtype=dtype)
        want = np.array(serial(plain).losses)
        curves[f"one process, {dtype}"] = want
        for axis in ("sequence", "tensor"):
            each = parallel.faults(replace(plain, axes={axis: config.ranks}), config.fault.value)
            results = crew.run(config.ranks, train, each)
            curves[f"{axis}, {dtype}"] = got = parallel.losses(results)
            found[f"{axis}, {dtype}"] = float(np.abs(got - want).sum(1).max())
            if (axis, dtype) == ("sequence", "float64"):
                held = np.sum([r.held for r in results], axis=0).tolist()
    run.keep("losses", curves)
    run.keep("held", held)
    return {"trajectory": found, "learns": held[0] - held[1]}


GRIDS: dict[str, dict[str, int]] = {
    "sequence x data": {"sequence": 2, "data": 2},
    "sequence x pipeline": {"sequence": 2, "pipe": 2},
    "sequence x tensor": {"sequence": 2, "tensor": 2},
    "all four": dict.fromkeys(parallel.AXES, 2),
}


def combined(config: Config, run: Run, crew: Crew) -> dict[str, Value]:
    """Loss curves and final weights on grids of ranks against one process."""
    shape = Shape(32, 2, 4, 24)
    job = Job(shape, _batches(config, 4, 24, config.grid_steps), seed=config.seed)
    want = serial(job)
    found = {}
    for name in run.track(list(GRIDS)[: config.grids], "grids of ranks"):
        each = parallel.faults(replace(job, axes=GRIDS[name]), config.fault.value)
        found[name] = parallel.errors(crew.run(each.ranks, train, each), want, shape)
    return {"combined": found}


def heads(config: Config, crew: Crew) -> dict[str, Value]:
    """Four heads on five ranks."""
    shape = Shape(32, 1, 4, 20)
    fits = [size for size in range(1, 9) if _accepts(shape, size)]
    job = Job(shape, _batches(config, 2, 18, 1), seed=config.seed, axes={"sequence": 5}, pad=True)
    results = crew.run(5, train, parallel.faults(job, config.fault.value))
    error = parallel.errors(results, serial(job), shape, "gradients")
    return {
        "heads": {
            "tensor, most ranks for 4 heads": max(fits),
            "tensor on 5 is refused": int(5 not in fits),
            "ring of 5, relative error": error,
        }
    }


def unchanged(config: Config, crew: Crew) -> dict[str, Value]:
    """The repository's decoder, its attention replaced by the online ring."""
    tokens = _batches(config, 2, 24, 1)[0].tokens
    results = crew.run(4, decoder_errors, tokens, int(config.fault is Fault.late))
    return {"unchanged": {name: max(each[name] for each in results) for name in results[0]}}


DECODER = Transformer(width=32, depth=2, heads=4, kv_heads=4, head_dim=8, hidden=64, context=24, vocabulary=260)


def decoder_errors(group: Group, tokens: np.ndarray, late: int) -> dict[str, float]:
    """Relative errors of loss and gradients of the decoder on chunks, summed over the ranks, against the whole on one."""
    inputs, targets = (torch.from_numpy(each).to(group.device) for each in (tokens, np.roll(tokens, -1, 1)))
    whole = TransformerLM(DECODER, dtype=torch.float64).to(group.device)
    want = F.cross_entropy(whole(inputs).flatten(0, 1), targets.flatten())
    want.backward()
    model = TransformerLM(replace(DECODER, positions="none"), turned(group, late), dtype=torch.float64).to(group.device)
    mine = [each.chunk(group.size, 1)[group.rank] for each in (inputs, targets)]
    share = F.cross_entropy(model(mine[0]).flatten(0, 1), mine[1].flatten(), reduction="sum") / targets.numel()
    share.backward()
    errors = {"loss": relative_error(group.all_reduce(share.detach()).cpu(), want.detach().cpu()), "gradients": 0.0}
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        errors["gradients"] = max(errors["gradients"], relative_error(group.all_reduce(one.grad).cpu(), other.grad.cpu()))
    return errors


def turned(group: Group, late: int = 0) -> Callable[..., Tensor]:
    """The online ring as a decoder's attention, which also turns queries and keys by their positions in the whole sequence:
    a model that counts positions from the start of its chunk is told to use none."""
    ring = Ring(group, late=late)

    def attention(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        chunk, dim = q.shape[-2:]
        table = torch.from_numpy(rotary_table(group.size * chunk, dim)).to(q)
        cos, sin = table[:, group.rank * chunk : (group.rank + 1) * chunk]

        def turn(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        return ring_attention_online(turn(q), turn(k), v, ring, causal=True)

    return attention


def _batches(config: Config, batch: int, length: int, count: int) -> list[Batch]:
    text = king_james().train
    return [masked_batch(text, batch, length, config.seed, step) for step in range(count)]


def _accepts(shape: Shape, size: int) -> bool:
    try:
        check_tensor(shape, size)
    except ValueError:
        return False
    return True
