"""The profile of a GPU: the highest rate of requests of each size that it serves within the latency objective.

One engine that batches continuously, in closed form (n sequences run, a request has i prompt and o output tokens):

    step     t_d = max(W / (e_b B), 2 P n / (e_c F)) + n (i + o/2) k / (e_b B) + t_0 + h n
    prefill  t_p = 2 P i / (e_c F), during which nobody decodes
    rate     r = n / ((o - 1) t_d + n t_p)          time between tokens t_d / (1 - r t_p) <= objective
    memory   n w (i + o) k <= 0.9 M - W, and one request whole

W weights and k cache of a token in bytes, P parameters; B, F, M bandwidth, peak and memory of the device. Both the rate and the
time between tokens grow with n, so the largest n that keeps the objective is found by bisection. The paper measures this table on
real GPUs (section on profiling); here it comes from five constants, which :mod:`papers.melange.fit` takes from four cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from common import hardware
from common.architecture import Transformer
from common.hardware import counts
from papers.melange import published


class Chip(NamedTuple):
    """Numbers, or arrays that broadcast against sizes and objective.

    Attributes:
        peak: FLOP/s, dense, FP16.
        bandwidth: bytes a second of the memory.
        room: bytes for caches, once the weights lie in the engine's share of the memory.
    """

    peak: Any
    bandwidth: Any
    room: Any


class Constants(NamedTuple):
    """What all GPUs share; numbers or arrays.

    Attributes:
        bandwidth: e_b, the part of the bandwidth that a step reaches.
        compute: e_c, the part of the peak that products reach.
        step: t_0, seconds of the host in each step.
        sequence: h, seconds of the host for each sequence of a step.
        occupancy: w, the part of its prompt and output that a request holds in memory on average.
    """

    bandwidth: Any
    compute: Any
    step: Any
    sequence: Any
    occupancy: Any


class Load(NamedTuple):
    """The served model: parameters, bytes of its weights, bytes of a token in the cache."""

    parameters: float
    weights: float
    cache: float


@dataclass(frozen=True)
class Engine:
    """One engine in numbers, for the simulators.

    Attributes:
        stalls: whether a prefill holds the others up; without it the profile is wrong, which is a control.
    """

    chip: Chip
    constants: Constants
    load: Load
    stalls: bool = True

    def prefill(self, tokens: int) -> float:
        """Seconds."""
        return 2 * self.load.parameters * tokens / (self.constants.compute * self.chip.peak)

    def decode(self, batch: int, context: int | float) -> float:
        """Seconds of a step with so many sequences and tokens in their caches."""
        c, rate = self.constants, self.constants.bandwidth * self.chip.bandwidth
        weights = max(self.load.weights / rate, 2 * self.load.parameters * batch / (c.compute * self.chip.peak))
        return weights + context * self.load.cache / rate + c.step + c.sequence * batch

    @property
    def tokens(self) -> int:
        """That the caches hold."""
        return int(self.chip.room / self.load.cache)

    @property
    def admitted(self) -> int:
        """Tokens that requests may want altogether, when each holds only part of what it wants at a time."""
        return int(self.chip.room / (self.load.cache * self.constants.occupancy))


def serve(architecture: Transformer) -> Load:
    """In 16 bits."""
    return Load(float(architecture.parameters()), counts.weight_bytes(architecture), counts.cache_bytes(architecture, 1))


def chip(name: str, load: Load, a10g_peak: float | None = None) -> Chip:
    """A GPU by the paper's name for it.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
    """
    if name not in published.DEVICES:
        raise ValueError(f"there is no GPU {name!r}; there are {', '.join(published.DEVICES)}")
    device = hardware.device(published.DEVICES[name])
    peak = a10g_peak if name == "A10G" and a10g_peak is not None else device.peak("fp16")
    room = published.MEMORY_SHARE * device.memory - load.weights
    if room <= 0:
        raise ValueError(f"{device.name} cannot hold {load.weights:.3g} bytes of weights; take a smaller model or more GPUs")
    return Chip(peak, device.bandwidth, room)


def side_by_side(chips: list[Chip]) -> Chip:
    """One chip of arrays (gpu, 1, 1, 1), for tables (gpu, input, output, objective)."""
    return Chip(*(np.array(each, float).reshape(-1, 1, 1, 1) for each in zip(*chips, strict=True)))


def table(
    chips: list[Chip],
    constants: Constants,
    load: Load,
    inputs: Any,
    outputs: Any,
    objectives: Any,
    *,
    framework: str = "torch",
    stalls: bool = True,
) -> Float[np.ndarray, "gpu input output objective"]:
    """Requests a second, 0 where a request does not fit or the objective cannot be met; float64, from either framework."""
    sizes = np.array(inputs, float).reshape(-1, 1, 1), np.array(outputs, float).reshape(-1, 1), np.array(objectives, float)
    if framework == "jax":
        import jax

        from papers.melange.profile_jax import max_rate as max_rate_jax

        with jax.enable_x64(True):
            found = max_rate_jax(side_by_side(chips), constants, load, *sizes, most=published.BATCH, stalls=stalls)
    else:
        from papers.melange.profile_torch import max_rate

        found = max_rate(side_by_side(chips), constants, load, *sizes, most=published.BATCH, stalls=stalls)
    return np.asarray(found)


def fits(chips: list[Chip], load: Load, inputs: Any, outputs: Any) -> Bool[np.ndarray, "gpu input output"]:
    """Whether one request of that size fits into the caches of a GPU."""
    tokens = np.array(inputs).reshape(-1, 1) + np.array(outputs)
    return tokens * load.cache <= np.array([each.room for each in chips]).reshape(-1, 1, 1)


def gain(first: Any, second: Any, prices: tuple[float, float]) -> Any:
    """Tokens a dollar of the first GPU over the second, less one; where the second leads, its gain with a minus."""
    ratio = first * prices[1] / (second * prices[0])
    return np.where(ratio >= 1, ratio - 1, 1 - 1 / ratio)


def blind(rates: Float[np.ndarray, "gpu input output objective"]) -> Float[np.ndarray, "gpu input output objective"]:
    """The same table with every size served like the middle one: a profile that does not see sizes, a control."""
    middle = rates[:, rates.shape[1] // 2, rates.shape[2] // 2]
    return np.broadcast_to(middle[:, None, None], rates.shape)
