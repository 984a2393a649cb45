"""Users on the paper's device, simulated: against the closed form, byte for byte, and what switching costs them."""

from __future__ import annotations

import dataclasses
from typing import Any

from common.ledger import NotRun, Value
from common.runner import Run
from papers.long_context_peak import analysis, pictures, published
from papers.long_context_peak.analysis import Session
from papers.long_context_peak.config import Config, Fault


def measure(config: Config, run: Run) -> dict[str, Value]:
    """The simulator against the closed form; bytes out against bytes in; and what switching costs."""
    try:
        from papers.long_context_peak.setting import Policy, Setting
        from papers.long_context_peak.simulator import simulate
    except ModuleNotFoundError as error:
        return dict.fromkeys(("sim", "moved", "switching"), NotRun(f"{error.name} is not installed", busy=True))
    model, machine = analysis.paper_model(), analysis.paper_machine()
    free = config.fault is Fault.free_switch
    sessions = {
        name: Session(n, config.question, published.ANSWER, config.think)
        for name, n in (("4K", published.SHORT), ("50K", published.LONG))
    }

    def setting(name: str, users: int, think: float = config.think, **options: Any) -> Setting:
        return Setting(
            model=model, machine=machine, session=sessions[name]._replace(think=think), rounds=config.rounds, users=users,
            limit=published.YI_34B.context, free_switch=free, **options,
        )  # fmt: skip

    def ideal(name: str, users: int) -> float:
        busy = analysis.session_seconds(model, machine, sessions[name], config.rounds)
        moves = analysis.session_switches(model, machine, sessions[name], config.rounds) if users > 1 else 0.0
        thought = (config.rounds - 1) * config.think if users == 1 else 0.0
        return users * (busy + moves) + thought

    sim = {
        "one user": simulate(setting("50K", 1)).seconds / ideal("50K", 1) - 1,
        "three users take turns": simulate(setting("50K", 3, think=0.0)).seconds / ideal("50K", 3) - 1,
    }
    tiers = {"host": machine.memory / 10, "storage": machine.memory * config.users}
    crowd: dict[str, dict[str, Any]] = {
        "batched": {"slots": 4},
        "overlapped": {"slots": 2, "overlap": True},
        "fifo": {"policy": Policy.fifo},
        "to disk": tiers,
        "chunked": {"slots": 4, "chunk": 512},
        "overlapped to disk": {"slots": 2, "overlap": True, **tiers},
    }
    ways = {name: simulate(_length(setting("4K", config.users, **options), 16)) for name, options in crowd.items()}
    run.keep("stored", {name: each.stored / 1e9 for name, each in ways.items()})
    few = min(
        config.users, int(analysis.users(model, machine, published.SHORT + config.rounds * (config.question + published.ANSWER)))
    )
    ends = {"50K": simulate(setting("50K", config.users)), "4K, as many as fit": simulate(setting("4K", few))}
    kept = {
        f"{n}K": {
            "one by one": simulate(_length(setting("50K", config.users), n)).sessions_per_hour,
            "batched, overlapped": simulate(_length(setting("50K", config.users, slots=8, overlap=True), n)).sessions_per_hour,
        }
        for n in (4, 8, 16, 32, 50)
    }
    run.keep("sessions_per_hour", kept)
    run.keep("busy", {name: each.busy for name, each in ends.items()})
    run.keep("waiting", {name: each.mean_waiting for name, each in ends.items()})
    run.figure("sessions", lambda: pictures.sessions(kept))
    run.figure("turns", lambda: pictures.turns(simulate(setting("50K", 3, think=0.0), keep=True).timeline))
    return {
        "sim": {name: abs(each) for name, each in sim.items()},
        "moved": {name: each.out - each.into for name, each in ways.items()}
        | {
            "GB out": min(each.out for each in ways.values()) / 1e9,
            "GB to disk": min(ways[name].stored for name in ways if "disk" in name) / 1e9,
        },
        "switching": {name: each.moving / each.seconds for name, each in ends.items()},
    }


def _length(setting: Any, thousands: int) -> Any:
    return dataclasses.replace(setting, session=setting.session._replace(document=1000 * thousands))
