"""How fast slow memory must be: the paper's derivation (section 4.1). Numbers or arrays of any framework, as in ``memory``.

An iteration computes 8 bsz seq P operations (forward, recomputation, and twice as much backward) and moves

    weights and gradients    2 bytes x 4 passes x P          ait = seq bsz
    optimizer states        16 bytes x 2 passes x P          ait = seq bsz / 4
    activation checkpoints   2 bytes x 2 passes x bsz seq hd nl / ci    ait = 24 hd ci

ait being operations for each byte.
"""

from __future__ import annotations

from typing import Any


def efficiency(intensity: Any, bandwidth: Any, peak: Any) -> Any:
    """ait bw / (ait bw + peak): the share of its time that a device computes if nothing overlaps. Bytes/s and FLOP/s."""
    return intensity * bandwidth / (intensity * bandwidth + peak)


def bandwidth_for(share: Any, intensity: Any, peak: Any) -> Any:
    """Bytes/s at which :func:`efficiency` is ``share``."""
    return share / (1 - share) * peak / intensity


def operations(layers: Any, hidden: Any, batch: Any, seq: Any) -> Any:
    """8 bsz seq P of an iteration with recomputation."""
    return 8 * batch * seq * 12 * layers * hidden * hidden


def of_parameters(batch: Any, seq: Any) -> Any:
    """Intensity of moving weights and gradients."""
    return seq * batch


def of_states(batch: Any, seq: Any) -> Any:
    """Intensity of moving optimizer states."""
    return seq * batch / 4


def of_checkpoints(hidden: Any, every: Any = 1) -> Any:
    """Intensity of moving activation checkpoints."""
    return 24 * hidden * every
