"""One engine as a SimPy process with paged memory: the oracle of the closed form.

A step is the prefill of the requests that were admitted, or one token for every running one. Memory is pages of 16 tokens, taken as
a sequence grows; a request is admitted when the pages of its prompt are free. When none is left, the request that came last gives
its pages back and starts over, its tokens so far as part of its prompt (Kwon et al., vLLM, SOSP 2023, section 4.5).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from common.serving import Request
from papers.melange.profile import Engine

PAGE = 16


@dataclass
class _Sequence:
    """A request's state: what its prefill reads, what it still wants, and once it runs, the step at whose start it began."""

    number: int
    prompt: int
    left: int
    began: int = 0


@dataclass(frozen=True)
class Events:
    """Seconds of each request, and how often one was sent back for want of pages."""

    first_token: Float[np.ndarray, " requests"]
    finished: Float[np.ndarray, " requests"]
    preempted: int


def simulate_paged(requests: Sequence[Request], engine: Engine, *, slots: int = 256) -> Events:
    """Serve the requests, first come first served.

    Raises:
        ValueError: a request that the memory can never hold.
        ImportError: SimPy is not installed.
    """
    import simpy

    pages = engine.tokens // PAGE
    for number, each in enumerate(requests):
        if -(-(each.prompt + each.output) // PAGE) > pages:
            raise ValueError(f"request {number} wants {each.prompt + each.output} tokens, the memory holds {pages * PAGE}")
    clock = simpy.Environment()
    state = _Paged(clock, list(requests), engine, slots, pages)
    clock.process(state.arrive())
    clock.process(state.serve())
    clock.run()
    return Events(state.first_token, state.finished, state.preempted)


class _Paged:
    def __init__(self, clock: Any, requests: list[Request], engine: Engine, slots: int, pages: int) -> None:
        self.clock, self.requests, self.engine, self.slots = clock, requests, engine, slots
        self.waiting: deque[_Sequence] = deque()
        self.running: dict[int, _Sequence] = {}  # in the order of admission
        self.ends: list[
            tuple[int, int, int]
        ] = []  # (last step, request, its first step): a heap; entries of the preempted are stale
        self.step, self.context, self.free = 0, 0, pages
        # Sequences by the step, modulo a page, at which they need a new page: a step touches one entry, not all sequences.
        self.due = [0] * PAGE
        self.first_token, self.finished = np.zeros(len(requests)), np.zeros(len(requests))
        self.preempted, self.woken = 0, clock.event()

    def arrive(self) -> Any:
        for number in sorted(range(len(self.requests)), key=lambda index: self.requests[index].arrival):
            each = self.requests[number]
            if each.arrival > self.clock.now:
                yield self.clock.timeout(each.arrival - self.clock.now)
            self.waiting.append(_Sequence(number, each.prompt, each.output))
            if not self.woken.triggered:
                self.woken.succeed()

    def serve(self) -> Any:
        done = 0
        while done < len(self.requests):
            yield self.clock.timeout(0)  # who arrives at this moment is there before the step
            admitted = self.admit()
            if admitted:
                yield self.clock.timeout(self.engine.prefill(sum(each.prompt for each in admitted)))
                for each in admitted:
                    self.first_token[each.number] = self.first_token[each.number] or self.clock.now
            elif self.running:
                self.grow()
                yield self.clock.timeout(self.engine.decode(len(self.running), self.context))
                self.step, self.context = self.step + 1, self.context + len(self.running)
            else:
                self.woken = self.clock.event()
                if not self.waiting:
                    yield self.woken
            done += self.leave()

    def admit(self) -> list[_Sequence]:
        """Take what fits from the queue: its pages, with the one of its first token."""
        admitted = []
        while self.waiting and len(self.running) < self.slots and self.pages(self.waiting[0].prompt + 1) <= self.free:
            each = self.waiting.popleft()
            admitted.append(each)
            each.began, each.left = self.step, each.left - 1
            self.running[each.number] = each
            heapq.heappush(self.ends, (self.step + each.left, each.number, self.step))
            self.free -= self.pages(each.prompt + 1)
            self.context += each.prompt + 1
            self.due[self.phase(each)] += 1
        return admitted

    def grow(self) -> None:
        """Take the pages of this step's tokens; send the last ones back until there are enough."""
        while self.due[self.step % PAGE] > self.free:
            number = next(reversed(self.running))
            each = self.running.pop(number)
            self.release(each)
            made = self.step - each.began + 1
            self.waiting.appendleft(_Sequence(number, each.prompt + made, each.left + 1 - made))
            self.preempted += 1
        self.free -= self.due[self.step % PAGE]

    def leave(self) -> int:
        """Those that have all their tokens."""
        count = 0
        while self.ends and self.ends[0][0] <= self.step:
            _, number, began = heapq.heappop(self.ends)
            each = self.running.get(number)
            if each is None or each.began != began:
                continue
            del self.running[number]
            self.release(each)
            self.finished[number] = self.clock.now
            count += 1
        return count

    def release(self, each: _Sequence) -> None:
        held = each.prompt + 1 + self.step - each.began
        self.free += self.pages(held)
        self.context -= held
        self.due[self.phase(each)] -= 1

    def phase(self, each: _Sequence) -> int:
        """The step, modulo a page, at whose token it outgrows its pages."""
        return (each.began - (each.prompt + 1)) % PAGE

    @staticmethod
    def pages(tokens: int) -> int:
        return -(-tokens // PAGE)


def full_rate(engine: Engine, prompt: int, output: int, batch: int, rounds: int = 3) -> tuple[float, float, float]:
    """Requests a second, mean seconds between tokens and mean batch when requests of one size always wait.

    The first ``batch`` have outputs of all lengths, so that the places of the running ones are spread as in the long run.
    """
    first = [Request(0.0, prompt, 2 + (output - 2) * (each + 1) // batch) for each in range(batch)]
    events = simulate_paged([*first, *[Request(0.0, prompt, output)] * ((rounds + 2) * batch)], engine, slots=batch)
    finished = np.sort(events.finished)
    late = slice(batch + batch // 2, (rounds + 1) * batch)
    order = np.argsort(events.finished)[late]
    between = (events.finished[order] - events.first_token[order]) / (output - 1)
    rate = (len(finished[late]) - 1) / (finished[late][-1] - finished[late][0])
    held = events.finished[order] - events.first_token[order]
    return float(rate), float(between.mean()), float(rate * held.mean())
