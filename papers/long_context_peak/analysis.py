"""The four quantities of the paper and what follows from them: pure functions over numbers or arrays of any framework.

Each text runs under PyTorch and JAX alike (jit, vmap) and on plain numbers. Units are SI: bytes, bytes/s, FLOP, FLOP/s,
seconds, tokens. Everything broadcasts: a field of a model, a machine or a lever may be an array.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_array_api_obj

from common.architecture import Transformer
from common.hardware import Device, counts
from papers.long_context_peak import published


class Convention(Enum):
    """How many query-key pairs prefill pays for."""

    strict = "strict"  # the causal half: n past + n (n + 1) / 2
    full = "full"  # all of them, as a plain product of matrices: n (past + n)
    simplified = "simplified"  # the paper's short form: 2 layers 4096 for each of n^2 pairs


class Model(NamedTuple):
    """What the formulas ask of a model.

    Attributes:
        parameters: all that lie in memory.
        multiplied: those that one token is multiplied with (all but the embedding; of experts, the active ones).
        pair_operations: FLOP of one query-key pair in all layers and heads, 4 layers heads head_dim.
        cache_numbers: numbers that one token leaves in the cache, 2 layers kv_heads head_dim.
        layers: blocks, for the simplified convention.
        element: bytes of a number.
        expert_parameters: those of ``parameters`` that belong to experts; 0 for a dense model.
        active_share: active experts over experts; 1 for a dense model.
    """

    parameters: Any
    multiplied: Any
    pair_operations: Any
    cache_numbers: Any
    layers: Any
    element: Any = 2.0
    expert_parameters: Any = 0.0
    active_share: Any = 1.0


class Machine(NamedTuple):
    """FLOP/s, bytes/s of the device's memory, bytes of it, bytes/s of the link to the host."""

    compute: Any
    bandwidth: Any
    memory: Any
    link: Any


class Lever(NamedTuple):
    """Bytes of the cache after over before, on each of the four axes; they multiply."""

    layers: Any = 1.0
    heads: Any = 1.0
    tokens: Any = 1.0
    hidden: Any = 1.0

    @property
    def multiplier(self) -> Any:
        return self.layers * self.heads * self.tokens * self.hidden


class Session(NamedTuple):
    """One user's session: tokens of the document, of each question and of each answer; seconds of thought between turns.

    The first question is prefilled together with the document.
    """

    document: Any
    question: Any
    answer: Any
    think: Any = 0.0


NO_LEVER = Lever()


def model(architecture: Transformer, element: float = 2.0) -> Model:
    """The model's figures, taken from the operator counts of `common.hardware`."""
    one = counts.operators(architecture, tokens=1)
    attention = one["scores"].operations + one["mix"].operations
    a = architecture
    return Model(
        parameters=float(a.parameters()),
        multiplied=(counts.total(one).operations - attention) / 2,
        pair_operations=attention,
        cache_numbers=counts.cache_bytes(a, 1, 1.0),
        layers=float(a.depth),
        element=element,
        expert_parameters=float(a.breakdown()["feed_forward"]) if a.experts else 0.0,
        active_share=a.active / a.experts if a.experts else 1.0,
    )


def paper_model() -> Model:
    """The running example with the paper's round number of parameters, all of which every token is multiplied with."""
    return model(published.YI_34B)._replace(parameters=published.PARAMETERS, multiplied=published.PARAMETERS)


def paper_machine() -> Machine:
    return Machine(published.COMPUTE, published.BANDWIDTH, float(published.MEMORY), published.LINK)


def machine(device: Device, dtype: str = "bf16") -> Machine:
    """A device's data sheet at its peak; the link at its usable rate."""
    return Machine(device.peak(dtype), device.bandwidth, device.memory, device.pcie.usable)


def parallel(machine: Machine, devices: Any) -> Machine:
    """Tensor parallel over several devices: arithmetic, bandwidth, memory and links add up, so that weights are stored and
    read once; communication is neglected."""
    return Machine(*(each * devices for each in machine))


def weight_bytes(model: Model) -> Any:
    return model.parameters * model.element


def cache_bytes(model: Model, tokens: Any, lever: Lever = NO_LEVER) -> Any:
    """2 layers kv_heads head_dim element tokens, times the lever."""
    return model.cache_numbers * model.element * tokens * lever.multiplier


def users(model: Model, machine: Machine, tokens: Any, lever: Lever = NO_LEVER) -> Any:
    """Caches of so many tokens that fit beside the weights: floor((memory - weights) / cache); below 0 means not even those."""
    return _floor((machine.memory - weight_bytes(model)) / cache_bytes(model, tokens, lever))


def balance(machine: Machine) -> Any:
    """FLOP per byte above which arithmetic takes longer than memory."""
    return machine.compute / machine.bandwidth


def prefill_operations(model: Model, tokens: Any, past: Any = 0.0, convention: Convention = Convention.strict) -> Any:
    """2 P n and attention, for n new tokens behind ``past`` cached ones."""
    if convention is Convention.simplified:
        return tokens * (2.0 * model.multiplied + 2.0 * model.layers * published.SIMPLIFIED_WIDTH * (past + tokens))
    pairs = tokens * past + (tokens * (tokens + 1.0) / 2.0 if convention is Convention.strict else tokens * tokens)
    return 2.0 * model.multiplied * tokens + model.pair_operations * pairs


def weights_read(model: Model, tokens: Any) -> Any:
    """Bytes of weights that a pass over so many tokens reads: all but the experts that none of them is sent to."""
    idle = (1.0 - model.active_share) ** tokens
    return (model.parameters - model.expert_parameters * idle) * model.element


def prefill_seconds(
    model: Model,
    machine: Machine,
    tokens: Any,
    past: Any = 0.0,
    lever: Lever = NO_LEVER,
    convention: Convention = Convention.strict,
) -> Any:
    """The longer of FLOP / peak, which is the paper's, and of one reading of weights and cache, which only prompts shorter than
    about :func:`balance` tokens notice."""
    arithmetic = prefill_operations(model, tokens, past, convention) / machine.compute
    return _largest(arithmetic, (weights_read(model, tokens) + cache_bytes(model, past + tokens, lever)) / machine.bandwidth)


def growing(context: Any, answer: Any) -> Any:
    """The cached tokens that an answer's tokens see, all together: (context + 1) + (context + 2) + ..., each itself included."""
    return answer * context + answer * (answer + 1.0) / 2.0


def decode_operations(model: Model, context: Any, answer: Any) -> Any:
    """Of ``answer`` tokens, the first of which comes behind ``context`` cached ones."""
    return 2.0 * model.multiplied * answer + model.pair_operations * growing(context, answer)


def decode_bytes(model: Model, context: Any, answer: Any, lever: Lever = NO_LEVER) -> Any:
    """Weights and cache, read for every token, the cache growing."""
    return weights_read(model, 1.0) * answer + cache_bytes(model, growing(context, answer), lever)


def decode_seconds(model: Model, machine: Machine, context: Any, answer: Any, lever: Lever = NO_LEVER) -> Any:
    """Of one user's answer: sum of (weights + cache) / bandwidth, or of the arithmetic where that is longer (it is the same one
    for all tokens of an answer)."""
    return _largest(
        decode_operations(model, context, answer) / machine.compute,
        decode_bytes(model, context, answer, lever) / machine.bandwidth,
    )


def token_seconds(model: Model, machine: Machine, context: Any, lever: Lever = NO_LEVER) -> Any:
    """(weights + cache) / bandwidth: the paper's time of one token at a context that stands still."""
    return (weights_read(model, 1.0) + cache_bytes(model, context, lever)) / machine.bandwidth


def switch_seconds(model: Model, machine: Machine, leaving: Any, entering: Any, lever: Lever = NO_LEVER) -> Any:
    """The cache of the user who leaves goes out, that of the user who enters comes in."""
    return (cache_bytes(model, leaving, lever) + cache_bytes(model, entering, lever)) / machine.link


def session_seconds(model: Model, machine: Machine, session: Session, rounds: int, lever: Lever = NO_LEVER) -> Any:
    """Seconds that one session keeps the device busy, switches left out: each round a question's prefill and an answer."""
    turn = session.question + session.answer
    total = prefill_seconds(model, machine, session.document + session.question, 0.0, lever)
    for past in range(1, rounds):
        total = total + prefill_seconds(model, machine, session.question, session.document + past * turn, lever)
    for past in range(rounds):
        context = session.document + session.question + past * turn
        total = total + decode_seconds(model, machine, context, session.answer, lever)
    return total


def session_switches(model: Model, machine: Machine, session: Session, rounds: int, lever: Lever = NO_LEVER) -> Any:
    """Seconds of moving one session's cache out after every round but the last, and in before the next."""
    turn = session.question + session.answer
    tokens = sum((session.document + done * turn for done in range(1, rounds)), 0.0 * session.document)
    return switch_seconds(model, machine, tokens, tokens, lever)


def sessions_per_hour(model: Model, machine: Machine, session: Session, rounds: int, count: Any, lever: Lever = NO_LEVER) -> Any:
    """What ``count`` users at once can complete at most: the device is never idle, or nobody ever waits.

    3600 min(1 / busy, count / (busy + thought)), where busy has the switches of every turn if there are more users than fit,
    as when they take turns in a circle and the least recently used one leaves. 0 if not one fits.
    """
    longest = session.document + rounds * (session.question + session.answer)
    room = users(model, machine, longest, lever)
    crowded = _where(room < count, 1.0, 0.0)
    busy = session_seconds(model, machine, session, rounds, lever)
    busy = busy + crowded * session_switches(model, machine, session, rounds, lever)
    alone = (busy + (rounds - 1) * session.think) / count
    return _where(room < 1, 0.0, 3600.0 / _largest(busy, alone))


def windowed(context: Any, kept: Any, window: Any) -> Any:
    """The lever of a hybrid in which a share ``kept`` of the layers sees all tokens and the others the last ``window``; a
    window of 0 is a layer without a cache that grows, such as linear attention."""
    return kept + (1.0 - kept) * _smallest(window / context, 1.0)


def _largest(a: Any, b: Any) -> Any:
    return _where(a > b, a, b)


def _smallest(a: Any, b: Any) -> Any:
    return _where(a < b, a, b)


def _floor(x: Any) -> Any:
    return array_namespace(x).floor(x) if is_array_api_obj(x) else float(math.floor(x))


def _where(condition: Any, yes: Any, no: Any) -> Any:
    if not is_array_api_obj(condition):
        return yes if condition else no
    arrays = [each for each in (yes, no) if is_array_api_obj(each)]
    xp = array_namespace(condition, *arrays)
    if not arrays:  # a floating type from somewhere: that of the framework's division
        yes, no = (condition * 0.0 + each for each in (yes, no))
        return xp.where(condition, yes, no)
    yes, no = (each if is_array_api_obj(each) else xp.asarray(each, dtype=arrays[0].dtype) for each in (yes, no))
    return xp.where(condition, yes, no)
