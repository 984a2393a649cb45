"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option
from papers.melange import published


class Framework(Enum):
    torch = "torch"
    jax = "jax"


class Method(Enum):
    """How a fleet is chosen."""

    ilp = "ilp"
    greedy = "greedy"  # every bucket to its cheapest type, loads rounded up
    rounded = "rounded"  # the relaxed program, rounded up


@dataclass(frozen=True)
class Config:
    seed: int = option(2024, "seeds workloads, arrivals, routing and random instances")
    framework: Framework = option(Framework.torch, "framework that computes the profile")

    mixed: bool = option(True, "fleets may mix types; False: the largest GPU alone, a control")
    method: Method = option(Method.ilp, "how a fleet is chosen; all but ilp are controls")
    sees_sizes: bool = option(True, "profile and balancer depend on the size of a request; False is a control")
    stalls: bool = option(True, "a prefill holds the decoding sequences up in the profile; False is a control")
    aggregated: bool = option(True, "slices of a bucket are counted; False: a binary for each, a control")
    twin_bits: int = option(64, "bits of the numbers in JAX when PyTorch and JAX are compared; 32 is a control")

    pairs: int = option(100_000, "requests drawn for the histogram of a workload")
    draws: int = option(15, "draws of the workloads over which savings and changes by slices are medians")
    rates: list[float] = option([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "rates of the grid", unit="requests/s")
    slices: list[int] = option([1, 2, 4, 8], "slice factors of the grid; the last one counts")
    coarsest: int = option(4, "smallest slice factor whose cost is held against that of 16; 1 is a control")
    sensitivity_rates: list[float] = option([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "rates at which it is", unit="requests/s")
    instances: int = option(500, "random instances on which the program is held against the baselines")
    peer_instances: int = option(40, "random instances on which three solvers are compared")

    requests: int = option(2000, "requests that are sent through each solved fleet")
    validated: list[str] = option(["short", "long", "mixed"], "workloads whose fleets are validated")
    validated_rate: float = option(8.0, "rate of that", unit="requests/s")
    day_peak: float = option(16.0, "rate of the busiest hour of the day", unit="requests/s")

    solved_rates: list[float] = option([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "rates over which a solver's time is the median of")
    served: int = option(80, "requests of each rate that the profiler tries on the toy server; 0 leaves it out")

    endpoint: str = option("", "address of a completions server with Llama2-7B on one GPU; empty: none is profiled")
    gpu: str = option("A100", "the GPU behind it, by the paper's name")

    def __post_init__(self) -> None:
        if min(self.pairs, self.draws, self.instances, self.peer_instances, self.requests) < 1:
            raise ValueError("pairs, draws, instances, peer_instances and requests must be at least 1")
        if min(*self.slices, self.coarsest) < 1:
            raise ValueError(f"slices is {self.slices} and coarsest {self.coarsest}; wanted slice factors from 1")
        if not min(*self.rates, *self.sensitivity_rates, *self.solved_rates, self.validated_rate, self.day_peak) > 0:
            raise ValueError("every rate must be above 0 requests a second")
        if self.served < 0 or self.gpu not in published.PRICES:
            raise ValueError(
                f"served is {self.served} and gpu {self.gpu!r}; wanted a number from 0, and one of {', '.join(published.PRICES)}"
            )
        if self.twin_bits not in (32, 64):
            raise ValueError(f"twin_bits is {self.twin_bits}; wanted 32 or 64")


PRESETS = {
    "smoke": Config(
        draws=3, rates=[1.0, 2.0, 4.0, 8.0, 16.0], slices=[8], sensitivity_rates=[4.0], instances=40, peer_instances=6, requests=200,
        validated=["long", "mixed"], solved_rates=[4.0], served=0,
    ),
    "laptop": Config(),
    "paper": Config(endpoint="http://localhost:8000"),
}  # fmt: skip
