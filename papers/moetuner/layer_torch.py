"""A mixture of experts over ranks: every rank holds some of the experts and some of the tokens, rows travel by all-to-all.

Router, attention and norms are on all ranks. The map from experts to ranks is all that a placement changes: the router does not know
of it, the dispatch looks it up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from common.distributed import Group
from papers.moetuner.traffic import Flow, start_of


class State(NamedTuple):
    """What a rank holds between two layers: rows of the residual stream, and which tokens they are, in rising order."""

    x: Float[Tensor, "token width"]
    token: Int[Tensor, " token"]


def mixture(
    group: Group,
    state: State,
    norm: Callable[[Tensor], Tensor],
    router: Callable[[Tensor], Tensor],
    experts: Mapping[int, Callable[[Tensor], Tensor]],
    place: Int[Tensor, " expert"],
    active: int,
    flow: Flow = Flow.follow,
) -> tuple[State, Int64[np.ndarray, "exchange target"]]:
    """x + sum_e w_e expert_e(norm(x)) over the ``active`` experts with the largest p = softmax(router(norm(x))), w = p / their sum.

    What is dispatched is x with its weight, so that the rank of the likeliest expert can go on with the token (``follow``).

    Args:
        experts: those of this rank, by number.
        place: rank of every expert.

    Returns:
        The new state, and the rows that this rank sent to each in dispatch and combine, itself included.
    """
    weights, chosen = router(norm(state.x)).softmax(-1).topk(active, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    target = place[chosen]
    home = target[:, :1] if flow is Flow.follow else torch.full_like(target[:, :1], group.rank)
    row = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen)
    order = torch.arange(active, device=chosen.device).expand_as(chosen)
    labels = torch.stack([state.token[row], chosen, order, home.expand_as(chosen)], -1).flatten(0, 1)
    rows = torch.cat([state.x[row], weights[..., None]], -1).flatten(0, 1)
    rows, labels, dispatched = _send(group, rows, labels, target.flatten())
    x, weight = rows[:, :-1], rows[:, -1:]
    token, expert, order, home = labels.unbind(-1)

    parts = [(torch.where(expert == number)[0], each) for number, each in experts.items()]
    out = torch.zeros_like(x)
    for here, each in parts:
        out = out.index_add(0, here, each(norm(x[here])) * weight[here])
    out, labels, combined = _send(group, out, labels, home)

    if flow is Flow.follow:
        first = torch.where(order == 0)[0]
        first = first[token[first].argsort()]
        state = State(x[first], token[first])
    return State(state.x.index_add(0, torch.searchsorted(state.token, labels[:, 0].contiguous()), out), state.token), np.stack(
        [dispatched, combined]
    )


def forward(
    group: Group,
    model: Any,
    experts: Sequence[Mapping[int, Callable[[Tensor], Tensor]]],
    tokens: Int[Tensor, "batch seq"],
    place: Int[np.ndarray, "layer expert"],
    flow: Flow,
    run: Callable[..., Any] | None = None,
) -> tuple[State, Int64[np.ndarray, "layer exchange target"]]:
    """Logits of the tokens that end on this rank, by a :class:`common.models.transformer_torch.TransformerLM` of whose experts in each
    layer this rank has ``experts``.

    Attention needs the whole sequence wherever a token is: all ranks gather all rows and attend for all of them. (A system would gather
    keys and values and attend for its own rows; what is counted here are the mixtures' rows.) ``run`` is called in the place of
    :func:`mixture`, to time it.
    """
    batch, length = tokens.shape
    token = torch.from_numpy(np.nonzero(start_of(batch, group.size).repeat(length) == group.rank)[0]).to(tokens.device)
    state = State(model.embedding(tokens.flatten()[token]), token)
    sent = []
    for block, own, here in zip(model.blocks, experts, torch.from_numpy(place).to(tokens.device), strict=True):
        every = _gather(group, State(block.attention_norm(state.x), state.token), batch * length).unflatten(0, (batch, length))
        attended = block.attention(every, model.rotary[:, :length], None).flatten(0, 1)
        state = State(state.x + attended[state.token], state.token)
        mix = block.feed_forward
        state, rows = (run or mixture)(group, state, block.feed_forward_norm, mix.router, own, here, mix.active, flow)
        sent.append(rows)
    x = model.norm(state.x)
    return State(x @ model.embedding.weight.T if model.architecture.tied else model.head(x), state.token), np.stack(sent)


def _send(
    group: Group, rows: Float[Tensor, "row column"], labels: Int[Tensor, "row label"], target: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "got column"], Int[Tensor, "got label"], Int64[np.ndarray, " rank"]]:
    """Every row and its labels to its rank; also how many went to each."""
    order = target.argsort(stable=True)
    lengths = torch.bincount(target, minlength=group.size).tolist()
    got = group.all_to_all(labels[order].split(lengths))
    return _AllToAll.apply(rows[order], lengths, group), torch.cat(got), np.array(lengths)


class _AllToAll(torch.autograd.Function):
    """The gradient goes back to where the row came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: list[int], group: Group) -> Tensor:
        got = group.all_to_all(x.split(lengths))
        ctx.group, ctx.lengths = group, [len(part) for part in got]
        return torch.cat(got)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat(ctx.group.all_to_all(gradients[0].contiguous().split(ctx.lengths))), None, None


def _gather(group: Group, state: State, total: int) -> Float[Tensor, "token width"]:
    """All ranks' rows, each in its token's place."""
    count = torch.tensor([len(state.token)], device=state.x.device)
    most = int(group.all_reduce(count, "max"))
    short = most - len(state.token)
    rows = group.all_gather(nn.functional.pad(state.x, (0, 0, 0, short)))
    tokens = group.all_gather(nn.functional.pad(state.token, (0, short), value=total))
    whole = state.x.new_empty(total + 1, state.x.shape[1])
    whole[torch.cat(tokens)] = torch.cat(rows)
    return whole[:-1]
