"""The formulas: hand-worked figures of the running example, three frameworks, real counts, levers, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.hardware import device
from papers.long_context_peak import analysis, levers, published, sweep
from papers.long_context_peak.analysis import Convention, Lever, Machine, Session
from papers.long_context_peak.config import PRESETS, Config
from papers.long_context_peak.setting import Setting, check_lever, check_weights

pytestmark = pytest.mark.xdist_group("long_context_peak")

MODEL, MACHINE = analysis.paper_model(), analysis.paper_machine()


def test_cache_of_yi_by_hand() -> None:
    """60 layers, 8 heads of 128, keys and values, two bytes each: 245,760 bytes a token."""
    assert analysis.cache_bytes(MODEL, 1) == 2 * 60 * 8 * 128 * 2 == 245_760
    for tokens, gigabytes, gibibytes in (
        (50_000, 12.288, 11.444),
        (100_000, 24.576, 22.888),
        (4_000, 0.98304, 0.9155),
        (1_000_000, 245.76, 228.88),
    ):
        size = analysis.cache_bytes(MODEL, tokens)
        assert size == pytest.approx(gigabytes * 1e9) and size / 2**30 == pytest.approx(gibibytes, abs=5e-3)


def test_users_by_hand() -> None:
    """80 GiB is 85.899e9 bytes, 17.899e9 of which are free."""
    decimal = MACHINE._replace(memory=80e9)
    assert [analysis.users(MODEL, MACHINE, n) for n in (50_000, 4_000, 4_096)] == [1, 18, 17]
    assert [analysis.users(MODEL, decimal, n) for n in (50_000, 4_000)] == [0, 12]
    assert [analysis.users(MODEL, analysis.parallel(MACHINE, g), 50_000) for g in (2, 4, 8)] == [8, 22, 50]
    assert analysis.users(MODEL, MACHINE._replace(memory=40e9), 50_000) < 0


def test_times_by_hand() -> None:
    assert analysis.balance(MACHINE) == 156
    strict = 50_000 * 68e9 + 4 * 60 * 56 * 128 * 50_000 * 50_001 / 2
    assert analysis.prefill_seconds(MODEL, MACHINE, 50_000) == pytest.approx(strict / 312e12) == pytest.approx(17.79, abs=0.01)
    full = 50_000 * 68e9 + 4 * 60 * 56 * 128 * 50_000**2
    assert analysis.prefill_operations(MODEL, 50_000, convention=Convention.full) == full
    short = 50_000 * (68e9 + 2 * 60 * 50_000 * 4096)
    assert analysis.prefill_operations(MODEL, 50_000, convention=Convention.simplified) == short
    assert analysis.decode_seconds(MODEL, MACHINE, 50_000, 250) == pytest.approx(250 * 34e-3 + 250 * 50_125.5 * 245_760 / 2e12)
    assert analysis.switch_seconds(MODEL, MACHINE, 50_000, 50_000) == pytest.approx(2 * 12.288 / 20)


def test_a_short_question_is_bound_by_memory() -> None:
    """Below the balance one reading of the weights takes longer than the arithmetic."""
    assert analysis.prefill_seconds(MODEL, MACHINE, 10, 50_000) == pytest.approx((68e9 + 50_010 * 245_760) / 2e12)
    # A weight of two bytes is one multiply-add, two operations, for each token: the balance in tokens is that in FLOP/byte.
    below, above = (analysis.prefill_operations(MODEL, n) / MACHINE.compute for n in (155, 158))
    assert below < 68e9 / 2e12 < above


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 5000))
def test_prefill_in_pieces_and_decoding_count_the_same_pairs(first: int, second: int, past: int) -> None:
    whole = analysis.prefill_operations(MODEL, first + second, past)
    pieces = analysis.prefill_operations(MODEL, first, past) + analysis.prefill_operations(MODEL, second, past + first)
    decoded = analysis.prefill_operations(MODEL, first, past) + analysis.decode_operations(MODEL, past + first, second)
    assert pieces == pytest.approx(whole, rel=1e-12) and decoded == pytest.approx(whole, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1000, 200_000))
def test_levers_multiply_and_all_but_prefill_feel_them(one: float, other: float, tokens: int) -> None:
    both, each = Lever(heads=one, hidden=other), analysis.cache_bytes(MODEL, tokens, Lever(heads=one)) * other
    assert analysis.cache_bytes(MODEL, tokens, both) == pytest.approx(each, rel=1e-12)
    assert analysis.users(MODEL, MACHINE, tokens, both) >= analysis.users(MODEL, MACHINE, tokens)
    assert analysis.token_seconds(MODEL, MACHINE, tokens, both) <= analysis.token_seconds(MODEL, MACHINE, tokens)
    assert analysis.prefill_seconds(MODEL, MACHINE, tokens, 0.0, both) == analysis.prefill_seconds(MODEL, MACHINE, tokens)


def test_one_text_in_three_frameworks_and_against_loops() -> None:
    at = sweep.points(20, 3)
    want = sweep.by_hand(at)
    assert sweep.worst(sweep.by_torch(at), want) <= 1e-12
    assert sweep.worst(sweep.by_jax(at), want) <= 1e-12
    assert sweep.worst(sweep.by_jax(at, double=False), want) > 1e-9, "32 bits are told apart"


def test_plain_numbers_vmap_and_gradients() -> None:
    """Numbers give numbers, torch.func maps, and the slope of an answer's time over the context is the cache's."""
    n = torch.tensor([4e3, 5e4], dtype=torch.float64)
    mapped = torch.func.vmap(lambda tokens: analysis.decode_seconds(MODEL, MACHINE, tokens, 250))(n)
    assert mapped.tolist() == pytest.approx(
        [analysis.decode_seconds(MODEL, MACHINE, each, 250) for each in n.tolist()], rel=1e-12
    )
    leaf = n.clone().requires_grad_()
    analysis.decode_seconds(MODEL, MACHINE, leaf, 250).sum().backward()
    want = 250 * 245_760 / 2e12
    with jax.enable_x64(True):
        slope = jax.grad(lambda tokens: analysis.decode_seconds(MODEL, MACHINE, tokens, 250))(jnp.asarray(5e4))
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx([want, want], rel=1e-9)
    assert float(slope) == pytest.approx(want, rel=1e-9)


def test_sessions_per_hour_by_hand() -> None:
    """Nothing takes time but thinking, or, where the link is slow, switching."""
    model = MODEL._replace(parameters=0.5, multiplied=0.0, pair_operations=0.0, cache_numbers=1.0, element=1.0)
    machine = Machine(1e30, 1e30, 1e9, 1e30)
    session = Session(100.0, 1.0, 1.0, 10.0)
    fast = analysis.sessions_per_hour(model, machine, session, 3, 4)
    assert fast == pytest.approx(3600 * 4 / 20), "nobody waits: four users, twenty seconds of thought each"
    slow = analysis.sessions_per_hour(model, machine._replace(memory=150.0, link=1.0), session._replace(think=0.0), 3, 4)
    assert slow == pytest.approx(3600 / (2 * (102 + 104))), "one fits: out and in after the first and second round"
    assert analysis.sessions_per_hour(model, machine._replace(memory=50.0), session, 3, 4) == 0


def test_windowed_and_experts() -> None:
    assert analysis.windowed(4000, 0.25, 1000) == 0.25 + 0.75 / 4
    assert analysis.windowed(500, 0.25, 1000) == 1
    moe = analysis.model(dataclasses.replace(published.YI_34B, experts=8, active=2))
    assert analysis.weights_read(moe, 1.0) < 0.4 * analysis.weight_bytes(moe)
    assert analysis.weights_read(moe, 64.0) == pytest.approx(analysis.weight_bytes(moe), rel=1e-6)
    assert analysis.cache_bytes(moe, 1) == 245_760, "experts do not touch the cache"


def test_levers_table() -> None:
    rows = levers.table()
    one = rows["A100, the paper's"]
    assert rows["one cache for all heads (MQA)"]["switch"] == pytest.approx(one["switch"] / 8)
    assert rows["4 x A100"]["prefill"] == pytest.approx(one["prefill"] / 4)
    assert rows["H100"]["answer"] < one["answer"] and rows["MI300X"]["users"] > one["users"]
    sheet = analysis.machine(device("a100_80_sxm"))
    assert sheet.compute == MACHINE.compute and sheet.memory == MACHINE.memory


def test_combinations_reach_the_target_and_none_is_spare() -> None:
    found = levers.combinations(250)
    assert len(found) >= 3 and all(times >= 250 * (1 - 1e-12) for _, times in found)
    for names, times in found:
        product = math.prod(published.IDEAS[name].factor for name in names)
        assert product * times == pytest.approx(1)
        assert len({published.IDEAS[name].axis for name in names}) == len(names)
        assert all(times * published.IDEAS[name].factor < 250 for name in names)
    assert levers.combinations(1e9) == []


def _setting(**change: object) -> Setting:
    given_ = {"model": MODEL, "machine": MACHINE, "session": Session(4000, 50, 250, 1.0), "rounds": 2, "users": 3, **change}
    return Setting(**given_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"machine": MACHINE._replace(memory=40e9)}, "they need at least 2 such devices"),
        ({"session": Session(80_000, 50, 250)}, "take more devices or compress the cache"),
        ({"limit": 4000}, "the model's context is 4000"),
        ({"lever": Lever(heads=0.0)}, "the lever on heads is 0.0"),
        ({"lever": Lever(tokens=-0.5)}, "the lever on tokens is -0.5"),
        ({"rounds": 0}, "rounds is 0"),
        ({"users": 0}, "users is 0"),
        ({"users": 30, "host": 1e9}, "add memory or admit fewer users"),
        ({"session": Session(4000, 0, 250)}, "question is 0"),
        ({"session": Session(4000, 50, 250, math.nan)}, "think is nan"),
        ({"shared": 4000}, "shared is 4000"),
        ({"arrivals": (3.0, 1.0, 2.0)}, "one each, in order"),
        ({"slots": 0}, "slots is 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _setting(**change)


def test_number_of_devices_for_the_weights() -> None:
    with pytest.raises(ValueError, match="at least 4 such devices"):
        check_weights(MODEL, MACHINE._replace(memory=68e9 / 3))
    check_weights(MODEL, analysis.parallel(MACHINE._replace(memory=68e9 / 3), 4))
    check_lever(Lever(2.0, 1.0, 1.0, 1.0))


@pytest.mark.parametrize("change", [{"rounds": 0}, {"users": 1}, {"fitted_at": 300}, {"lengths": [1024, 2048]}, {"prompt": 20}])
def test_impossible_options_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        Config(**change)  # type: ignore[arg-type]


def test_presets_grow() -> None:
    assert PRESETS["smoke"].users < PRESETS["laptop"].users < PRESETS["paper"].users
    assert np.all(np.diff(PRESETS["laptop"].lengths) > 0)
