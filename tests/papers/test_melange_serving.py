"""The profile's closed form in both frameworks, its event simulator, and the live server with its profiler."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import UserError, zoo
from common.models.transformer_torch import generate
from common.serving import Request, simulate
from papers.melange import published
from papers.melange.batched import Batched
from papers.melange.checks import batch_of
from papers.melange.engine import full_rate, simulate_paged
from papers.melange.profile import Chip, Constants, Engine, chip, gain, serve, table
from papers.melange.profiler import Endpoint, max_rate, send, toy_server

pytestmark = pytest.mark.xdist_group("melange")

LOAD = serve(published.LLAMA2_7B)
ANY = Constants(0.7, 0.5, 0.005, 5e-5, 0.75)


def engine(name: str, **changes) -> Engine:
    return Engine(chip(name, LOAD), ANY._replace(**changes), LOAD)


def test_bisection_finds_what_a_search_through_all_batches_finds() -> None:
    for name in published.PRICES:
        one = engine(name)
        for prompt, output, objective in (
            (25, 25, 0.12),
            (250, 500, 0.04),
            (4000, 100, 0.12),
            (32_000, 2000, 1.0),
            (100, 2, 0.04),
        ):
            batch = batch_of(one, prompt, output, objective)
            got = table([one.chip], ANY, LOAD, [prompt], [output], [objective]).item()
            if not batch:
                assert got == 0
                continue
            step = one.decode(batch, batch * (prompt + output / 2))
            assert got == pytest.approx(batch / ((output - 1) * step + batch * one.prefill(prompt)))


@given(st.integers(0, 2**31))
def test_frameworks_agree_and_the_profile_is_monotone(seed) -> None:
    rng = np.random.default_rng(seed)
    constants = Constants(*(float(rng.uniform(*ends)) for ends in ((0.4, 1), (0.2, 0.9), (0, 0.03), (0, 2e-4), (0.5, 1))))
    chips = [
        Chip(float(rng.uniform(5e13, 1e15)), float(rng.uniform(3e11, 3e12)), float(rng.uniform(5e9, 7e10))) for _ in range(2)
    ]
    sizes = [25, 250, 2000], [25, 250, 2000], [0.02, 0.04, 0.12, np.inf]
    want = table(chips, constants, LOAD, *sizes)
    got = table(chips, constants, LOAD, *sizes, framework="jax")
    assert want.dtype == got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert (np.diff(want, axis=3) >= -1e-12).all()  # a looser objective
    assert (np.diff(want, axis=1) <= 1e-12).all()  # a longer prompt
    assert (table([each._replace(bandwidth=2 * each.bandwidth) for each in chips], constants, LOAD, *sizes) >= want - 1e-12).all()


def test_single_precision_is_told_apart() -> None:
    """What the control of the comparison does: the tables differ by about 1e-7 in float32."""
    from papers.melange.profile_jax import max_rate as in_jax

    one = engine("A100")
    arguments = (one.chip, ANY, LOAD, np.array([25.0]), np.array([25.0]), np.array([0.12]))
    with jax.enable_x64(False):
        assert in_jax(*arguments, most=published.BATCH).dtype == np.float32


def test_gain_counts_alike_for_both() -> None:
    assert gain(2.0, 1.0, (1.0, 1.0)) == 1 and gain(1.0, 2.0, (1.0, 1.0)) == -1 and gain(1.0, 1.0, (2.0, 1.0)) == -1


requests = st.lists(
    st.builds(Request, st.integers(0, 300).map(lambda x: x / 64), st.integers(1, 400), st.integers(1, 60)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25)
@given(requests, st.integers(1, 6))
def test_events_equal_the_step_by_step_simulation_when_memory_is_ample(wanted, slots) -> None:
    pytest.importorskip("simpy")
    one = engine("A100")
    served = simulate(wanted, prefill=one.prefill, decode=one.decode, slots=slots)
    events = simulate_paged(wanted, one, slots=slots)
    np.testing.assert_allclose(events.finished, served.finished, rtol=1e-12)
    np.testing.assert_allclose(events.first_token, served.first_token, rtol=1e-12)
    assert events.preempted == 0


@settings(max_examples=40)
@given(requests)
def test_pages_never_run_out_and_every_request_ends(wanted) -> None:
    pytest.importorskip("simpy")
    room = LOAD.cache * (16 + max(each.prompt + each.output for each in wanted))
    one = Engine(chip("L4", LOAD)._replace(room=room), ANY, LOAD)
    events = simulate_paged(wanted, one)
    assert (events.finished >= events.first_token).all() and (events.first_token > [each.arrival for each in wanted]).all()
    with pytest.raises(ValueError, match=r"wants \d+ tokens, the memory holds"):
        simulate_paged([Request(0.0, 5000, 5000)], one)


def test_closed_form_equals_events_where_memory_is_ample() -> None:
    pytest.importorskip("simpy")
    one = engine("H100", occupancy=1.0)
    batch = batch_of(one, 250, 250, 0.04)
    assert batch * 500 <= one.tokens
    rate, between, held = full_rate(one, 250, 250, batch)
    assert rate == pytest.approx(table([one.chip], one.constants, LOAD, [250], [250], [0.04]).item(), rel=0.02)
    assert between == pytest.approx(0.04, rel=0.05) and held == pytest.approx(batch, rel=0.05)


@pytest.fixture(scope="module")
def model():
    return zoo.load("byte_lm_draft.v1").torch()


def test_batched_decoding_equals_one_sequence_after_another(model) -> None:
    """Sequences join and leave at different steps, and a slot is used again."""
    texts = {0: b"In the beginning", 2: b"a", 1: b"The LORD is my shepherd; I shall not want", 3: b"And"}
    want = {slot: generate(model, torch.tensor([list(text)]), 12)[0].tolist() for slot, text in texts.items()}
    batched, made = Batched(model, 4), {}
    for slot, text in texts.items():
        made[slot] = [batched.prefill(slot, torch.tensor(list(text)))]
        for _ in range(2):  # those that are there go on meanwhile
            for each, token in zip(made, batched.decode(list(made), [tokens[-1] for tokens in made.values()]), strict=True):
                made[each].append(token)
    for slot, tokens in made.items():
        assert tokens == want[slot][: len(tokens)]
    again = [batched.prefill(2, torch.tensor(list(texts[1])))]
    again += [batched.decode([2], again)[0]]
    assert again == want[1][:2]


def test_server_answers_as_the_model_does(model) -> None:
    texts = ["In the beginning", "And God said", "a" * 40, "Blessed", "Now", "x"]
    with toy_server(slots=3, step=0.001) as endpoint:
        with ThreadPoolExecutor(len(texts)) as pool:
            got = list(pool.map(lambda text: endpoint.complete(text, 3 + len(text) % 7), texts))
        for text, (answer, times) in zip(texts, got, strict=True):
            count = 3 + len(text) % 7
            want = generate(model, torch.tensor([list(text.encode())]), count)[0].tolist()
            assert (answer, len(times)) == ("".join(map(chr, want)), count)
        with pytest.raises(UserError, match=r"400.*at most 512 together"):
            endpoint.complete("a" * 510, 3)
        seen = send(endpoint, 8, 4, np.inf, 6, np.random.default_rng(0))
        assert seen.rate > 0 and seen.between > 0
    with pytest.raises(UserError, match="does not answer"):
        Endpoint(endpoint.url, timeout=5).complete("a", 1)


@settings(max_examples=30)
@given(st.floats(0.02, 60))
def test_search_for_the_highest_rate(limit) -> None:
    tried = []

    def between(rate: float) -> float:
        tried.append(rate)
        return rate

    found = max_rate(between, limit, 0.1, 100.0, steps=12)
    assert found == 0 if limit < 0.1 else limit / 1.002 < found <= limit
    assert len(tried) <= 13


def test_search_refuses_no_interval() -> None:
    with pytest.raises(ValueError, match="wanted 0 < low < high"):
        max_rate(lambda rate: 0.0, 1.0, 2.0, 1.0)
