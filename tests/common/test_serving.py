"""Continuous batching: by hand, against SimPy, against the closed form, and what it must conserve."""

from __future__ import annotations

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from common.serving import Request, saturated, simulate


# Times are multiples of 1/1024 s, so that no clock rounds.
def prefill(tokens: int) -> float:
    return tokens / 64


def decode(batch: int, context: int) -> float:
    return 1.0 + context / 1024


def by_events(requests: list[Request], slots: int) -> tuple[list[float], list[float]]:
    """One engine as SimPy processes: arrivals that wake it, and each request its own process that counts its tokens."""
    env, first, last = simpy.Environment(), [0.0] * len(requests), [0.0] * len(requests)
    waiting, running, woken = [], {}, [env.event()]

    def arrive(index):
        yield env.timeout(requests[index].arrival)
        waiting.append(index)
        if not woken[0].triggered:
            woken[0].succeed()

    def engine():
        while True:
            yield env.timeout(0)  # who arrives at this moment is there before the step
            fresh = waiting[: slots - len(running)]
            del waiting[: len(fresh)]
            if fresh:
                yield env.timeout(prefill(sum(requests[i].prompt for i in fresh)))
                running.update(dict.fromkeys(fresh, 1))
                for i in fresh:
                    first[i] = env.now
            elif running:
                yield env.timeout(decode(len(running), sum(requests[i].prompt + count for i, count in running.items())))
                for i in running:
                    running[i] += 1
            else:
                woken[0] = env.event()
                yield woken[0]
            for i in [i for i, count in running.items() if count == requests[i].output]:
                last[i] = env.now
                del running[i]

    for index in range(len(requests)):
        env.process(arrive(index))
    env.process(engine())
    env.run()
    return first, last


def test_one_request_by_hand() -> None:
    served = simulate([Request(2.0, 10, 3)], prefill=prefill, decode=decode)
    start, steps = 10 / 64, 2 + 23 / 1024
    assert (served.first_token[0], served.finished[0], served.busy) == (2.0 + start, 2.0 + start + steps, start + steps)
    assert served.tokens_per_second == pytest.approx(3 / (start + steps))
    assert served.time_per_token[0] == steps / 2
    assert served.steps == 2


requests = st.lists(
    st.builds(Request, st.integers(0, 20 * 64).map(lambda x: x / 64), st.integers(1, 50), st.integers(1, 8)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(requests, st.integers(1, 5))
def test_equals_a_simulation_by_events(requests: list[Request], slots: int) -> None:
    served = simulate(requests, prefill=prefill, decode=decode, slots=slots)
    first, last = by_events(requests, slots)
    np.testing.assert_array_equal(served.first_token, first)
    np.testing.assert_array_equal(served.finished, last)
    assert (served.finished >= served.first_token).all()
    assert (served.first_token > served.arrival).all()


@settings(deadline=None, max_examples=30)
@given(requests)
def test_caches_never_hold_more_than_the_memory(requests: list[Request]) -> None:
    largest, seen = max(each.prompt + each.output for each in requests), []

    def watched(batch: int, context: int) -> float:
        seen.append(context)
        return 1.0

    simulate(requests, prefill=prefill, decode=watched, memory_tokens=largest)
    assert max(seen, default=0) <= largest


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_full_batch_equals_the_closed_form(batch: int) -> None:
    prompt, output = 40, 64
    # Staggered at the start, so that the places of the running requests are spread as in the long run.
    first = [Request(0.0, prompt, 1 + (output - 1) * (each + 1) // batch) for each in range(batch)]
    served = simulate([*first, *[Request(0.0, prompt, output)] * (60 * batch)], prefill=prefill, decode=decode, slots=batch)
    rate, between = saturated(batch, output, decode(batch, batch * (prompt + output // 2)), prefill(prompt))
    late = slice(20 * batch, 50 * batch)
    order = np.sort(served.finished)[late]
    assert (len(order) - 1) / (order[-1] - order[0]) == pytest.approx(rate, rel=0.01)
    assert served.time_per_token[late].mean() == pytest.approx(between, rel=0.01)


def test_bad_input_is_refused() -> None:
    options = {"prefill": prefill, "decode": decode}
    with pytest.raises(ValueError, match="no requests"):
        simulate([], **options)
    with pytest.raises(ValueError, match=r"request 1 is .*at least one token"):
        simulate([Request(0.0, 1, 1), Request(0.0, 0, 1)], **options)
    with pytest.raises(ValueError, match="wants 12 tokens, the caches hold 10"):
        simulate([Request(0.0, 10, 2)], memory_tokens=10, **options)
    with pytest.raises(ValueError, match="slots is 0"):
        simulate([Request(0.0, 10, 2)], slots=0, **options)
