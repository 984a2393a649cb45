"""JAX: as in PyTorch, on the bits of the weights, so that neither NaN nor the smallest numbers change on the way."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jaxtyping import Bool, Float, Shaped, UInt16

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


def mask(weights: Shaped[Array, "rows k"], *, paired: bool = False) -> Bool[Array, "rows k"]:
    a, b, c, d = jnp.moveaxis(sizes(weights, paired), -1, 0)
    # Of two equal ones the first wins; who wins two of its three comparisons is kept.
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    kept = jnp.stack([_two(ab, ac, ad), _two(~ab, bc, bd), _two(~ac, ~bc, cd), _two(~ad, ~bd, ~cd)], -1)
    return jnp.repeat(kept, 2 if paired else 1, axis=-1).reshape(weights.shape)


def pack(
    weights: Shaped[Array, "rows k"], mask: Bool[Array, "rows k"], *, paired: bool = False
) -> tuple[Shaped[Array, "rows half"], UInt16[Array, "rows words"]]:
    w0, w1, w2, w3 = jnp.moveaxis(grouped(bits(weights), 4, paired), 2, 0)
    a, b, c, d = jnp.moveaxis(grouped(mask, 4, paired)[..., 0], -1, 0)
    first = jnp.where(a[..., None], w0, jnp.where(b[..., None], w1, w2))
    second = jnp.where(d[..., None], w3, jnp.where(c[..., None], w2, w1))
    values = lax.bitcast_convert_type(jnp.stack([first, second], 2), weights.dtype)
    i0 = jnp.where(a, 0, jnp.where(b, 1, 2))
    i1 = jnp.where(d, 3, jnp.where(c, 2, 1))
    return rearrange(values, "rows group two unit -> rows (group two unit)"), words(i0 + 4 * i1)


def unpack(
    values: Shaped[Array, "rows half"], meta: UInt16[Array, "rows words"], *, k: int, paired: bool = False
) -> Shaped[Array, "rows k"]:
    v0, v1 = jnp.moveaxis(grouped(bits(values), 2, paired), 2, 0)
    places = nibbles(meta)[:, : v0.shape[1], None]
    i0, i1 = places & 3, places >> 2
    planes = [jnp.where(i1 == place, v1, jnp.where(i0 == place, v0, 0)) for place in range(4)]
    weights = lax.bitcast_convert_type(jnp.stack(planes, 2), values.dtype)
    return rearrange(weights, "rows group place unit -> rows (group place unit)")


def matmul(
    x: Float[Array, "*batch k"],
    values: Shaped[Array, "rows stored"],
    meta: UInt16[Array, "rows words"],
    scale: Float[Array, " rows"] | None = None,
    *,
    paired: bool = False,
) -> Float[Array, "*batch rows"]:
    x = lax.stop_gradient(x)
    weights = unpack(halves(values), meta, k=x.shape[-1], paired=paired).astype(x.dtype)
    y = jnp.matmul(x, weights.T, precision=lax.Precision.HIGHEST)
    return y if scale is None else y * scale


def halves(values: Shaped[Array, "rows stored"]) -> Shaped[Array, "rows half"]:
    """Bytes of two 4-bit numbers as int8; other values as they are."""
    if values.dtype != jnp.uint8:
        return values
    # Shifted up and down again, the sign of each half fills its upper bits.
    pairs = lax.bitcast_convert_type(jnp.stack([values << 4, values], -1), jnp.int8)
    return rearrange(pairs >> 4, "rows byte half -> rows (byte half)")


def sizes(weights: Array, paired: bool) -> Array:
    """Whole numbers (rows, group, 4) in the order of the magnitudes; those of floats are the numbers that their bits are."""
    wide = weights.dtype if weights.dtype == jnp.float64 else jnp.float32
    if weights.dtype != jnp.int8 and not paired:
        found = bits(weights)
        return grouped(found & jnp.asarray((1 << 8 * found.dtype.itemsize - 1) - 1, found.dtype), 4, False)[..., 0]
    size = jnp.abs(weights.astype(wide))
    if paired:
        size = grouped(jnp.where(size < jnp.finfo(wide).tiny, 0, size), 4, True).sum(-1)
        return bits(size)
    return grouped(bits(size), 4, False)[..., 0]


def bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize])


def grouped(x: Array, each: int, paired: bool) -> Array:
    return x.reshape(x.shape[0], x.shape[1] // (each * (1 + paired)), each, 1 + paired)


def words(found: Array) -> Array:
    count = -(-found.shape[1] // 4)
    padded = jnp.pad(found, ((0, 0), (0, 4 * count - found.shape[1]))).reshape(found.shape[0], count, 4)
    a, b, c, d = jnp.moveaxis(padded, -1, 0)
    return (a | b << 4 | c << 8 | d << 12).astype(jnp.uint16)


def nibbles(meta: Array) -> Array:
    found = (meta.astype(jnp.int32)[..., None] >> jnp.arange(0, 16, 4)) & 15
    return found.reshape(meta.shape[0], 4 * meta.shape[1])


def _two(x: Array, y: Array, z: Array) -> Array:
    """Whether two or more of three are true."""
    return (x & y) | (z & (x | y))
