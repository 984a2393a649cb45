"""The figures of the run and of the notebook."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from common.events import Timeline
from common.figures import COLOURS, lines, style
from papers.long_context_peak import analysis, published
from papers.long_context_peak.analysis import Lever, Session

KINDS = {"prefill": COLOURS[0], "decode": COLOURS[2], "mixed": COLOURS[6], "out": COLOURS[5], "in": COLOURS[5]}


def turns(timeline: Timeline) -> Any:
    """Who is served when; moves of caches in red, dark on their way out and light on their way in."""
    with style() as plt:
        figure, ax = plt.subplots(figsize=(9, 2.4))
        shown = sorted(name for name in timeline.resources if name.startswith("user"))
        for row, user in enumerate(shown):
            for kind, colour in KINDS.items():
                bars = [(s.start, s.end - s.start) for s in timeline.spans if s.resource == user and s.name == kind]
                if bars:
                    ax.broken_barh(
                        bars, (row - 0.4, 0.8), color=colour, alpha=0.5 if kind == "in" else 1, label=kind if row == 0 else None
                    )
        ax.set_yticks(range(len(shown)), shown)
        ax.invert_yaxis()
        ax.set(xlabel="time [s]", title="Users who share one device; in red their caches move")
        ax.legend(ncols=5, loc="upper left", bbox_to_anchor=(0, -0.25))
        return figure


def sessions(kept: Mapping[str, Mapping[str, float]]) -> Any:
    contexts = [float(name.removesuffix("K")) for name in kept]
    series = {way: (contexts, [row[way] for row in kept.values()]) for way in next(iter(kept.values()))}
    return lines(
        series,
        x="document [thousand tokens]",
        y="sessions an hour",
        title="The longer the documents, the fewer fit in a batch",
        log="y",
    )


def here(points: Sequence[Mapping[str, Any]], efficiency: Mapping[str, float], fitted_at: int) -> Any:
    series, dashed = {}, []
    for kind in efficiency:
        mine = [p for p in points if p["kind"] == kind]
        n = [p["tokens"] for p in mine]
        series[f"{kind}, measured"] = (n, [1e3 * p["seconds"] for p in mine])
        series[f"{kind}, theory"] = (n, [1e3 * p["ideal"] / efficiency[kind] for p in mine])
        dashed.append(f"{kind}, theory")
    return lines(
        series,
        x="tokens",
        y="ms",
        title=f"This machine and the theory, fitted at {fitted_at} tokens alone",
        dashed=dashed,
        log="xy",
    )


def quality(rows: Mapping[str, Mapping[str, float]]) -> Any:
    with style() as plt:
        figure, ax = plt.subplots(figsize=(8, 3.6))
        colours = dict(zip(("layers", "heads", "tokens", "hidden"), COLOURS, strict=False))
        plans = {name: row for name, row in rows.items() if row["stored"] < 1}
        for number, (name, row) in enumerate(plans.items()):
            ax.barh(number, row["added"], color=colours.get(name.partition(":")[0], "#777777"))
            label = f"{name}: {row['added']:+.4f} bits, {1 / row['stored']:.1f} times smaller"
            ax.annotate(label, (max(row["added"], 0), number), (4, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_xscale("symlog", linthresh=1e-2)
        ax.set(xlabel="bits per byte added", yticks=[], xlim=(-2e-3, 300), title="What is lost when the cache shrinks")
        ax.invert_yaxis()
        return figure


def ideas() -> Any:
    """Where published compressions are on the four axes."""
    with style() as plt:
        figure, ax = plt.subplots(figsize=(8, 3.6))
        for number, (name, idea) in enumerate(published.IDEAS.items()):
            row = Lever._fields.index(idea.axis)
            ax.barh(number, 1 / idea.factor, color=COLOURS[row], label=idea.axis)
            ax.annotate(name, (1 / idea.factor, number), (4, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_xscale("log", base=2)
        ax.set(
            xlabel="times smaller",
            yticks=[],
            xlim=(1, 2000),
            title="Each idea shrinks one axis; 250 times make a million tokens cheap",
        )
        ax.axvline(published.MILLION / published.SHORT, color="#777777", linestyle=":")
        ax.invert_yaxis()
        handles, labels = ax.get_legend_handles_labels()
        each_once = dict(zip(labels, handles, strict=True))
        ax.legend(each_once.values(), each_once.keys(), loc="lower right")
        return figure


def bars(tokens: int | float, devices: int, kv_heads: int, bits: int | float, users: int) -> Any:
    """The four quantities of the running example at a setting, beside those at 4K on one device; a switch costs nothing while all
    users fit."""
    changed = analysis.model(dataclasses.replace(published.YI_34B, kv_heads=kv_heads))
    model = analysis.paper_model()._replace(cache_numbers=changed.cache_numbers)
    machine, lever = analysis.parallel(analysis.paper_machine(), devices), Lever(hidden=bits / 16)
    now = quantities(model, machine, tokens, lever, users)
    base = quantities(analysis.paper_model(), analysis.paper_machine(), published.SHORT, Lever(), users)
    session = Session(float(tokens), 50.0, float(published.ANSWER), 20.0)
    rate = analysis.sessions_per_hour(model, machine, session, 5, float(users), lever)
    with style() as plt:
        figure, axes = plt.subplots(1, 4, figsize=(9, 2.8))
        for ax, (name, value), colour in zip(axes, now.items(), COLOURS, strict=False):
            ax.bar(["4K", "here"], [base[name], max(value, 0)], color=["#bbbbbb", colour])
            ax.set_title(f"{name}: {value:.3g}", fontsize=10)
        figure.suptitle(
            f"{users} users, five questions each, one served at a time: {rate:.3g} sessions an hour at most", fontsize=10
        )
        figure.tight_layout()
        return figure


def quantities(
    model: analysis.Model, machine: analysis.Machine, tokens: int | float, lever: Lever, users: int
) -> dict[str, float]:
    room = analysis.users(model, machine, tokens, lever)
    return {
        "users that fit": room,
        "prefill [s]": analysis.prefill_seconds(model, machine, tokens, 0.0, lever),
        "answer [s]": analysis.decode_seconds(model, machine, tokens, published.ANSWER, lever),
        "switch [s]": analysis.switch_seconds(model, machine, tokens, tokens, lever) if room < users else 0.0,
    }
