"""A recording of the ring: how a rank's rows of the score matrix fill up."""

from __future__ import annotations

import numpy as np
import torch

from common.distributed import Group
from papers.sequence_parallelism.ring_torch import Ring


def fill(group: Group, chunk: int) -> list[np.ndarray]:
    """A rank's (chunk, L) rows after each pass: whose keys each score came from, -1 where there is none yet.

    What travels is the number of the rank that sent it off, so the picture shows what came and not what should have.
    """
    rows = np.full((chunk, group.size * chunk), -1)
    frames = []
    for owner, (sent,) in Ring(group).around(torch.full((chunk,), group.rank, device=group.device)):
        rows[:, owner * chunk : (owner + 1) * chunk] = sent.cpu().numpy()
        frames.append(rows.copy())
    return frames
