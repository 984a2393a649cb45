"""``python -m papers.<slug>.reproduce``: presets and overrides by Hydra, one table at the end, honest exit codes.

Exit 0: done. Exit 1: a verdict is worse than the recorded one. Exit 2: something for the user to put right.
Only this file knows Hydra.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import sys
from typing import Any

from common import UserError, ledger, records, runner
from common.config import describe
from common.distributed.place import started
from common.locks import exclusive, machine_to_itself, outputs
from common.plain import from_plain, plain

FLAGS = {
    "--record": "write the result into recorded.json and the paper's README (clean tree, no overrides)",
    "--controls": "also run every claim's control, with the mechanism switched off",
}


class _Below(Exception):
    """Carries a failure out of a Hydra sweep, whose launchers lose return values."""


def main(slug: str, arguments: list[str] | None = None) -> int:
    """Reproduce a paper as the command line says and return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        flags = {flag for flag in FLAGS if flag in words}
        words = [word for word in words if word not in FLAGS]
        if refused := [word for word in words if word[:1] in "+~" or (word[:1] == "-" and word not in _KNOWN)]:
            raise UserError(
                f"{refused[0]!r} is not understood; give option=value, preset=NAME, or one of {', '.join(sorted(_KNOWN | set(FLAGS)))}"
            )
        if "--help" in words or "-h" in words:
            print(_help(slug, runner.presets(slug)))
            return 0
        _check_words(slug, words)
        return _hydra(slug, words, flags)
    except _Below:
        return 1
    except UserError as error:
        print(f"{slug}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{slug}: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


_KNOWN = {"--help", "-h", "-m", "--multirun"}


def _check_words(slug: str, words: list[str]) -> None:
    """Unknown presets and options, named before Hydra names them in its own words."""
    presets = runner.presets(slug)
    names = [name for name, *_ in describe(next(iter(presets.values())))]
    for word in words:
        name, equals, value = word.partition("=")
        if word[:1] == "-" or "." in name or "/" in name:
            continue
        if name == "preset" and not set(value.split(",")) <= set(presets):
            raise UserError(f"there is no preset {value!r}; there are {', '.join(presets)}")
        if not equals:
            raise UserError(f"{word!r} is not understood; write option=value")
        if name not in (*names, "preset"):
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]}?" if close else "--help lists them"
            raise UserError(f"there is no option {name!r}; {hint}")


def _hydra(slug: str, words: list[str], flags: set[str]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its own six lines and exits 1
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    store = ConfigStore.instance()
    for name, preset in runner.presets(slug).items():
        node = OmegaConf.structured(preset)
        OmegaConf.set_readonly(node, None)  # a frozen dataclass is a read-only node, which Hydra cannot merge into
        store.store(group="preset", name=name, node=node, package="_global_")
    quiet_logs = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    sweep = {"dir": str(outputs() / ".sweep" / slug), "subdir": "${hydra:job.override_dirname}"}
    root = {
        "defaults": [{"preset": "laptop"}, "_self_", *quiet_logs],
        "hydra": {"job": {"name": slug, "chdir": False}, "output_subdir": None, "run": {"dir": "."}, "sweep": sweep},
    }
    store.store(name=slug, node=root)
    outcome: list[int | UserError] = []

    def job(raw: Any) -> None:
        sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
        preset = HydraConfig.get().runtime.choices["preset"]
        overrides = [word for word in HydraConfig.get().overrides.task if not word.startswith("preset=")]
        try:
            try:
                config = OmegaConf.to_object(raw)
            except (ValueError, TypeError, OmegaConfBaseException) as error:
                raise UserError(_first_line(error)) from error
            code = _reproduce(slug, preset, config, overrides, flags)
        except UserError as error:
            if sweeping:
                raise
            outcome.append(error)
            return
        if sweeping and code:
            raise _Below
        outcome.append(code)

    sys.argv = [sys.argv[0], *words]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=slug)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{_first_line(error)} (--help lists presets and options)") from error
    for result in outcome:
        if isinstance(result, UserError):
            raise result
    return max((code for code in outcome if isinstance(code, int)), default=0)


def _reproduce(slug: str, preset: str, config: Any, overrides: list[str], flags: set[str]) -> int:
    place = started()
    if place and place.rank:
        return _follow(slug, preset, config, overrides, flags, place.rank)
    book = ledger.load(slug)
    if "--record" in flags:
        _refuse_record(overrides)
    folder = outputs() / slug / _folder_name(preset, overrides)
    alone = contextlib.nullcontext() if place else machine_to_itself()
    with alone as busy, exclusive(folder):
        run = runner.prepare(slug, config, folder, busy=busy)
        results = runner.execute(slug, preset, config, run)
        rows = records.judge(slug, book, results)
        recorded = {} if overrides else records.record(slug).get(preset, {})
        lines = records.regressions(book, results, rows, recorded)
        results["verdicts"] = {name: row["verdict"] for name, row in rows.items()}
        controls = _controls(slug, preset, book, folder, busy) if "--controls" in flags else {}
        runner.finish(run, results)
    _print(book, preset, rows, results, controls)
    for line in lines:
        print(f"worse than recorded: {line}", file=sys.stderr)
    if "--record" in flags:
        if results["busy"]:
            raise UserError(f"not recorded: {results['busy']['not_run']}; run it again when nothing else does")
        print(f"recorded in {records.write_record(slug, book, results, rows, controls)}")
        return 0
    return 1 if lines else 0


def _follow(slug: str, preset: str, config: Any, overrides: list[str], flags: set[str], rank: int) -> int:
    """Measure as rank 0 does, which a launcher has started beside this one and which alone judges, prints and records."""
    folder = outputs() / slug / _folder_name(preset, overrides) / f".rank-{rank}"
    try:
        runner.execute(slug, preset, config, runner.prepare(slug, config, folder, quiet=True))
        for control, names in _control_groups(ledger.load(slug)) if "--controls" in flags else []:
            changed = runner.configure(slug, preset, control)
            runner.execute(slug, preset, changed, runner.prepare(slug, changed, folder, only=names, quiet=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _control_groups(book: ledger.Ledger) -> list[tuple[dict[str, Any], frozenset[str]]]:
    """The controls of all claims, those with equal overrides together."""
    groups: dict[str, tuple[dict[str, Any], set[str]]] = {}
    for claim in book.claims:
        if claim.control is not None:
            groups.setdefault(repr(sorted(claim.control.items())), (claim.control, set()))[1].add(claim.id)
    return [(control, frozenset(names)) for control, names in groups.values()]


def _controls(slug: str, preset: str, book: ledger.Ledger, folder: Any, busy: Any) -> dict[str, Any]:
    """Run the controls of all claims: {claim: {control, value, verdict}}."""
    found = {}
    for control, names in _control_groups(book):
        config = runner.configure(slug, preset, control)
        run = runner.prepare(slug, config, folder / "control", only=names, busy=busy)
        values = runner.execute(slug, preset, config, run)["claims"]
        for name in sorted(names):
            value = run.busy if book.by_id[name].timing and run.busy else from_plain(values[name])
            verdict = ledger.grade(book.by_id[name], value, preset)
            found[name] = {"control": control, "value": plain(value), "verdict": str(verdict)}
    return found


def _print(book: ledger.Ledger, preset: str, rows: dict[str, Any], results: dict[str, Any], controls: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    colours = {
        "agrees": "green",
        "agrees at reduced scale": "green",
        "direction only": "yellow",
        "disagrees": "red",
        "inconsistent": "red",
    }
    table = Table(title=f"{book.title}\npreset {preset}, {results['seconds']:.0f} s", title_justify="left")
    for name in ("claim", "evidence", "paper", "here", "verdict", *(["control"] if controls else [])):
        table.add_column(name, overflow="fold")
    for claim in book.claims:
        row = rows[claim.id]
        verdict = f"[{colours.get(row['verdict'], 'dim')}]{row['verdict']}[/]"
        cells = [claim.id, str(claim.evidence), records.show(claim.figure), records.show(row["value"]), verdict]
        if controls:
            cells.append(
                f"{records.show(controls[claim.id]['value'])}: {controls[claim.id]['verdict']}" if claim.id in controls else ""
            )
        table.add_row(*cells)
    wide = None if sys.stdout.isatty() else 150
    Console(width=wide).print(table)


def _refuse_record(overrides: list[str]) -> None:
    if overrides:
        raise UserError(f"--record takes a preset as it is; leave out {' '.join(overrides)}")
    changed = [name for name in runner.revision()["changed"] if not re.fullmatch(r"papers/\w+/(recorded\.json|README\.md)", name)]
    if changed:
        raise UserError(f"--record wants a clean tree, so that the record names what was run; commit {changed[0]} first")


def _folder_name(preset: str, overrides: list[str]) -> str:
    """A run with overrides writes beside, never over, the run of its preset."""
    name = ",".join([preset, *sorted(overrides)])
    return re.sub(r"[^\w.,=+-]", "_", name)[:200]


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), type(error).__name__)


def _help(slug: str, presets: dict[str, Any]) -> str:
    first = next(iter(presets.values()))
    rows = [(name, kind, meaning, [getattr(p, name) for p in presets.values()]) for name, kind, meaning in describe(first)]
    width = max(len(name) for name, *_ in rows)
    lines = [
        f"usage: python -m papers.{slug}.reproduce [preset={'|'.join(presets)}] [option=value ...] [{'] ['.join(FLAGS)}]",
        f"       several values at once: -m option=a,b (add hydra/launcher=joblib to run them side by side)\n\noptions ({', '.join(presets)}):",
    ]
    for name, kind, meaning, values in rows:
        shown = str(values[0]) if all(v == values[0] for v in values) else " | ".join(map(str, values))
        lines.append(f"  {name:<{width}}  {meaning} ({kind}) = {shown}")
    lines += ["", "flags:", *(f"  {flag:<{width}}  {meaning}" for flag, meaning in FLAGS.items())]
    lines += ["", f"The default preset is laptop. Results go to {outputs() / slug}."]
    return "\n".join(lines)
