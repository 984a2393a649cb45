"""Measure the claims of TEMPI: ``python -m papers.tempi.reproduce preset=smoke``."""

from __future__ import annotations

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.tempi import checks, summit
from papers.tempi.config import Config


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.gpu:
        run.require_gpu("timing the packing kernel")
    values: dict[str, Value] = {"forms": checks.forms(config)}
    values["pack_speedup"] = summit.speedup_of_pack(layer=True)
    values["send_speedup"] = summit.speedup_of_send(config.layer)
    values["halo_speedup"] = summit.speedup_of_halo(config.layer)
    if run.wants("twin"):
        values["twin"] = checks.twin(config)
    values |= with_mpi(config, run)
    values["pack_gpu"] = checks.pack_gpu() if config.gpu else NotRun("needs a GPU; give gpu=true")
    return values


def with_mpi(config: Config, run: Run) -> dict[str, Value]:
    """Claims whose programs are started by mpiexec; not run, with the reason, where none starts."""
    timed = ("pack_here", "model_picks", "halo_here", "overhead_here", "interpolation_here")
    exact = ("unchanged", "copies")
    if not run.wants(*timed, *exact):
        return {}
    from papers.tempi import measured, ranks

    if reason := ranks.unavailable():
        return dict.fromkeys((*exact, *timed), NotRun(reason))
    values: dict[str, Value] = {}
    if run.wants("unchanged"):
        values |= measured.unchanged(config, run)
    if run.wants("copies"):
        values |= measured.copies(config, run)
    return values | (dict.fromkeys(timed, run.busy) if run.busy else timings(config, run) if run.wants(*timed) else {})


def timings(config: Config, run: Run) -> dict[str, Value]:
    """Claims about time; nothing that was not asked for is timed."""
    from papers.tempi import measured, pictures

    values: dict[str, Value] = {}
    with run.timing():
        for _ in run.track(["tables"], "times of this machine"):
            model = measured.tables(config, run)
    values["interpolation_here"] = measured.interpolation_error(config, model)
    for name, function in measured.TIMED.items():
        if run.wants(name):
            with run.timing():
                for _ in run.track([name], f"timing for {name}"):
                    values[name] = function(config, run)
    if "pack" in run.details:
        run.figure("pack", lambda: pictures.bandwidth(run.details["pack"], model))
    return values if run.busy is None else dict.fromkeys(values, run.busy)


if __name__ == "__main__":
    raise SystemExit(main("tempi"))
