"""The simulator: against closed forms, queueing theory and a simulator that steps through time; and what its options do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.long_context_peak import analysis, sweep
from papers.long_context_peak.analysis import Lever, Machine, Session
from papers.long_context_peak.setting import Policy, Setting

simpy = pytest.importorskip("simpy")
from papers.long_context_peak.simulator import simulate  # noqa: E402

pytestmark = pytest.mark.xdist_group("long_context_peak")

MODEL, MACHINE = analysis.paper_model(), analysis.paper_machine()
# Whole seconds for everything: weights of 1000 bytes, a byte for each token, a byte in a second, no arithmetic.
TICKS = MODEL._replace(parameters=1000.0, multiplied=0.0, pair_operations=0.0, cache_numbers=1.0, element=1.0)


def setting(**change: object) -> Setting:
    whole = {"model": MODEL, "machine": MACHINE, "session": Session(50_000, 50, 250, 0.0), "rounds": 5, "users": 1, **change}
    return Setting(**whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [100, 4_000, 50_000])
@pytest.mark.parametrize("lever", [Lever(), Lever(hidden=0.25)])
def test_one_user_takes_the_closed_forms_time(tokens: int, lever: Lever) -> None:
    alone = setting(session=Session(tokens, 50, 250, 7.0), lever=lever)
    want = analysis.session_seconds(MODEL, MACHINE, alone.session, 5, lever) + 4 * 7.0
    found = simulate(alone)
    assert found.seconds == pytest.approx(want, rel=1e-9) and found.out == 0 and found.mean_waiting == 0


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("policy", list(Policy))
def test_users_who_take_turns_in_a_memory_for_one(count: int, policy: Policy) -> None:
    crowd = setting(users=count, policy=policy)
    busy = analysis.session_seconds(MODEL, MACHINE, crowd.session, 5)
    moves = analysis.session_switches(MODEL, MACHINE, crowd.session, 5)
    found = simulate(crowd)
    assert found.seconds == pytest.approx(count * (busy + moves), rel=1e-9)
    assert found.sessions_per_hour == pytest.approx(
        analysis.sessions_per_hour(MODEL, MACHINE, crowd.session, 5, float(count)), rel=1e-9
    )
    assert found.moving == pytest.approx(count * moves, rel=1e-9)


def stepping(users: int, rounds: int, document: int, question: int, answer: int, think: int, room: int) -> tuple[list[int], int]:
    """An independent simulator that looks at every second: finishing times, and bytes moved out."""
    asks: dict[int, int] = dict.fromkeys(range(users), 0)
    done, size, on_device, used = [0] * users, [0] * users, [False] * users, [0] * users
    finished, queue, job, out, now = [-1] * users, [], [], 0, 0
    while min(finished) < 0:
        for user in [user for user, at in asks.items() if at == now]:
            queue.append(user)
            del asks[user]
        if not job and queue:
            user = queue.pop(0)
            new = question + (document if done[user] == 0 else 0)
            need = new + answer + (0 if on_device[user] else size[user])
            free = room - sum(s for s, here in zip(size, on_device, strict=True) if here)
            for victim in sorted((u for u in range(users) if on_device[u] and u != user), key=lambda u: used[u]):
                if free >= need:
                    break
                free, out = free + size[victim], out + size[victim]
                on_device[victim] = False
                job += ["out"] * size[victim]
            job += ["in"] * (0 if on_device[user] else size[user])
            job += ["prefill"] * (1000 + size[user] + new)
            job += ["decode"] * sum(1000 + size[user] + new + i for i in range(1, answer + 1))
            on_device[user], size[user] = True, size[user] + new + answer
            serving = user
        now += 1
        if job:
            job.pop()
            if not job:
                done[serving] += 1
                used[serving] = now
                if done[serving] == rounds:
                    finished[serving], size[serving], on_device[serving] = now, 0, False
                else:
                    asks[serving] = now + think
    return finished, out


@pytest.mark.parametrize("room", [600, 900, 1300, 3000])
@pytest.mark.parametrize("think", [0, 1717, 20_011])
def test_three_users_against_steps_of_a_second(room: int, think: int) -> None:
    shape = {"document": 400, "question": 7, "answer": 5}
    want, out = stepping(3, 3, **shape, think=think, room=room)
    machine = Machine(1e30, 1.0, 1000.0 + room, 1.0)
    found = simulate(setting(model=TICKS, machine=machine, session=Session(*shape.values(), think), rounds=3, users=3))
    assert found.finished == pytest.approx(want, rel=1e-12)
    assert found.out == out == found.into
    assert (out > 0) == (room < 1000)


def waits(gaps: np.ndarray, service: float) -> np.ndarray:
    """Of a queue with one server (Lindley): max(0, the last wait + service - gap), in one piece."""
    walk = np.cumsum(np.r_[0.0, service - gaps[1:]])
    return walk - np.minimum.accumulate(walk)


def test_waiting_is_that_of_a_queue_with_fixed_service() -> None:
    """M/D/1, one turn for each user, memory for all: rho s / (2 (1 - rho)), which the same recursion has in the long run."""
    session, load = Session(4000, 50, 10), 0.6
    service = analysis.session_seconds(MODEL, MACHINE, session, 1)
    gaps = np.random.default_rng(5).exponential(service / load, 400_000)
    assert waits(gaps, service).mean() == pytest.approx(load * service / (2 * (1 - load)), rel=0.02)
    users = 2_000
    queue = setting(
        machine=MACHINE._replace(memory=1e18), session=session, rounds=1, users=users,
        arrivals=tuple(np.cumsum(gaps[:users]).tolist()),
    )  # fmt: skip
    found = simulate(queue)
    np.testing.assert_allclose(found.waiting, waits(gaps[:users], service), atol=1e-8)
    assert found.busy["memory"] < 1


OPTIONS = st.fixed_dictionaries(
    {
        "slots": st.integers(1, 5),
        "chunk": st.sampled_from([0, 500]),
        "overlap": st.booleans(),
        "policy": st.sampled_from(list(Policy)),
        "users": st.integers(1, 9),
        "rounds": st.integers(1, 4),
        "shared": st.sampled_from([0, 3000]),
        "host": st.sampled_from([float("inf"), 9e9, 0.0]),
    }
)


@settings(max_examples=40, deadline=None)
@given(OPTIONS, st.sampled_from([0.0, 3.0]), st.integers(0, 100))
def test_nothing_is_lost_whatever_the_options(options: dict[str, object], think: float, seed: int) -> None:
    """All turns end; what left comes back; device and link do one thing at a time; each user is served in order."""
    users = int(options["users"])  # type: ignore[call-overload]
    arrivals = tuple(np.sort(np.random.default_rng(seed).uniform(0, 30, users)).tolist())
    crowd = setting(session=Session(20_000, 60, 20, think), arrivals=arrivals, storage=1e12, **options)
    found = simulate(crowd, keep=True)
    assert len(found.waiting) == users * crowd.rounds and min(found.waiting) >= 0
    assert found.out == found.into and found.stored <= found.out
    assert not found.timeline.overlaps("link") and not found.timeline.overlaps("device")
    assert all(not found.timeline.overlaps(f"user {user + 1}") for user in range(users))
    assert max(found.busy.values()) <= 1 + 1e-9
    if not crowd.overlap:
        assert found.timeline.busy("link", "device") == 0
    assert 0 < found.held <= crowd.room * (1 + 1e-12)


def test_overlap_hides_switches_where_two_fit() -> None:
    crowd = setting(session=Session(20_000, 50, 50, 0.0), users=6)
    serial, hidden = simulate(crowd), simulate(dataclasses.replace(crowd, overlap=True))
    assert hidden.out == hidden.into > 0
    assert serial.seconds - hidden.seconds > 0.5 * serial.moving


def test_batched_decoding_reads_the_weights_once() -> None:
    crowd = setting(session=Session(4_000, 50, 250, 0.0), users=8, rounds=1)
    one, eight = simulate(crowd), simulate(dataclasses.replace(crowd, slots=8))
    prefill = 8 * analysis.prefill_seconds(MODEL, MACHINE, 4_050)
    steps = sum((68e9 + 8 * analysis.cache_bytes(MODEL, 4_050 + i)) / 2e12 for i in range(1, 251))
    assert eight.seconds == pytest.approx(prefill + steps, rel=1e-9)
    assert one.seconds > 3 * eight.seconds


def test_chunks_let_others_go_on_and_a_shared_prefix_is_free() -> None:
    crowd = setting(session=Session(20_000, 50, 100, 0.0), users=4, rounds=1, arrivals=(0.0, 8.0, 8.1, 8.2), slots=4)
    small = dataclasses.replace(crowd, lever=Lever(hidden=0.25))
    chunked = simulate(dataclasses.replace(small, chunk=512))
    assert chunked.finished[0] < simulate(small).finished[0], "the first user's answer is not held up by later prompts"
    shared = simulate(dataclasses.replace(small, shared=19_000))
    assert shared.seconds < simulate(small).seconds
    assert dataclasses.replace(small, shared=19_000).largest < 0.1 * small.largest


def test_a_disk_behind_a_small_host_is_slower() -> None:
    crowd = setting(session=Session(20_000, 50, 50, 0.0), users=8)
    ram = simulate(crowd)
    disk = simulate(dataclasses.replace(crowd, host=11e9, storage=1e12, storage_rate=2e9))
    assert ram.stored == 0 < disk.stored < disk.out == disk.into
    assert disk.moving == pytest.approx(ram.moving + disk.stored * 2 * (1 / 2e9 - 1 / 20e9), rel=1e-9)


@pytest.mark.parametrize(("policy", "first"), [(Policy.lru, "user 2"), (Policy.fifo, "user 1")])
def test_who_leaves_first(policy: Policy, first: str) -> None:
    """Three fit. When the fourth comes, user 1 came first of all but has just been served again; user 2 was not."""
    crowd = setting(session=Session(20_000, 50, 50, 1.0), users=4, arrivals=(0.0, 0.0, 0.0, 9.0), policy=policy)
    moves = [s for s in simulate(crowd, keep=True).timeline.spans if s.resource.startswith("user") and s.name == "out"]
    assert moves[0].resource == first


def test_closed_form_bounds_the_simulator() -> None:
    """On random designs, one user served at a time: never above by more than the ends explain, and near where nobody thinks."""
    for each in sweep.settings(sweep.points(60, 11), 12):
        bound = analysis.sessions_per_hour(each.model, each.machine, each.session, each.rounds, float(each.users), each.lever)
        rate = simulate(each).sessions_per_hour
        assert 0.6 * bound < rate < 1.1 * bound
