"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option
from papers.moetuner.ilp import Objective
from papers.moetuner.placement import Method


class Framework(Enum):
    torch = "torch"
    jax = "jax"


@dataclass(frozen=True)
class Config:
    seed: int = option(2025, "seeds synthetic routes, shifts, random instances and starts")
    framework: Framework = option(Framework.torch, "framework in which the zoo's mixture is profiled")

    method: Method = option(Method.tuned, "the placement that is held against contiguous; all but tuned are controls")
    equal: bool = option(False, "groups have equal size in every layer; False: at least one expert, as the paper asks")
    objective: Objective = option(Objective.pair, "what the second program minimises in each layer")
    shifted: bool = option(False, "layers' tokens are shifted against each other, which ends their dependence; a control")
    weights_follow: bool = option(True, "experts' weights lie where the map says; False: they stay contiguous, a control")
    twin_bits: int = option(64, "bits of the numbers in JAX when PyTorch and JAX are compared; 32 is a control")
    vectorised: bool = option(True, "all swaps are scored in one shot; False: in a Python loop, a control")
    moves: int = option(1000, "most swaps of a search; 0 is a control")

    profiled: int = option(240, "sequences from the books that the mixture was trained on, for the profile")
    held: int = option(200, "sequences from the held-out books, for evaluation")
    length: int = option(256, "tokens of each", unit="tokens")
    served: int = option(96, "of the held-out sequences, those that go through real ranks")
    compared: int = option(8, "of these, those whose logits are compared, a quarter as long")
    shifts: int = option(499, "random shifts of the test of dependence")

    layers: int = option(32, "layers of the synthetic mixture")
    tokens: int = option(40_000, "tokens of synthetic routes, half to place by and half to time", unit="tokens")
    draws: int = option(5, "draws of synthetic routes over which speed-ups are medians")
    context: int = option(2048, "tokens of a sequence in the time model", unit="tokens")
    routes: str = option(
        "", "your own routes in place of the synthetic ones: an .npz with chosen (layer, token, active) and length"
    )

    instances: int = option(40, "random layers on which the first program is held against all groupings")
    solved: int = option(4, "layers on which the second program is solved whole")
    limit: float = option(120.0, "time that the second program may take for all layers at once", unit="s")
    crowd: int = option(128, "experts of a layer in the timing of the search")
    starts: int = option(64, "random starts of a search")
    steps: int = option(5, "repetitions of a step under an emulated link, for each placement")

    def __post_init__(self) -> None:
        counts = (
            "profiled",
            "held",
            "length",
            "served",
            "compared",
            "shifts",
            "instances",
            "starts",
            "steps",
            "context",
            "draws",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        if not self.compared <= self.served <= self.held or self.compared % 4:
            raise ValueError(
                f"compared, served and held are {self.compared}, {self.served} and {self.held}; wanted each no more than the next, "
                "and compared a multiple of the 4 devices"
            )
        if self.length < 8 or self.profiled < 3 or self.held < 3:
            raise ValueError(f"length is {self.length}, profiled {self.profiled}, held {self.held}; wanted from 8, 3 and 3")
        if self.layers < 2 or self.solved < 2 or self.tokens < 100 or self.moves < 0 or not self.limit > 0:
            raise ValueError(
                f"layers is {self.layers}, solved {self.solved}, tokens {self.tokens}, moves {self.moves}, limit {self.limit}; wanted at "
                "least 2, 2, 100, 0 and above 0"
            )
        if self.crowd % 4 or self.crowd < 8:
            raise ValueError(f"crowd is {self.crowd}; wanted a multiple of the 4 GPUs, from 8")
        if self.twin_bits not in (32, 64):
            raise ValueError(f"twin_bits is {self.twin_bits}; wanted 32 or 64")


PRESETS = {
    "smoke": Config(
        profiled=80, held=24, served=16, compared=4, length=128, shifts=199, layers=8, tokens=20_000, draws=3, instances=4, solved=3, limit=4.0,
        crowd=64, starts=16, steps=3,
    ),
    "laptop": Config(),
    "paper": Config(routes="outputs/moetuner/routes.npz", steps=50),
}  # fmt: skip
