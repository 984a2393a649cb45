"""One Adam step on moments that are kept in block-wise 8-bit codes: decode, update, direction and encode in one pass."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Float32, UInt8

from common.ops import framework, operation

__all__ = ["BLOCK", "BLOCKS", "adam8bit"]

BLOCK = 256
"""Elements that share a scale: what bitsandbytes takes since 0.45; at the time of the paper it took 2048."""
BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)


@operation(backends=("torch", "triton", "jax", "pallas"), double=())
def adam8bit(
    gradient: Float[Any, " count"],
    mean: UInt8[Any, " count"],
    mean_scale: Float[Any, " blocks"],
    square: UInt8[Any, " count"],
    square_scale: Float[Any, " blocks"],
    *,
    step: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    block: int = BLOCK,
    grid: bool = False,
    backend: str | None = None,
) -> tuple[Float32[Any, " count"], UInt8[Any, " count"], Float32[Any, " blocks"], UInt8[Any, " count"], Float32[Any, " blocks"]]:
    """The direction of an Adam step, and both moments as codes again.

    With q the signed and p the unsigned dynamic code book of 256 values, b = i // block the block of element i, s and u the scales:

        M_i = beta1 q[mean_i] s_b + (1 - beta1) G_i        V_i = beta2 p[square_i] u_b + (1 - beta2) G_i^2
        N_i = M_i / (1 - beta1^t) / (sqrt(V_i) / sqrt(1 - beta2^t) + epsilon)
        s_b = max |M_i|, u_b = max V_i over the block; mean_i, square_i: the codes nearest to M_i / s_b and V_i / u_b

    N comes from the moments before they are rounded. A quotient between two codes takes the lower if both are as near. All
    in float32. The gradient must be finite; one that is not makes the scales of its block so, and its codes mean nothing.

    Args:
        gradient: G, flat; computed in float32.
        mean, square: codes, uint8. At the start zeros, with scales of zero.
        mean_scale, square_scale: one for each block; the last block may be ragged.
        step: t, from 1; a Python number, or a scalar array of the gradient's framework in JAX.
        block: elements that share a scale, one of ``BLOCKS``.
        grid: round each quotient to one of 65,536 steps of [-1, 1] before the nearest code is looked for. So does bitsandbytes
            0.50 on a CPU, whose codes and scales come out bit for bit in PyTorch; on a GPU it does not. Zero is no step, and
            quotients below 7.6e-6 become 1.5e-5.
        backend: "torch", "triton", "jax", "pallas" or "reference"; None chooses by the arrays' type and device.

    Returns:
        (direction, mean, mean_scale, square, square_scale): float32, and codes and scales as they came in; nothing is
        changed in place. No learning rate and no weight decay.

    Raises:
        ValueError: lengths that do not fit, a step below 1, betas outside [0, 1), a block that is not offered.
        TypeError: codes that are not uint8, a gradient or scales that are not floating point.

    Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861), section 2; Zhao et al., GaLore
    (arXiv 2403.03507), section 4.2.
    """
    arrays = {"gradient": gradient, "mean": mean, "square": square, "mean_scale": mean_scale, "square_scale": square_scale}
    for name, array in arrays.items():
        wanted = "uint8" if name in ("mean", "square") else "float"
        if framework(array) is not None and wanted not in str(array.dtype):
            raise TypeError(f"adam8bit: {name} is {str(array.dtype).rpartition('.')[2]}; wanted {wanted}, convert it first")
    count = gradient.shape[0] if len(gradient.shape) == 1 else -1
    if block not in BLOCKS:
        raise ValueError(f"adam8bit: block is {block!r}; wanted one of {', '.join(map(str, BLOCKS))}")
    blocks = -(-count // block)
    for name, array in arrays.items():
        wanted_shape = (blocks,) if name.endswith("scale") else (count,)
        if count < 0 or tuple(array.shape) != wanted_shape:
            raise ValueError(
                f"adam8bit: {name} has shape {tuple(array.shape)}; wanted a flat gradient, codes of its length and one scale "
                f"for each {block} of them" + (f", here {wanted_shape}" if count >= 0 else "")
            )
    if isinstance(step, (int, float)) and step < 1:
        raise ValueError(f"adam8bit: step is {step}; wanted 1 for the first step, and counting on")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"adam8bit: betas are {beta1}, {beta2}; wanted 0 <= beta < 1")
    return adam8bit.operation(
        gradient, mean, mean_scale, square, square_scale,
        step=step, beta1=beta1, beta2=beta2, epsilon=epsilon, block=block, grid=grid, backend=backend,
    )  # fmt: skip
