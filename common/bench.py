"""Speed side by side: ``nox -s bench -- [--gradients] [--repeats N] [name ...]``.

Every operation with large cases is timed, forward or forward and backward, beside the peers that its ``cases.py`` names:
what a user would take instead. All run on the same tensors in one process, taking turns; the median of several is
shown as time, as ratio to our fastest backend, and as growth over the cases.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from common import UserError, machine, meter
from common.agreement import as_tuple, to_torch
from common.checkpoint import write_whole
from common.locks import machine_to_itself, outputs
from common.ops import Case, Operation, discover


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__.split("\n\n")[1] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="operations whose id contains one of these words; all if none is given")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each, of which the median counts (5)")
    parser.add_argument("--no-gradients", action="store_true", help="leave out forward and backward")
    options = parser.parse_args(arguments)
    try:
        chosen = [o for o in discover() if not options.names or any(word in o.id for word in options.names)]
        if not chosen:
            raise UserError(f"no operation matches {' '.join(options.names)}; there are {', '.join(o.id for o in discover())}")
        with machine_to_itself() as busy:
            if busy:
                print(f"bench: {busy.reason}; these times mean little", file=sys.stderr)
            rows = [row for operation in chosen for row in measure(operation, options.repeats, not options.no_gradients)]
        show(rows)
        keep(rows, busy.reason if busy else None)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def measure(operation: Operation, repeats: int = 5, gradients: bool = True) -> list[dict[str, Any]]:
    """One row for each provider and mode: {operation, mode, provider, case, seconds, ratio}."""
    rows = []
    for case in [each for each in operation.cases() if each.large]:
        for mode in ["forward", *(["forward and backward"] if gradients and operation.differentiable else [])]:
            providers = _providers(operation, case, backward=mode != "forward")
            seconds = meter.median_seconds(providers, repeats=repeats, warmup=2, least=0.02)
            ours = min(value for name, value in seconds.items() if name in operation.backends)
            rows += [
                {"operation": operation.id, "mode": mode, "provider": n, "case": case.id, "seconds": s, "ratio": s / ours}
                for n, s in seconds.items()
            ]
    return rows


def _providers(operation: Operation, case: Case, backward: bool) -> dict[str, Callable[[], Any]]:
    """Zero-argument calls by name: the backends that are real on this machine, then the peers."""
    arguments = case.make(np.random.default_rng(0))
    dtype = "float32" if "float32" in case.tolerance else next(iter(case.tolerance))
    arguments = {
        n: v.astype(dtype) if isinstance(v, np.ndarray) and np.issubdtype(v.dtype, np.floating) else v
        for n, v in arguments.items()
    }
    public = getattr(importlib.import_module(operation.room), operation.name)
    found: dict[str, Callable[[], Any]] = {}
    real = [b for b in operation.backends if b in ("torch", "jax") or machine.gpu()]
    for backend in [b for b in real if case.backends is None or b in case.backends]:
        make = _torch_call if backend in ("torch", "triton") else _jax_call
        found[backend] = make(lambda backend=backend, **a: public(**a, backend=backend), operation, arguments, backward)
    for name, peer in operation.peers().items():
        call = _torch_call(peer, operation, arguments, backward)
        if call() or not backward:
            found[name] = call  # a peer without gradients stands in the forward table alone
    return found


def _torch_call(
    function: Callable[..., Any], operation: Operation, arguments: dict[str, Any], backward: bool
) -> Callable[[], Any]:
    import torch

    device = "cuda" if machine.gpu() else "cpu"
    tensors = {n: to_torch(v).to(device) if isinstance(v, np.ndarray) else v for n, v in arguments.items()}
    inputs = [tensors[n] for n in operation.differentiable if isinstance(tensors.get(n), torch.Tensor)] if backward else []
    for each in inputs:
        each.requires_grad_()

    def call() -> bool:
        """Whether there was a gradient to take."""
        outputs = [o for o in as_tuple(function(**tensors)) if isinstance(o, torch.Tensor) and o.requires_grad]
        if inputs and outputs:
            torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs], allow_unused=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return bool(inputs and outputs)

    return call


def _jax_call(function: Callable[..., Any], operation: Operation, arguments: dict[str, Any], backward: bool) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(any(isinstance(v, np.ndarray) and v.dtype == np.float64 for v in arguments.values())):
        arrays = {n: jnp.asarray(v) for n, v in arguments.items() if isinstance(v, np.ndarray)}
    fixed = {n: v for n, v in arguments.items() if n not in arrays}
    wanted = [n for n in operation.differentiable if n in arrays]

    def forward(some: dict[str, Any], rest: dict[str, Any]) -> Any:
        return function(**rest, **some, **fixed)

    def total(some: dict[str, Any], rest: dict[str, Any]) -> Any:
        return sum(jnp.sum(o) for o in as_tuple(forward(some, rest)))

    # With the value: of a product the gradient alone does not need the forward pass, which XLA would then leave out.
    compiled = jax.jit(jax.value_and_grad(total) if backward else forward)
    some, rest = {n: arrays[n] for n in wanted}, {n: v for n, v in arrays.items() if n not in wanted}

    def call() -> None:
        with jax.enable_x64(any(v.dtype == jnp.float64 for v in arrays.values())):
            jax.block_until_ready(compiled(some, rest))

    return call


def show(rows: list[dict[str, Any]]) -> None:
    """A table for each operation and mode: milliseconds and ratio by case, and the growth from first to last case."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    for operation, mode in dict.fromkeys((row["operation"], row["mode"]) for row in rows):
        mine = [row for row in rows if (row["operation"], row["mode"]) == (operation, mode)]
        cases = list(dict.fromkeys(row["case"] for row in mine))
        table = Table(title=f"{operation}, {mode}: milliseconds (times our fastest)", title_justify="left")
        for name in ("provider", *cases, "growth"):
            table.add_column(name, justify="left" if name == "provider" else "right")
        for provider in dict.fromkeys(row["provider"] for row in mine):
            by_case = {row["case"]: row for row in mine if row["provider"] == provider}
            cells = [f"{1e3 * by_case[c]['seconds']:.2f} ({by_case[c]['ratio']:.2f}x)" if c in by_case else "" for c in cases]
            ends = [by_case[c]["seconds"] for c in (cases[0], cases[-1]) if c in by_case]
            table.add_row(provider, *cells, f"{ends[1] / ends[0]:.1f}x" if len(ends) == 2 and len(cases) > 1 else "")
        console.print(table)


def keep(rows: list[dict[str, Any]], busy: str | None) -> None:
    """Write ``outputs/bench.json`` for the report, keeping the rows of operations that were not run this time."""
    path = outputs() / "bench.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    now = {row["operation"] for row in rows}
    whole = {
        "machine": machine.machine(),
        "versions": machine.versions(),
        "busy": busy,
        "rows": [r for r in old if r["operation"] not in now] + rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(whole, indent=1) + "\n").encode())


if __name__ == "__main__":
    raise SystemExit(main())
