"""When an iteration ends: the prefetch of parameters over three hops, and the optimizer behind it, on DGX-2 nodes.

For operator i, of which an iteration has three for each block (forward, recomputation, backward):

    R_i = max(R_{i-1}, C_{i-4}) + read        slow memory -> CPU, begins when operator i-3 may
    U_i = max(U_{i-1}, R_i, C_{i-3}) + copy   CPU -> GPU
    G_i = max(G_{i-1}, U_i, C_{i-2}) + gather slices -> whole
    C_i = max(C_{i-1}, G_i) + compute

C_i is the end of the computation; before the first all ends are 0. The gradient of a backward operator is reduced, copied
and written behind it on lanes of its own. :func:`tasks` says the same in resources that serve in order, for pictures and as a
check; :func:`iteration` is the recurrence, on numbers or on arrays of either framework, one entry for each scenario.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.events import Task, Timeline, schedule
from papers.zero_infinity import bandwidth, memory, published
from papers.zero_infinity.capacity import Tier
from papers.zero_infinity.published import Model

PASSES = (1, 1, 2)
"""Computation of a block in its forward pass, recomputation and backward pass, in forward passes."""


@dataclass(frozen=True)
class Costs:
    """Seconds for one block: each hop of its parameters, its forward pass, each hop of its gradients, and the optimizer's
    step over all blocks at the end."""

    read: Any
    copy: Any
    gather: Any
    forward: Any
    reduce: Any
    leave: Any
    write: Any
    optimizer: Any
    layers: int


def iteration(costs: Costs, maximum: Any = np.maximum, overlap: bool = True) -> Any:
    """Seconds of an iteration.

    Args:
        maximum: of the arrays' framework: ``torch.maximum``, ``jnp.maximum``.
        overlap: False fetches on demand and waits for every gradient.
    """
    c, operators = costs, 3 * costs.layers
    if not overlap:
        hops = c.read + c.copy + c.gather
        return operators * hops + c.layers * (sum(PASSES) * c.forward + c.reduce + c.leave + c.write) + c.optimizer
    zero = c.forward * 0
    read = copy = gather = reduce = leave = write = zero
    ends = [zero] * 4  # of the last four computations
    for i in range(operators):
        kind = _kind(i, c.layers)
        read = maximum(read, ends[0]) + c.read
        copy = maximum(maximum(copy, read), ends[1]) + c.copy
        gather = maximum(maximum(gather, copy), ends[2]) + c.gather
        ends = [*ends[1:], maximum(ends[3], gather) + PASSES[kind] * c.forward]
        if kind == 2:
            reduce = maximum(reduce, ends[3]) + c.reduce
            leave = maximum(leave, reduce) + c.leave
            write = maximum(write, leave) + c.write
    return maximum(ends[3], write) + c.optimizer


def tasks(costs: Costs) -> list[Task]:
    """The same iteration for :func:`common.events.schedule`; all costs are numbers."""
    c, found = costs, list[Task]()
    for i in range(3 * c.layers):
        kind = _kind(i, c.layers)

        def ended(back: int, i: int = i) -> tuple[str, ...]:
            return (f"compute {i - back}",) if i >= back else ()

        found += [
            Task(f"read {i}", "slow memory to CPU", c.read, ended(4)),
            Task(f"copy {i}", "CPU to GPU", c.copy, (f"read {i}", *ended(3))),
            Task(f"gather {i}", "all-gather", c.gather, (f"copy {i}", *ended(2))),
            Task(f"compute {i}", "GPU", PASSES[kind] * c.forward, (f"gather {i}",)),
        ]
        if kind == 2:
            found += [
                Task(f"reduce {i}", "reduce-scatter", c.reduce, (f"compute {i}",)),
                Task(f"leave {i}", "GPU to CPU", c.leave, (f"reduce {i}",)),
                Task(f"write {i}", "CPU to slow memory", c.write, (f"leave {i}",)),
            ]
    last = 3 * c.layers - 1
    found.append(Task("step", "optimizer", c.optimizer, (f"compute {last}", f"write {last}")))
    return found


def timeline(costs: Costs) -> Timeline:
    return schedule(tasks(costs))


def cluster(
    model: Model,
    nodes: Any,
    batch: Any,
    *,
    tier: Tier = Tier.nvme,
    aggregate: bool = True,
    first_nodes: int = 4,
) -> Costs:
    """Costs on ``nodes`` DGX-2 nodes.

    Args:
        batch: sequences for each GPU.
        tier: where weights, gradients and states are.
        aggregate: False lets slow memory be as fast as that of ``first_nodes``, however many share it: what it would be if
            slices did not bring their own links.
    """
    ranks = published.GPUS * nodes
    links = 1.0 if aggregate else first_nodes / nodes
    slow, pcie = published.NVME_LINK * links, published.PCIE * links
    block = memory.parameters(1, model.hidden)
    weights = memory.HALF * block
    part = weights / ranks
    # Every rank receives what it lacks.
    network = weights * (ranks - 1) / ranks / published.NETWORK
    nothing = 0 * part
    read = part / slow if tier is Tier.nvme else nothing
    copy = nothing if tier is Tier.gpu else part / pcie
    states = 2 * 16 * block * model.layers / ranks
    speed = {Tier.nvme: slow, Tier.cpu: pcie, Tier.gpu: np.inf}[tier]
    return Costs(
        read=read,
        copy=copy,
        gather=network,
        forward=bandwidth.operations(1, model.hidden, batch, published.SEQ) / sum(PASSES) / published.PEAK,
        reduce=network,
        leave=copy,
        write=read,
        optimizer=states / speed,
        layers=model.layers,
    )


def teraflops(model: Model, nodes: int, batch: float | int, overlap: bool = True, **options: Any) -> float:
    """TFLOP/s of each GPU, all operations of an iteration counted."""
    costs = cluster(model, nodes, batch, **options)
    return float(bandwidth.operations(*model[:2], batch, published.SEQ) / iteration(costs, overlap=overlap) / 1e12)


def _kind(i: int, layers: int) -> int:
    """0 forward, 1 recomputation, 2 backward; recomputation and backward take turns."""
    return 0 if i < layers else 1 + (i - layers) % 2
