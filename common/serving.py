"""Continuous batching: requests join and leave a batch between steps. Step by step, and in closed form for a full batch.

A step is either the prefill of the requests that were admitted, which gives each its first token, or one token for every
running request. How long a step takes is the caller's model; nothing is assumed here.

Source: Yu et al., Orca, OSDI 2022 (iteration-level scheduling); Kwon et al., vLLM, SOSP 2023 (prefill first).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Request:
    """One request: seconds of arrival, prompt tokens, output tokens (at least one)."""

    arrival: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Served:
    """What became of the requests, in the order they were given; seconds of the simulated clock.

    Attributes:
        arrival, first_token, finished: of each request.
        output: tokens of each request.
        busy: seconds in which a step ran.
        steps: decode steps.
    """

    arrival: Float[np.ndarray, " requests"]
    first_token: Float[np.ndarray, " requests"]
    finished: Float[np.ndarray, " requests"]
    output: Int[np.ndarray, " requests"]
    busy: float
    steps: int

    @property
    def tokens_per_second(self) -> float:
        """Output tokens over the time from the first arrival to the last token."""
        return float(self.output.sum() / (self.finished.max() - self.arrival.min()))

    @property
    def time_per_token(self) -> Float[np.ndarray, " requests"]:
        """Seconds between output tokens, each request's mean; 0 for a request of one token."""
        return (self.finished - self.first_token) / np.maximum(self.output - 1, 1)

    @property
    def latency(self) -> Float[np.ndarray, " requests"]:
        """Seconds from arrival to the last token."""
        return self.finished - self.arrival


def simulate(
    requests: Sequence[Request],
    *,
    prefill: Callable[[int], float],
    decode: Callable[[int, int], float],
    slots: int = 256,
    memory_tokens: int | None = None,
) -> Served:
    """Serve the requests on one engine, first come first served, prefill before decode.

    Args:
        prefill: seconds of the prefill of that many prompt tokens, all admitted requests together.
        decode: seconds of one token for each of so many running requests, given the tokens in all their caches.
        slots: requests that may run at once.
        memory_tokens: tokens that the caches hold; a request is admitted when its prompt and whole output fit.

    Raises:
        ValueError: no requests, one without prompt or output tokens, one that never fits the memory, no slots.
    """
    _check(requests, slots, memory_tokens)
    order = deque(sorted(range(len(requests)), key=lambda index: requests[index].arrival))
    running: dict[int, int] = {}  # request -> tokens that it still wants
    now, busy, steps, context, reserved = 0.0, 0.0, 0, 0, 0
    first_token, finished = np.zeros(len(requests)), np.zeros(len(requests))
    while order or running:
        admitted: list[int] = []
        while order and requests[order[0]].arrival <= now and len(running) + len(admitted) < slots:
            need = requests[order[0]].prompt + requests[order[0]].output
            if memory_tokens is not None and reserved + need > memory_tokens:
                break
            reserved += need
            admitted.append(order.popleft())
        if not admitted and not running:
            now = requests[order[0]].arrival
            continue
        prompts = sum(requests[index].prompt for index in admitted)
        seconds = prefill(prompts) if admitted else decode(len(running), context)
        now, busy = now + seconds, busy + seconds
        if admitted:
            first_token[admitted] = now
            running.update({index: requests[index].output - 1 for index in admitted})
            context += prompts + len(admitted)
        else:
            running = {index: wanted - 1 for index, wanted in running.items()}
            steps, context = steps + 1, context + len(running)
        done = [index for index, wanted in running.items() if wanted == 0]
        finished[done] = now
        for index in done:
            del running[index]
            context -= requests[index].prompt + requests[index].output
            reserved -= requests[index].prompt + requests[index].output
    arrival, output = np.array([each.arrival for each in requests], float), np.array([each.output for each in requests])
    return Served(arrival, first_token, finished, output, busy, steps)


def saturated(batch: Any, output: Any, step: Any, stall: Any) -> tuple[Any, Any]:
    """Requests a second and seconds between tokens when ``batch`` equal requests always run, each at another place.

    A request stays for its output - 1 decode steps and for the prefills of the others, one for each request that
    leaves: rate = n / ((output - 1) t_d + n t_p), and t_token = t_d / (1 - rate t_p) = t_d + n t_p / (output - 1).

    Args:
        batch: n; all arguments may be numbers or arrays of any framework.
        output: tokens of a request, two or more.
        step: t_d, seconds of a decode step at the mean context prompt + output / 2 of each request.
        stall: t_p, seconds of the prefill of one request; 0 if it holds nobody up.
    """
    return batch / ((output - 1) * step + batch * stall), step + batch * stall / (output - 1)


def _check(requests: Sequence[Request], slots: int, memory_tokens: int | None) -> None:
    if not requests:
        raise ValueError("simulate: there are no requests; give at least one")
    if slots < 1:
        raise ValueError(f"simulate: slots is {slots}; wanted at least one")
    for number, each in enumerate(requests):
        if each.prompt < 1 or each.output < 1 or each.arrival < 0:
            raise ValueError(
                f"simulate: request {number} is {each}; wanted an arrival from 0 on, and at least one token each way"
            )
        if memory_tokens is not None and each.prompt + each.output > memory_tokens:
            raise ValueError(
                f"simulate: request {number} wants {each.prompt + each.output} tokens, the caches hold {memory_tokens}; "
                "it would wait for ever"
            )
