"""What is simulated: users, their sessions, a machine with tiers of memory, and how it takes turns. Checked once, here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from papers.long_context_peak import analysis
from papers.long_context_peak.analysis import NO_LEVER, Lever, Machine, Model, Session


class Policy(Enum):
    """Which idle cache leaves first."""

    lru = "lru"  # the one whose user was served the longest ago
    fifo = "fifo"  # the one that came into memory the longest ago


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Users who share one device.

    Attributes:
        model, machine, lever, session: see :mod:`papers.long_context_peak.analysis`.
        rounds: questions of a session.
        users: that come, at ``arrivals`` (seconds, in order), or all at 0 if there are none.
        limit: the model's longest context, in tokens.
        slots: turns that are decoded together, one token each in a step that reads the weights once.
        chunk: longest piece of a prompt in one step, which then also decodes a token for each running turn; 0: whole prompts,
            decoding waits.
        shared: first tokens of the document that all users have in common: computed and stored once, before the start.
        overlap: whether caches move while the device computes.
        policy: which idle cache leaves.
        host, storage: bytes of the host's memory, and of the disk behind it, for the caches that left.
        storage_rate: bytes/s of that disk; what goes there also crosses the link, at the slower rate of both.
        free_switch: moves take no time; a control.
    """

    model: Model
    machine: Machine
    session: Session
    rounds: int
    users: int
    lever: Lever = NO_LEVER
    arrivals: tuple[int | float, ...] = ()
    limit: int | None = None
    slots: int = 1
    chunk: int = 0
    shared: int = 0
    overlap: bool = False
    policy: Policy = Policy.lru
    host: int | float = math.inf
    storage: int | float = 0.0
    storage_rate: int | float = 6e9
    free_switch: bool = False

    def __post_init__(self) -> None:
        check_lever(self.lever)
        _at_least("rounds", self.rounds, 1)
        _at_least("users", self.users, 1)
        _at_least("slots", self.slots, 1)
        _at_least("chunk", self.chunk, 0)
        _at_least("document", self.session.document, 1)
        _at_least("question", self.session.question, 1)
        _at_least("answer", self.session.answer, 1)
        _at_least("think", self.session.think, 0)
        if not 0 <= self.shared < self.session.document:
            raise ValueError(
                f"shared is {self.shared}; wanted from 0 up to less than the document's {self.session.document} tokens"
            )
        if self.arrivals and (len(self.arrivals) != self.users or list(self.arrivals) != sorted(self.arrivals)):
            raise ValueError(f"arrivals has {len(self.arrivals)} times for {self.users} users; wanted one each, in order")
        if self.limit is not None and self.longest > self.limit:
            raise ValueError(
                f"a session ends with {self.longest} tokens, the model's context is {self.limit}; shorten it or take another model"
            )
        check_weights(self.model, self.machine)
        if self.largest > self.room:
            raise ValueError(
                f"one user's cache of {_both(self.largest)} does not fit beside the weights, which leave {_both(self.room)}; "
                "take more devices or compress the cache"
            )
        crowd = self.users * self.largest > self.room
        away = (self.users - 1) * self.largest
        # Whole caches: a hole that is smaller than one is of no use.
        slots = sum(math.floor(min(tier, 2 * away) / self.largest) for tier in (self.host, self.storage))
        if crowd and slots < self.users - 1:
            raise ValueError(
                f"the host and its disk hold {_both(self.host + self.storage)}, the caches of {self.users - 1} waiting users may "
                f"need {_both(away)}; add memory or admit fewer users"
            )

    @property
    def longest(self) -> int:
        """Tokens at the end of a session."""
        return int(self.session.document + self.rounds * (self.session.question + self.session.answer))

    def bytes_at(self, tokens: int | float) -> float:
        """Bytes of one user's own cache."""
        return float(analysis.cache_bytes(self.model, tokens - self.shared, self.lever))

    @property
    def largest(self) -> float:
        """Bytes of one user's cache at the end of the session."""
        return self.bytes_at(self.longest)

    @property
    def room(self) -> float:
        """Bytes for the users' caches: memory without weights and the shared prefix."""
        taken = analysis.weight_bytes(self.model) + analysis.cache_bytes(self.model, self.shared, self.lever)
        return float(self.machine.memory - taken)


def check_weights(model: Model, machine: Machine) -> None:
    """Refuse a model that does not fit, and say how many devices it takes."""
    weights = float(analysis.weight_bytes(model))
    if weights >= machine.memory:
        needed = math.floor(weights / machine.memory) + 1
        raise ValueError(
            f"the weights are {_both(weights)}, the memory has {_both(machine.memory)}; they need at least {needed} such devices"
        )


def check_lever(lever: Lever) -> None:
    for axis, factor in lever._asdict().items():
        if not (isinstance(factor, (int, float)) and 0 < factor < math.inf):
            raise ValueError(f"the lever on {axis} is {factor!r}; wanted bytes after over bytes before, a number above 0")


def _at_least(name: str, value: int | float, least: int) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} is {value!r}; wanted at least {least}")


def _both(size: int | float) -> str:
    return f"{size / 1e9:.2f} GB ({size / 2**30:.2f} GiB)"
