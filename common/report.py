"""One page of everything that was recorded: ``nox -s report`` writes ``outputs/report/index.html``.

The page is a single file that asks nothing of any network. It reads what is recorded: the ledgers and records of the
papers, the figures of their last runs, and what tests and benchmarks wrote about the operations. It measures nothing.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import ROOT, UserError, ledger, records, runner
from common.checkpoint import write_whole
from common.ledger import Evidence, Verdict
from common.locks import outputs

PRESETS = ("paper", "laptop", "smoke")
"""A paper is shown by the largest preset that it has a record of."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s report --", description="Write the page of all results.")
    parser.add_argument("--readme", action="store_true", help="also bring the tables in the README files up to date")
    options = parser.parse_args(arguments)
    try:
        folder = outputs() / "report"
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "index.html", page(_papers(), _json("operations.json"), _json("bench.json")).encode())
        print(folder / "index.html")
        if options.readme:
            refresh_readmes()
    except (UserError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


def scoreboard(papers: Iterable[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """How many recorded claims have each (evidence, verdict)."""
    return dict(Counter((row["evidence"], row["verdict"]) for paper in papers for row in paper["claims"]))


def refresh_readmes() -> None:
    """Rewrite the generated tables: each paper's results, and the map of papers in the README of the repository."""
    for slug in runner.papers():
        path = ROOT / "papers" / slug / "README.md"
        text = path.read_text(encoding="utf-8")
        write_whole(path, records.with_table(text, ledger.load(slug), records.record(slug)).encode())
    write_whole(ROOT / ".github" / "scoreboard.svg", picture(_papers()).encode())
    path = ROOT / "README.md"
    write_whole(path, with_map(path.read_text(encoding="utf-8"), _papers()).encode())


MAP = ("<!-- papers: written by nox -s report -- --readme -->", "<!-- /papers -->")


def with_map(readme: str, papers: list[dict[str, Any]]) -> str:
    """The README with its scoreboard and its map of papers by track."""
    start, end = MAP
    if start not in readme or end not in readme:
        raise UserError(f"README.md lacks the lines {start} and {end}, between which the map of papers is written")
    head, _, rest = readme.partition(start)
    board = f"![The scoreboard as bars](.github/scoreboard.svg)\n\n{_scoreboard_markdown(papers)}"
    return f"{head}{start}\n{board}\n{_map_markdown(papers)}{end}{rest.partition(end)[2]}"


_COLOURS = {
    "agrees": "#2c7a4b",
    "agrees at reduced scale": "#7db893",
    "direction only": "#d6a04a",
    "disagrees": "#b5403a",
    "consistent": "#5b7f95",
}


def picture(papers: list[dict[str, Any]]) -> str:
    """The scoreboard as an SVG: a bar for each kind of evidence, a stretch for each verdict."""
    counts = scoreboard(papers)
    seen = [e for e in Evidence if any(evidence == e for evidence, _ in counts)]
    widest = max((sum(counts.get((e, v), 0) for v in Verdict) for e in seen), default=1)
    parts = []
    for row, evidence in enumerate(seen):
        x, y = 110.0, 12 + 30 * row
        parts.append(f'<text x="100" y="{y + 15}" text-anchor="end">{evidence}</text>')
        for verdict in [v for v in Verdict if counts.get((evidence, v))]:
            count = counts[(evidence, verdict)]
            width = 560 * count / widest
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width - 2:.1f}" height="22" fill="{_COLOURS.get(verdict, "#9aa4ae")}"/>'
            )
            parts.append(f'<text x="{x + width / 2:.1f}" y="{y + 15}" text-anchor="middle" fill="#fff">{count}</text>')
            x += width
    y, x = 12 + 30 * len(seen) + 8, 110
    for verdict in [v for v in Verdict if any(each == v for _, each in counts)]:
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{_COLOURS.get(verdict, "#9aa4ae")}"/>')
        parts.append(f'<text x="{x + 17}" y="{y + 11}">{verdict}</text>')
        x += 40 + 7 * len(verdict)
    style = "text{font:13px system-ui,sans-serif;fill:#5c6773}text[fill]{fill:#fff;font-weight:600}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y + 24}"><style>{style}</style>{"".join(parts)}</svg>\n'


def _scoreboard_markdown(papers: list[dict[str, Any]]) -> str:
    counts = scoreboard(papers)
    verdicts = [v for v in Verdict if any(verdict == v for _, verdict in counts)]
    lines = ["| evidence | " + " | ".join(verdicts) + " |", "|---|" + "---|" * len(verdicts)]
    seen = [e for e in Evidence if any(evidence == e for evidence, _ in counts)]
    lines += [f"| {e} | " + " | ".join(str(counts.get((e, v), "")) for v in verdicts) + " |" for e in seen]
    return "\n".join(lines) + "\n"


def _map_markdown(papers: list[dict[str, Any]]) -> str:
    lines = []
    for track in dict.fromkeys(paper["track"] for paper in papers):
        lines += [f"\n**{track}**\n"]
        for paper in [each for each in papers if each["track"] == track]:
            tally = Counter(row["verdict"] for row in paper["claims"])
            state = ", ".join(f"{tally[v]} {v}" for v in Verdict if tally[v]) or "not recorded yet"
            lines.append(f"- [{paper['title']}](papers/{paper['slug']}/README.md) ({paper['year']}): {state}")
    return "\n".join(lines) + "\n"


def _papers() -> list[dict[str, Any]]:
    """What the page shows of each paper, in the order of tracks and titles."""
    found = []
    for slug in runner.papers():
        book, whole = ledger.load(slug), records.record(slug)
        preset = next((name for name in PRESETS if name in whole), None)
        entry = whole.get(preset, {}) if preset else {}
        claims = []
        for claim in book.claims:
            row = entry.get("claims", {}).get(claim.id, {"value": None, "verdict": Verdict.NOT_RUN})
            control = entry.get("controls", {}).get(claim.id)
            claims.append(
                {
                    "id": claim.id,
                    "says": claim.says,
                    "where": claim.where,
                    "evidence": str(claim.evidence),
                    "figure": records.show(claim.figure),
                    "unit": claim.unit,
                    "bar": _bar(claim.agrees),
                    "value": records.show(row["value"]),
                    "verdict": str(row["verdict"]),
                    "control": f"{control['control']}: {records.show(control['value'])}, {control['verdict']}" if control else "",
                    "how": claim.how,
                }
            )
        found.append(
            {
                "slug": slug,
                "title": book.title,
                "authors": book.authors,
                "year": book.year,
                "venue": book.venue,
                "arxiv": book.arxiv,
                "track": book.track,
                "summary": book.summary,
                "preset": preset,
                "record": entry,
                "claims": claims,
                "figures": sorted((outputs() / slug / preset).glob("*.png")) if preset else [],
            }
        )
    return sorted(found, key=lambda each: (each["track"], each["title"]))


def _bar(bar: Any) -> str:
    if isinstance(bar, dict):
        return ", ".join(f"{name} {each}" for name, each in bar.items())
    return bar or "–"


def _json(name: str) -> dict[str, Any]:
    path = outputs() / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def page(papers: list[dict[str, Any]], operations: dict[str, Any], bench: dict[str, Any]) -> str:
    """The whole page as text."""
    template = (Path(__file__).with_name("report.html")).read_text(encoding="utf-8")
    tracks = "".join(f"<option>{_e(track)}</option>" for track in dict.fromkeys(paper["track"] for paper in papers))
    verdicts = [str(v) for v in Verdict if any(row["verdict"] == v for paper in papers for row in paper["claims"])]
    chips = "".join(
        f'<button class="chip {_class(v)}" data-verdict="{_e(v)}" aria-pressed="false">{_e(v)}</button>' for v in verdicts
    )
    parts = {
        "count": f"{len(papers)} paper{'s' * (len(papers) != 1)}, {sum(len(p['claims']) for p in papers)} claims",
        "scoreboard": _scoreboard(papers),
        "tracks": tracks,
        "chips": chips,
        "contents": "".join(f'<li data-slug="{p["slug"]}"><a href="#{p["slug"]}">{_e(p["title"])}</a></li>' for p in papers),
        "papers": "".join(map(_paper, papers)),
        "operations": _operations(operations, bench),
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


def _scoreboard(papers: list[dict[str, Any]]) -> str:
    counts = scoreboard(papers)
    verdicts = [v for v in Verdict if any(verdict == v for _, verdict in counts)]
    head = "".join(f"<th scope='col'>{_e(v)}</th>" for v in verdicts)
    rows = []
    for evidence in Evidence:
        mine = [counts.get((evidence, v), 0) for v in verdicts]
        if sum(mine):
            cells = (f"<td class='{_class(v)} {'zero' * (not c)}'>{c or ''}</td>" for v, c in zip(verdicts, mine, strict=True))
            rows.append(f"<tr><th scope='row'>{evidence}</th>{''.join(cells)}</tr>")
    total = sum(counts.values()) or 1
    shares = ((v, sum(c for (_, verdict), c in counts.items() if verdict == v)) for v in verdicts)
    bar = "".join(f"<i class='{_class(v)}' style='flex:{c}' title='{_e(v)}: {c} of {total}'></i>" for v, c in shares)
    return f"<div class='bar' role='img' aria-label='shares of the verdicts'>{bar}</div><table class='score'><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _paper(paper: dict[str, Any]) -> str:
    entry = paper["record"]
    if entry:
        machine = entry["machine"]
        when = (
            f"preset {paper['preset']}, recorded {entry['date']} on {machine['cpu']}, {machine['cores']} cores, "
            f"in {entry['seconds']:.0f} s, at most {entry['peak_memory_bytes'] / 2**30:.1f} GiB; "
            f"torch {entry['versions'].get('torch')}, jax {entry['versions'].get('jax')}; commit {entry['revision']['commit'][:10]}"
        )
    else:
        when = "not recorded yet"
    rows = "".join(
        f"<tr data-verdict='{_e(c['verdict'])}'><td data-name='claim'><b>{_e(c['id'])}</b> {_e(c['says'])}<small>{_e(c['where'])}. {_e(c['how'])}</small></td>"
        f"<td data-name='evidence'>{c['evidence']}</td><td data-name='paper'>{_e(c['figure'])} <small>{_e(c['unit'])}</small></td>"
        f"<td data-name='bar'>{_e(c['bar'])}</td><td data-name='here'>{_e(c['value'])}</td>"
        f"<td data-name='verdict'><span class='tag {_class(c['verdict'])}'>{_e(c['verdict'])}</span>"
        f"{'<small>control ' + _e(c['control']) + '</small>' if c['control'] else ''}</td></tr>"
        for c in paper["claims"]
    )
    figures = "".join(
        f"<figure><img alt='{_e(p.stem.replace('_', ' '))}' src='data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}'>"
        f"<figcaption>{_e(p.stem.replace('_', ' '))}</figcaption></figure>"
        for p in paper["figures"]
    )
    arxiv = f", arXiv {paper['arxiv']}" if paper["arxiv"] else ""
    return (
        f"<article id='{paper['slug']}' data-track='{_e(paper['track'])}'><h2>{_e(paper['title'])}</h2>"
        f"<p class='meta'>{_e(paper['authors'])}. {_e(paper['venue'])}, {paper['year']}{arxiv}. <span>{_e(paper['track'])}</span></p>"
        f"<p>{_e(paper['summary'])}</p><table class='claims'><thead><tr><th>claim</th><th>evidence</th><th>paper</th><th>bar</th><th>here</th><th>verdict</th></tr></thead>"
        f"<tbody>{rows}</tbody></table><div class='figures'>{figures}</div><p class='meta'>{_e(when)}. <code>nox -s reproduce-{paper['slug'].replace('_', '-')}</code></p></article>"
    )


def _operations(operations: dict[str, Any], bench: dict[str, Any]) -> str:
    if not operations.get("agreement"):
        return "<p>Nothing is recorded of the operations yet: run <code>nox -s tests</code>, and <code>nox -s bench</code> for the times.</p>"
    text = "<h3>Agreement</h3><p>Worst relative error of values and gradients against the float64 definition, over all cases.</p>"
    rows = [
        (op, backend, dtype, f"{error:.1e}")
        for op, backends in sorted(operations["agreement"].items())
        for backend, dtypes in backends.items()
        for dtype, error in dtypes.items()
    ]
    text += _table(("operation", "backend", "dtype", "worst error"), rows)
    if compiled := operations.get("compiled"):
        text += "<h3>Triton, compiled ahead of time</h3>"
        names = ("registers", "spills", "stack", "shared", "tensor_core")
        text += _table(
            ("kernel", "target", "registers", "spills", "stack [B]", "shared [B]", "tensor-core instructions"),
            [(each["kernel"], each["target"], *(each[name] for name in names)) for each in compiled],
        )
    if rows_of_bench := bench.get("rows"):
        where = bench["machine"]
        text += f"<h3>Speed</h3><p>{_e(where['gpu'] or where['cpu'])}, {where['cores']} cores{'; ' + _e(bench['busy']) if bench.get('busy') else ''}. Ratio: times our fastest backend.</p>"
        text += _table(
            ("operation", "mode", "case", "provider", "ms", "ratio"),
            [
                (r["operation"], r["mode"], r["case"], r["provider"], f"{1e3 * r['seconds']:.2f}", f"{r['ratio']:.2f}")
                for r in rows_of_bench
            ],
        )
    return text


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td data-name='{_e(n)}'>{_e(str(c))}</td>" for n, c in zip(head, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f"<table class='plain'><thead><tr>{''.join(f'<th>{_e(n)}</th>' for n in head)}</tr></thead><tbody>{body}</tbody></table>"
    )


def _class(verdict: str) -> str:
    return "v-" + str(verdict).replace(" ", "-")


def _e(text: str) -> str:
    return html.escape(str(text), quote=True)


if __name__ == "__main__":
    raise SystemExit(main())
