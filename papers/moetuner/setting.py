"""What is profiled and what it is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from common import zoo
from common.data import text
from common.runner import Run
from papers.moetuner import profile, synthetic
from papers.moetuner.config import Config, Framework
from papers.moetuner.profile import Trace

MODEL = "byte_lm_moe.v1"
GPUS = 4


@dataclass(frozen=True, eq=False)
class Setting:
    """The zoo's mixture on the books that it was trained on, on held-out books, and on Python source, which it never saw.

    Attributes:
        held_text: the sequences of ``held``.
    """

    profiled: Trace
    held: Trace
    python: Trace
    held_text: UInt8[np.ndarray, "sequence length"]


def setting(config: Config, run: Run) -> Setting:
    """Routes through the zoo's mixture."""
    books, code, trained = text.king_james(), text.python_source(), zoo.load(MODEL)
    for name, each in (("king_james", books), ("python_source", code), (MODEL, trained)):
        run.used(name, each.source, each.sha256)
    model = trained.jax() if config.framework is Framework.jax else trained.torch()
    routes = profile.routes_jax if config.framework is Framework.jax else profile.routes_torch
    texts = [
        profile.spread(part, number, config.length)
        for part, number in ((books.train, config.profiled), (books.held_out, config.held), (code.held_out, config.held))
    ]
    profiled, held, python = (routes(model, each) for each in texts)
    return Setting(profiled, held, python, texts[1])


def mixtral(config: Config, draw: int = 0) -> tuple[Trace, Trace]:
    """Routes of Mixtral's shape: one half to place by, one to time. Synthetic, or the user's own, of which there is one draw."""
    if config.routes:
        whole = profile.read(config.routes, experts=8)
    else:
        whole = synthetic.draw(config.tokens, np.random.default_rng(config.seed + draw), config.layers)
    half = whole.tokens // whole.length // 2
    return whole.part(0, half), whole.part(half, 2 * half)
