"""Measure the claims of sequence parallelism: ``python -m papers.sequence_parallelism.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

from common import UserError
from common.command_line import main
from common.distributed import Crew, started
from common.ledger import Value
from common.machine import gpu
from common.runner import Run
from papers.sequence_parallelism import capacity, counts, exact, held, pictures, speed, twin
from papers.sequence_parallelism.config import LAUNCHED, PRESETS, Config

TIMED = ("weak_scaling", "step_time", "overlap")


def measure(config: Config, run: Run) -> dict[str, Value]:
    """{claim: value} for every claim of expected.yaml, which this function never sees."""
    if config == PRESETS["paper"]:
        _refuse_without_ranks()
    values: dict[str, Any] = {}
    with Crew(timeout=600.0) as crew:
        for claims, part in (
            (("exact", "online"), lambda: exact.exactness(config, crew)),
            (("comm", "online_comm"), lambda: counts.sent(config, crew)),
            (("words", "words_lean", "break_even"), lambda: held.blocks(crew)),
            (("trajectory", "learns"), lambda: exact.training(config, run, crew)),
            (("combined",), lambda: exact.combined(config, run, crew)),
            (("heads",), lambda: exact.heads(config, crew)),
            (("unchanged",), lambda: exact.unchanged(config, crew)),
            (("border",), lambda: counts.border(config, crew)),
            (("balance",), lambda: counts.balance(crew)),
            (("peak",), lambda: held.peak(config, crew)),
            (("sparse_saved",), lambda: held.sparse(config, crew)),
            (("tables",), capacity.tables),
            (("batch", "length"), lambda: capacity.dense(config, run, crew)),
            (("sparse_length", "sparse_ratio"), lambda: capacity.sparse(config)),
        ):
            if run.wants(*claims):
                values |= part()
        values |= dict.fromkeys(TIMED, run.busy) if run.busy else speed.timings(config, run, crew)
    for name, found in twin.values(config, {name: run.wants(name) for name in ("exact", "comm", "twin")}).items():
        values[name] = {**values.get(name, {}), **found}
    pictures.draw(config, run)
    return values


def _refuse_without_ranks() -> None:
    place = started()
    if place is None or place.size < LAUNCHED or gpu() is None:
        raise UserError(
            f"the paper preset trains BERT Base on GPUs and wants {LAUNCHED} ranks, each with its own; start it with "
            f"torchrun --nnodes=2 --nproc-per-node={LAUNCHED // 2} -m papers.sequence_parallelism.reproduce preset=paper, "
            "or take preset=laptop"
        )


if __name__ == "__main__":
    raise SystemExit(main("sequence_parallelism"))
