"""How much memory training takes: the paper's derivation (section 3), in bytes.

The text is operators alone: ``layers``, ``hidden`` ... may be numbers, or arrays of NumPy, PyTorch or JAX, of any one shape.
Array arguments should be float64, as products pass 2^53 only slowly and 2^31 at once.
"""

from __future__ import annotations

from typing import Any

STATE_BYTES = 2 + 2 + 4 + 4 + 4 + 4
"""Of a parameter in mixed-precision Adam: weight and gradient in 16 bits; weight, mean, square and gradient in 32."""
HALF = 2
"""Bytes of a 16-bit number."""


def parameters(layers: Any, hidden: Any) -> Any:
    """P = 12 nl hd^2: in each block 4 hd^2 of attention and 8 hd^2 of the two layers behind it."""
    return 12 * layers * hidden * hidden


def model_states(layers: Any, hidden: Any) -> Any:
    """20 P = 240 nl hd^2."""
    return STATE_BYTES * parameters(layers, hidden)


def checkpoints(layers: Any, hidden: Any, batch: Any, seq: Any, every: Any = 1) -> Any:
    """2 bsz seq hd nl / ci: the inputs of every ci-th block."""
    return HALF * batch * seq * hidden * layers / every


def activations(layers: Any, hidden: Any, heads: Any, batch: Any, seq: Any) -> Any:
    """2 nl bsz seq (16 hd + 2 ah seq): of all blocks, without checkpoints."""
    return layers * activation_working(hidden, heads, batch, seq)


def state_working(hidden: Any) -> Any:
    """MSWM = 4 hd * 4 hd: weight and gradient, in 16 bits, of the largest layer, hd x 4 hd."""
    return 4 * hidden * 4 * hidden


def activation_working(hidden: Any, heads: Any, batch: Any, seq: Any, every: Any = 1) -> Any:
    """AWM = 2 bsz seq ci (16 hd + 2 ah seq): what lies between two checkpoints.

    The paper's formula counts elements; its table is met with two bytes for each.
    """
    return HALF * batch * seq * every * (16 * hidden + 2 * heads * seq)
