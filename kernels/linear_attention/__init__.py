"""Causal linear attention with an exponential decay for each head: a whole sequence at once, or one token at a time.

Without softmax the product (Q K^T . M) V can be reassociated: everything older than the current block of tokens is one
d x e state, so time per token does not depend on the length of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from common.ops import framework, operation, readable

BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that can be asked for; a backend may offer fewer."""
VARIANTS = ("loop", "parallel", "left")


@operation(
    backends=("torch", "triton", "jax", "pallas"),
    differentiable=("q", "k", "v", "initial_state"),
    tuning=("block", "variant"),
)
def lightning_attention(
    q: Float[Any, "batch head n d"],
    k: Float[Any, "batch head n d"],
    v: Float[Any, "batch head n e"],
    slope: Float[Any, " head"],
    *,
    initial_state: Float[Any, "batch head d e"] | None = None,
    return_state: bool = False,
    block: int | None = None,
    variant: str = "loop",
    backend: str | None = None,
) -> Any:
    """Decayed causal linear attention, o_t = q_t sum_{s<=t} lambda^(t-s) k_s^T v_s with lambda = exp(-slope) by head.

    The definition is the recurrence S_t = lambda S_(t-1) + k_t^T v_t, o_t = q_t S_t, S_0 = ``initial_state`` or zero.
    Nothing is scaled and there is no denominator: normalise o afterwards. Gradients reach q, k, v and the initial state,
    also through the returned state; the slope is a constant and gets none (JAX: zeros).

    With M_ij = lambda^(i-j) for i >= j, else 0, all variants compute the same values:

    - "loop": walk over blocks of ``block`` tokens with one state, O_i = [(Q_i K_i^T) . M] V_i + lambda^r Q_i S and
      S <- lambda^B S + (lambda^(B-r) K_i)^T V_i for rows r = 1..B (Lightning Attention-2, algorithms 1 and 2);
    - "parallel": the states of all blocks by a prefix pass, then all blocks at once; keeps n / block states in memory;
    - "left": the masked left product, tiled, without a state: O(n^2) time (Lightning Attention-1).

    PyTorch and JAX offer all of it; Triton float16, bfloat16 and float32 with blocks of 16 and 32; Pallas the same types
    and the loop alone. In bfloat16 and float16 Triton rounds the gradients once within a block and once between blocks.

    Args:
        q, k: queries and keys; float16, bfloat16, float32 or float64, the same for q, k and v.
        v: values; e may differ from d.
        slope: decay rates > 0, one for each head, in 1 / token; see :func:`alibi_slopes`.
        initial_state: S_0, for a sequence that goes on; any float dtype.
        return_state: return (o, S_n), exactly the recurrence's; float32, or float64 for float64 inputs.
        block: tokens in a block, one of ``BLOCKS``; None lets the backend choose. The result does not depend on it.
        variant: "loop", "parallel" or "left".
        backend: "torch", "triton", "jax", "pallas" or "reference"; None chooses by the arrays' type and device.

    Returns:
        o (batch, head, n, e) in the dtype of q, or (o, state). n = 0 gives an empty o and the state unchanged.

    Raises:
        ValueError: shapes that do not fit, a slope that is not positive, a block or variant that is not offered.
        TypeError: integers, mixed dtypes, arrays of two frameworks.

    Source: Qin et al., Lightning Attention-2 (arXiv 2401.04658), section 3 and algorithms 1, 2. Query rows are weighted
    lambda^r and key rows lambda^(B-r), r = 1..B, as in algorithm 1: only then is the state the recurrence's.
    """
    _check_arrays("lightning_attention", {"q": q, "k": k, "v": v}, slope, 4, state=("initial_state", initial_state))
    if block is not None and block not in BLOCKS:
        raise ValueError(f"lightning_attention: block is {block!r}; wanted one of {', '.join(map(str, BLOCKS))}, or None")
    if variant not in VARIANTS:
        raise ValueError(f"lightning_attention: variant is {variant!r}; wanted one of {', '.join(VARIANTS)}")
    return lightning_attention.operation(
        q, k, v, slope, initial_state=initial_state, return_state=return_state, block=block, variant=variant, backend=backend
    )


@operation(backends=("torch", "jax"), differentiable=("q", "k", "v", "state"))
def lightning_step(
    q: Float[Any, "batch head d"],
    k: Float[Any, "batch head d"],
    v: Float[Any, "batch head e"],
    state: Float[Any, "batch head d e"],
    slope: Float[Any, " head"],
    *,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """One token of decoding: S = lambda S_before + k^T v and o = q S, with lambda = exp(-slope) by head.

    n steps from S = 0 give what :func:`lightning_attention` gives for the n tokens at once. Time and memory do not
    depend on how many tokens came before.

    Args:
        q, k, v: one token's query, key and value; the same float dtype.
        state: S_before, as :func:`lightning_attention` or the step before returned it.
        slope: decay rates > 0, one for each head, in 1 / token.

    Returns:
        o (batch, head, e) in the dtype of q, and S in float32, or float64 for float64 inputs. Differentiable in q, k, v
        and state.

    Raises:
        ValueError, TypeError: as :func:`lightning_attention`.

    Source: Qin et al., arXiv 2401.04658, section 3.1 (the recurrent form).
    """
    _check_arrays("lightning_step", {"q": q, "k": k, "v": v}, slope, 3, state=("state", state))
    return lightning_step.operation(q, k, v, state, slope, backend=backend)


def alibi_slopes(heads: int, layer: int | None = None, layers: int | None = None) -> Float[np.ndarray, " head"]:
    """Decay rates of the heads of one layer, in 1 / token, float64: s_h = start^(h+1) (1 - layer / (layers - 1) + 1e-5).

    start = 2^(-8 / heads) where ``heads`` is a power of two. Otherwise the slopes of the nearest lower power of two come
    first, then every second slope of twice that power. Lower layers forget fast; the last keeps almost everything. The
    layer factor is 1 without ``layer`` and for a model of a single layer, where the formula divides by zero.

    Args:
        heads: number of heads, at least 1.
        layer: index of the layer from 0, or None for no layer factor.
        layers: number of layers; wanted with ``layer``.

    Raises:
        ValueError: heads < 1, or not 0 <= layer < layers.

    Source: Press et al., ALiBi (arXiv 2108.12409), section 3; layer factor: Qin et al., official code of TransNormerLLM.
    """
    if heads < 1:
        raise ValueError(f"alibi_slopes: heads is {heads}; wanted at least 1")
    if (layer is None) != (layers is None) or (layer is not None and layers is not None and not 0 <= layer < layers):
        raise ValueError(f"alibi_slopes: layer is {layer}, layers is {layers}; wanted 0 <= layer < layers, or neither")
    power = 1 << (heads.bit_length() - 1)
    slopes = np.concatenate([_geometric(power), _geometric(2 * power)[::2][: heads - power]])
    if layer is None or layers is None or layers == 1:
        return slopes
    return slopes * (1 - layer / (layers - 1) + 1e-5)


def _geometric(heads: int) -> Float[np.ndarray, " head"]:
    return 2.0 ** (-8.0 / heads * np.arange(1, heads + 1))


def _check_arrays(name: str, arrays: dict[str, Any], slope: Any, rank: int, state: tuple[str, Any]) -> None:
    """Shapes, dtypes and slopes; what is no array at all is left to the dispatcher, which names its type."""
    given = [*arrays.items(), ("slope", slope), *([state] if state[1] is not None else [])]
    if any(framework(value) is None for _, value in given):
        wrong = ", ".join(f"{key} is a {type(value).__name__}" for key, value in given if framework(value) is None)
        raise TypeError(f"{name}: {wrong}; wanted torch tensors, jax arrays or NumPy arrays")
    q, k, v = (tuple(value.shape) for value in arrays.values())
    axes = ("batch", "head", "n", "d")[: rank - 1] if rank == 4 else ("batch", "head")
    if len(q) != rank or k != q or len(v) != rank or v[:-1] != q[:-1]:
        shape = ", ".join(axes)
        raise ValueError(f"{name}: q, k, v have shapes {q}, {k}, {v}; wanted q, k ({shape}, d) and v ({shape}, e)")
    if tuple(slope.shape) != (q[1],):
        raise ValueError(f"{name}: slope has shape {tuple(slope.shape)}; wanted one for each head, ({q[1]},)")
    wanted = (q[0], q[1], q[-1], v[-1])
    if state[1] is not None and tuple(state[1].shape) != wanted:
        raise ValueError(f"{name}: {state[0]} has shape {tuple(state[1].shape)}; wanted (batch, head, d, e) = {wanted}")
    kinds = [_dtype(value) for _, value in given]
    if any("float" not in kind for kind in kinds):
        listed = ", ".join(f"{key} {kind}" for (key, _), kind in zip(given, kinds, strict=True))
        raise TypeError(f"{name}: dtypes are {listed}; wanted floating point throughout, convert first")
    if len(set(kinds[:3])) != 1:
        raise TypeError(f"{name}: q, k, v have dtypes {', '.join(kinds[:3])}; wanted the same, convert two of them")
    values = _concrete(slope)
    for head, value in enumerate(values):
        if not value > 0:
            raise ValueError(f"{name}: slope of head {head} is {value}; wanted > 0 (the decay is exp(-slope))")


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]


def _concrete(slope: Any) -> Sequence[float]:
    """The slopes as numbers where reading them is free: not while tracing, and not from another device."""
    if framework(slope) and not readable(slope):
        return ()
    return slope.detach().tolist() if framework(slope) == "torch" else np.asarray(slope).tolist()
