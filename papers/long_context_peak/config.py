"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Fault(Enum):
    none = "none"
    free_switch = "free_switch"  # caches move in no time
    same_cache = "same_cache"  # the lever on the cache does nothing
    careless = "careless"  # the least important tokens, heads and layers are kept
    flat = "flat"  # the theory predicts the same time at every length


@dataclass(frozen=True)
class Config:
    seed: int = option(2405, "seeds windows of text, designs and prompts")

    fault: Fault = option(Fault.none, "what is broken, one thing for each control")
    attention: bool = option(True, "prefill pays for attention; False is a control")
    double: bool = option(True, "JAX computes in 64 bits; False is a control")

    users: int = option(200, "users who share the simulated device")
    rounds: int = option(5, "questions of a session")
    question: int = option(50, "tokens of a question")
    think: float = option(20.0, "time between an answer and the next question", unit="s")

    model: str = option("byte_lm.v1", "trained model that is walked, timed and compressed, by its name in the zoo")
    walk_tokens: int = option(512, "tokens of the passes whose operations are counted on the zoo model")
    lengths: list[int] = option([256, 512, 1024, 2048, 4096, 8192], "contexts of the timings on this machine", unit="tokens")
    fitted_at: int = option(1024, "the one context that the efficiencies are fitted on", unit="tokens")
    repeats: int = option(5, "timings of each, of which the median counts")

    prompt: int = option(384, "bytes whose cache is compressed; the rest of a window is read with it", unit="bytes")
    held_rows: int = option(64, "windows of held-out books that the compressed caches are read for")
    chosen_rows: int = option(8, "windows of other books on which layers and heads are chosen")

    agree_points: int = option(200, "designs on which PyTorch, JAX and plain loops are compared")
    sweep_points: int = option(1_000_000, "designs of the timed sweep")
    call_points: int = option(10_000, "designs of one compiled call against the simulator")
    simulated_points: int = option(40, "designs that are simulated one by one for that comparison")

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.users < 2:
            raise ValueError(f"rounds is {self.rounds} and users {self.users}; wanted at least one round and two users")
        if self.fitted_at not in self.lengths or len(set(self.lengths)) < 3:
            raise ValueError(
                f"fitted_at is {self.fitted_at}, lengths {list(self.lengths)}; wanted three lengths or more, and to fit on one of them"
            )
        if not 64 <= self.prompt <= 496:
            raise ValueError(f"prompt is {self.prompt}; wanted 64 to 496 of the 512 bytes that the model was trained on")


PRESETS = {
    "smoke": Config(
        users=10, walk_tokens=128, lengths=[128, 256, 512], fitted_at=256, repeats=3, held_rows=8, chosen_rows=4, agree_points=50,
        simulated_points=10,
    ),
    "laptop": Config(),
    # The paper computes and runs nothing; what is simulated and read is larger here.
    "paper": Config(users=1000, held_rows=448, simulated_points=200),
}  # fmt: skip
