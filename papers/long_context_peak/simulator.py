"""Many users on one device, event by event: turns are served, caches really move out and in, and everything is accounted for.

Users are SimPy processes that ask, wait for the answer and think. A turn needs the user's cache in the device's memory,
with room for what it will grow to; idle caches leave for that, to the host while it has room and to its disk then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from common.events import Timeline
from papers.long_context_peak import analysis
from papers.long_context_peak.setting import Policy, Setting


@dataclass(frozen=True)
class Outcome:
    """What became of the users.

    Attributes:
        seconds: from 0 to the last answer.
        finished: seconds of each user's last answer.
        waiting: seconds of each turn between the question and the start of its service.
        busy: share of the time that tensor cores, memory and link are in use.
        out, into: bytes that left the device's memory for another tier and came back.
        stored: the part of ``out`` that went to the disk.
        moving: seconds in which the link moved caches.
        held: the most bytes that caches took of the device's memory.
        events: that the simulator processed.
        timeline: what happened, if it was kept: a line for each user ("user 1"), for the device and for the link, with spans
            "prefill", "decode", "mixed" (a piece of a prompt beside tokens), "out" and "in".
    """

    seconds: float
    finished: list[float]
    waiting: list[float]
    busy: dict[str, float]
    out: float
    into: float
    stored: float
    moving: float
    held: float
    events: int
    timeline: Timeline

    @property
    def sessions_per_hour(self) -> float:
        return 3600.0 * len(self.finished) / self.seconds

    @property
    def mean_waiting(self) -> float:
        return sum(self.waiting) / len(self.waiting)


def simulate(setting: Setting, *, keep: bool = False) -> Outcome:
    """Serve all sessions to their end; ``keep`` the timeline for a picture."""
    server = _Server(setting, keep)
    arrivals = setting.arrivals or (0.0,) * setting.users
    for user, arrival in zip(server.users, arrivals, strict=True):
        server.env.process(server.live(user, arrival))
    if setting.overlap:
        server.env.process(server.mover())
    server.env.process(server.engine())
    events = 0
    while server.env.peek() < math.inf:
        server.env.step()
        events += 1
    return server.outcome(events)


@dataclass(eq=False, slots=True)
class _User:
    number: int
    bytes: float = 0.0  # of the cache, wherever it lies
    place: str = ""  # "device", "host", "storage", or nowhere yet
    used: float = 0.0  # when last served
    came: float = 0.0  # when it came into the device's memory
    held: bool = False  # in service or about to be: must not leave
    finished: float = 0.0


@dataclass(eq=False, slots=True)
class _Turn:
    user: _User
    prompt: float  # tokens still to prefill
    answer: float  # tokens still to decode
    context: float  # tokens in the cache
    after: float  # bytes of the cache when the turn is over
    asked: float
    done: simpy.Event


class _Server:
    def __init__(self, setting: Setting, keep: bool) -> None:
        self.setting, self.keep, self.env = setting, keep, simpy.Environment()
        self.users = [_User(number) for number in range(setting.users)]
        self.bell = self.env.event()
        self.waiting: deque[_Turn] = deque()
        self.ready: deque[_Turn] = deque()
        self.running: list[_Turn] = []
        self.left = setting.users * setting.rounds
        self.free, self.host_free = setting.room, setting.host
        self.waits: list[float] = []
        self.timeline = Timeline()
        self.arithmetic = self.traffic = self.moving = self.out = self.into = self.stored = self.held = 0.0

    def live(self, user: _User, arrival: int | float) -> Generator[simpy.Event, Any, None]:
        """One user's session."""
        s, session = self.setting, self.setting.session
        yield self.env.timeout(arrival)
        context = float(s.shared)
        for number in range(s.rounds):
            prompt = float(session.question + (session.document - s.shared if number == 0 else 0))
            after = s.bytes_at(context + prompt + session.answer)
            turn = _Turn(user, prompt, float(session.answer), context, after, self.env.now, self.env.event())
            self.waiting.append(turn)
            self.ring()
            yield turn.done
            context += prompt + session.answer
            if number + 1 < s.rounds:
                yield self.env.timeout(session.think)
        user.finished = self.env.now

    def engine(self) -> Generator[simpy.Event, Any, None]:
        """Steps of the device for as long as there are turns."""
        s = self.setting
        while self.left:
            while not s.overlap and self.waiting and len(self.running) + len(self.ready) < s.slots:
                if (leaving := self.leaving(self.waiting[0])) is None:
                    break
                yield from self.bring(self.waiting.popleft(), leaving)
            while self.ready and len(self.running) < s.slots:
                turn = self.ready.popleft()
                self.waits.append(self.env.now - turn.asked)
                self.running.append(turn)
            if self.running:
                yield from self.step()
            else:
                yield self.bell

    def mover(self) -> Generator[simpy.Event, Any, None]:
        """Moves caches beside the engine, one turn ahead of it."""
        while self.left:
            ahead = len(self.ready) <= max(0, self.setting.slots - len(self.running))
            leaving = self.leaving(self.waiting[0]) if self.waiting and ahead else None
            if leaving is None:
                yield self.bell
            else:
                yield from self.bring(self.waiting.popleft(), leaving)
                self.ring()

    def leaving(self, turn: _Turn) -> list[_User] | None:
        """The idle users whose caches make way, none if there is room; None if there will be room only later."""
        need = turn.after - (turn.user.bytes if turn.user.place == "device" else 0.0)
        if need <= self.free:
            return []
        idle = [user for user in self.users if user.place == "device" and not user.held and user is not turn.user]
        idle.sort(key=lambda user: user.used if self.setting.policy is Policy.lru else user.came)
        chosen, free = [], self.free
        for user in idle:
            chosen.append(user)
            free += user.bytes
            if need <= free:
                return chosen
        return None

    def bring(self, turn: _Turn, leaving: list[_User]) -> Generator[simpy.Event, Any, None]:
        """Make room for a turn and fetch its cache."""
        user = turn.user
        user.held = True
        for other in leaving:
            other.held = True
        for other in leaving:
            yield from self.evict(other)
        if user.place != "device":
            self.free -= user.bytes
            if user.bytes:
                yield from self.fetch(user)
            user.place, user.came = "device", self.env.now
        self.free -= turn.after - user.bytes
        user.bytes = turn.after
        self.held = max(self.held, self.setting.room - self.free)
        self.ready.append(turn)

    def evict(self, user: _User) -> Generator[simpy.Event, Any, None]:
        place = "host" if user.bytes <= self.host_free else "storage"
        yield from self.move(user, "out", place)
        if place == "host":
            self.host_free -= user.bytes
        else:
            self.stored += user.bytes
        self.free += user.bytes
        self.out += user.bytes
        user.place, user.held = place, False

    def fetch(self, user: _User) -> Generator[simpy.Event, Any, None]:
        yield from self.move(user, "in", user.place)
        if user.place == "host":
            self.host_free += user.bytes
        self.into += user.bytes

    def move(self, user: _User, kind: str, place: str) -> Generator[simpy.Event, Any, None]:
        s = self.setting
        rate = s.machine.link if place == "host" else min(s.machine.link, s.storage_rate)
        seconds = 0.0 if s.free_switch else user.bytes / rate
        self.note("link", [user], kind, seconds, user.bytes)
        self.moving += seconds
        yield self.env.timeout(seconds)

    def step(self) -> Generator[simpy.Event, Any, None]:
        """A prompt, a piece of one beside a token for every running turn, or a token for each (a whole answer for one alone)."""
        s, model = self.setting, self.setting.model
        prefilling = next((turn for turn in self.running if turn.prompt), None)
        decoding = [turn for turn in self.running if not turn.prompt] if prefilling is None or s.chunk else []
        tokens = 0.0 if prefilling is None else min(s.chunk or math.inf, prefilling.prompt)
        steps = self.running[0].answer if s.slots == 1 else 1.0
        operations = size = 0.0
        if prefilling is not None:
            operations += analysis.prefill_operations(model, tokens, prefilling.context)
            size += analysis.cache_bytes(model, prefilling.context + tokens, s.lever)
        for turn in decoding:
            operations += analysis.decode_operations(model, turn.context, steps)
            size += analysis.cache_bytes(model, analysis.growing(turn.context, steps), s.lever)
        passes = steps if prefilling is None else 1.0
        size += analysis.weights_read(model, tokens + len(decoding)) * passes
        arithmetic, traffic = operations / s.machine.compute, size / s.machine.bandwidth
        seconds = max(arithmetic, traffic)
        self.arithmetic += arithmetic
        self.traffic += traffic
        served = decoding if prefilling is None else [prefilling, *decoding]
        kind = "decode" if prefilling is None else "mixed" if decoding else "prefill"
        self.note("device", [turn.user for turn in served], kind, seconds, size)
        yield self.env.timeout(seconds)
        if prefilling is not None:
            prefilling.prompt -= tokens
            prefilling.context += tokens
        for turn in decoding:
            turn.answer -= steps
            turn.context += steps
        for turn in [turn for turn in decoding if not turn.answer]:
            self.finish(turn)

    def finish(self, turn: _Turn) -> None:
        user = turn.user
        self.running.remove(turn)
        self.left -= 1
        user.held, user.used = False, self.env.now
        if turn.context >= self.setting.longest:  # the session is over
            self.free += user.bytes
            user.place, user.bytes = "", 0.0
        turn.done.succeed()
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits for something to change."""
        bell, self.bell = self.bell, self.env.event()
        bell.succeed()

    def note(self, resource: str, users: list[_User], kind: str, seconds: float, size: Any) -> None:
        if self.keep:
            for line in (resource, *(f"user {user.number + 1}" for user in users)):
                self.timeline.add(line, kind, self.env.now, self.env.now + seconds, bytes=size)

    def outcome(self, events: int) -> Outcome:
        finished = [user.finished for user in self.users]
        seconds = max(finished)
        busy = {"tensor cores": self.arithmetic, "memory": self.traffic, "link": self.moving}
        return Outcome(
            seconds, finished, self.waits, {name: each / seconds for name, each in busy.items()},
            self.out, self.into, self.stored, self.moving, self.held, events, self.timeline,
        )  # fmt: skip
