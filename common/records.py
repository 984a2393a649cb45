"""Verdicts on results, and the record of them that a paper keeps in ``recorded.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import ROOT, UserError
from common.checkpoint import write_whole
from common.ledger import Evidence, Ledger, NotRun, Verdict, grade, worse
from common.plain import from_plain, plain

TABLE = ("<!-- results: written by --record -->", "<!-- /results -->")
"""What the table of results stands between in a paper's README."""


def judge(slug: str, ledger: Ledger, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{claim: {value, verdict}}. Every claim must have been produced and every value must have a claim."""
    found = results["claims"]
    if missing := [claim.id for claim in ledger.claims if claim.id not in found]:
        raise UserError(
            f"papers/{slug}/expected.yaml has the claim {missing[0]!r}, which measure() in reproduce.py does not produce"
        )
    if unknown := [name for name in found if name not in ledger.by_id]:
        raise UserError(f"papers/{slug}/reproduce.py produces {unknown[0]!r}, which is no claim in expected.yaml")
    busy = from_plain(results["busy"])
    rows = {}
    for claim in ledger.claims:
        value = from_plain(found[claim.id])
        if isinstance(value, NotRun) and claim.evidence in (Evidence.COUNTED, Evidence.ARITHMETIC):
            raise UserError(
                f"{slug}: claim {claim.id!r} is {claim.evidence} and needs no machine, so it cannot be left unrun ({value.reason})"
            )
        if claim.timing and isinstance(busy, NotRun):
            value = busy
        rows[claim.id] = {"value": plain(value), "verdict": str(grade(claim, value, results["preset"]))}
    return rows


def record(slug: str) -> dict[str, Any]:
    """``recorded.json`` of a paper: {preset: record}; empty before the first ``--record``."""
    path = ROOT / "papers" / slug / "recorded.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def regressions(ledger: Ledger, results: dict[str, Any], rows: dict[str, dict[str, Any]], recorded: dict[str, Any]) -> list[str]:
    """A sentence for each verdict that is worse than the recorded one."""
    same_machine = recorded.get("machine", {}).get("cpu") == results["machine"]["cpu"]
    sentences = []
    for name, row in rows.items():
        before = recorded.get("claims", {}).get(name)
        if before is None or (ledger.by_id[name].timing and not same_machine):
            continue
        now, then = Verdict(row["verdict"]), Verdict(before["verdict"])
        value = from_plain(row["value"])
        lost = isinstance(value, NotRun) and not value.busy and same_machine and then is not Verdict.NOT_RUN
        if lost or worse(now, then):
            sentences.append(f"{name}: {now}, recorded as {then} on {recorded['date']}")
    return sentences


def write_record(
    slug: str, ledger: Ledger, results: dict[str, Any], rows: dict[str, dict[str, Any]], controls: dict[str, Any]
) -> Path:
    """Put a run into ``recorded.json`` and its table into the paper's README."""
    kept = ("date", "revision", "machine", "versions", "data", "unsure", "seconds", "peak_memory_bytes")
    whole = record(slug)
    whole[results["preset"]] = {
        **{name: results[name] for name in kept},
        "seed": results["config"]["seed"],
        "claims": rows,
        "controls": controls or whole.get(results["preset"], {}).get("controls", {}),
    }
    path = ROOT / "papers" / slug / "recorded.json"
    write_whole(path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    readme = path.with_name("README.md")
    if readme.exists():
        write_whole(readme, with_table(readme.read_text(encoding="utf-8"), ledger, whole).encode())
    return path


def with_table(readme: str, ledger: Ledger, whole: dict[str, Any]) -> str:
    """The README with its table of results brought up to the record."""
    start, end = TABLE
    if start not in readme or end not in readme:
        raise UserError(f"the README of the paper lacks the lines {start} and {end}, between which its results are written")
    head, _, rest = readme.partition(start)
    return f"{head}{start}\n{markdown(ledger, whole)}{end}{rest.partition(end)[2]}"


def markdown(ledger: Ledger, whole: dict[str, Any]) -> str:
    """The recorded results as a Markdown table, a column for each recorded preset."""
    names = [name for name in ("smoke", "laptop", "paper") if name in whole]
    head = ["claim", "evidence", "paper", *(column for name in names for column in (f"{name}: here", "verdict"))]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for claim in ledger.claims:
        cells = [f"**{claim.id}** {claim.says}", str(claim.evidence), f"{show(claim.figure)} {claim.unit}".strip()]
        for name in names:
            row = whole[name]["claims"].get(claim.id)
            cells += [show(row["value"]), row["verdict"]] if row else ["", ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    for name in names:
        entry = whole[name]
        lines.append(
            f"\n*{name}: recorded {entry['date']} on {entry['machine']['cpu']}, {entry['machine']['cores']} cores, in {entry['seconds']:.0f} s "
            f"(torch {entry['versions'].get('torch')}, jax {entry['versions'].get('jax')}).*"
        )
        if entry.get("unsure"):
            lines.append(f"\n*{name}: device figures from memory or secondary tables: {'; '.join(entry['unsure'])}.*")
    return "\n".join(lines) + "\n"


def show(value: Any) -> str:
    """A figure or value in few characters."""
    if value is None:
        return "–"
    if isinstance(value, dict) and "not_run" in value:
        return str(value["not_run"])
    if isinstance(value, dict):
        return ", ".join(f"{name}: {show(each)}" for name, each in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return f"{value:.6g}" if abs(value) >= 1 else f"{value:.3g}"
