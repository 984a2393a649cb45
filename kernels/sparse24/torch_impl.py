"""PyTorch: whole columns of all groups are compared, picked and put back; a compiled loop for few rows of x on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Shaped, UInt16
from torch import Tensor

FEW = 4
"""Rows of x up to which the packed bytes are walked over once for each."""


def mask(weights: Shaped[Tensor, "rows k"], *, paired: bool = False) -> Bool[Tensor, "rows k"]:
    sizes = weights.detach().to(torch.float64 if weights.dtype == torch.float64 else torch.float32).abs()
    if paired:
        sizes = torch.where(sizes < torch.finfo(sizes.dtype).tiny, 0, sizes)
        sizes = sizes[:, 0::2] + sizes[:, 1::2]
    a, b, c, d = (sizes[:, place::4] for place in range(4))
    # Of two equal ones the first wins; who wins two of its three comparisons is kept.
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    kept = torch.empty_like(sizes, dtype=torch.bool)
    kept[:, 0::4] = _two(ab, ac, ad)
    kept[:, 1::4] = _two(~ab, bc, bd)
    kept[:, 2::4] = _two(~ac, ~bc, cd)
    kept[:, 3::4] = _two(~ad, ~bd, ~cd)
    return repeat(kept, "rows place -> rows (place two)", two=2) if paired else kept


def pack(
    weights: Shaped[Tensor, "rows k"], mask: Bool[Tensor, "rows k"], *, paired: bool = False
) -> tuple[Shaped[Tensor, "rows half"], UInt16[Tensor, "rows words"]]:
    groups = _grouped(weights.detach(), 4, paired)
    a, b, c, d = _grouped(mask, 4, paired)[..., 0].unbind(-1)
    w0, w1, w2, w3 = groups.unbind(2)
    first = torch.where(a[..., None], w0, torch.where(b[..., None], w1, w2))
    second = torch.where(d[..., None], w3, torch.where(c[..., None], w2, w1))
    values = torch.stack([first, second], 2)
    i0 = torch.where(a, 0, torch.where(b, 1, 2))
    i1 = torch.where(d, 3, torch.where(c, 2, 1))
    return rearrange(values, "rows group two unit -> rows (group two unit)"), _words(i0 + 4 * i1)


def unpack(
    values: Shaped[Tensor, "rows half"], meta: UInt16[Tensor, "rows words"], *, k: int, paired: bool = False
) -> Shaped[Tensor, "rows k"]:
    v0, v1 = _grouped(values.detach(), 2, paired).unbind(2)
    nibbles = _nibbles(meta)[:, : v0.shape[1], None]
    i0, i1 = nibbles & 3, nibbles >> 2
    zero = values.new_zeros(())
    places = [torch.where(i1 == place, v1, torch.where(i0 == place, v0, zero)) for place in range(4)]
    return rearrange(torch.stack(places, 2), "rows group place unit -> rows (group place unit)")


def matmul(
    x: Float[Tensor, "*batch k"],
    values: Shaped[Tensor, "rows stored"],
    meta: UInt16[Tensor, "rows words"],
    scale: Float[Tensor, " rows"] | None = None,
    *,
    paired: bool = False,
) -> Float[Tensor, "*batch rows"]:
    x, k = x.detach(), x.shape[-1]
    few = x.numel() <= FEW * k and x.dtype == torch.float32 and values.dtype in (torch.float32, torch.int8, torch.uint8)
    if few and x.device.type == "cpu" and not torch.compiler.is_compiling():
        from . import compiled

        flat = x.reshape(x.numel() // max(k, 1), k) if k else x.new_zeros(x.shape[:-1].numel(), 0)
        made = compiled.matmul(flat.numpy(), values.numpy(), meta.numpy(), paired, torch.get_num_threads())
        y = torch.from_numpy(made).view(*x.shape[:-1], values.shape[0])
    else:
        y = F.linear(x, unpack(halves(values), meta, k=k, paired=paired).to(x.dtype))
    return y if scale is None else y * scale


def halves(values: Shaped[Tensor, "rows stored"]) -> Shaped[Tensor, "rows half"]:
    """Bytes of two 4-bit numbers as int8; other values as they are."""
    if values.dtype != torch.uint8:
        return values
    # Shifted up and down again, the sign of each half fills its upper bits.
    pairs = torch.stack([values << 4, values], -1).view(torch.int8)
    return rearrange(pairs >> 4, "rows byte half -> rows (byte half)")


def _two(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Whether two or more of three are true."""
    return (x & y) | (z & (x | y))


def _grouped(x: Tensor, each: int, paired: bool) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1] // (each * (1 + paired)), each, 1 + paired)


def _words(nibbles: Tensor) -> Tensor:
    padded = F.pad(nibbles.int(), (0, -nibbles.shape[1] % 4)).view(len(nibbles), -(-nibbles.shape[1] // 4), 4)
    a, b, c, d = padded.unbind(-1)
    return (a | b << 4 | c << 8 | d << 12).to(torch.uint16)


def _nibbles(meta: Tensor) -> Tensor:
    shifts = torch.arange(0, 16, 4, device=meta.device, dtype=torch.int32)
    return ((meta.int()[..., None] >> shifts) & 15).view(meta.shape[0], 4 * meta.shape[1])
