"""The type map by brute force: the offset of every byte, in the order in which MPI packs it. Slow and plain; the oracle."""

from __future__ import annotations

from papers.tempi.datatypes import Contiguous, Datatype, Indexed, Named, Resized, Struct, Subarray, Vector


def offsets(datatype: Datatype) -> list[int]:
    """Byte offsets of a datatype's data from the buffer's address, in packing order.

    Raises:
        ValueError: a pair type, of which the standard does not say where its gap is.

    Source: MPI standard 4.1, section 5.1, the type maps that each constructor is defined by.
    """
    match datatype:
        case Named(name, size, width):
            if size != width:
                raise ValueError(f"{name} has {size} bytes of data in {width}; where its gap lies is the library's business")
            return list(range(size))
        case Contiguous(count, old):
            return _place(old, [(0, count)])
        case Vector(count, blocklength, stride, old):
            return _place(old, [(i * stride, blocklength) for i in range(count)])
        case Indexed(lengths, displacements, old):
            return _place(old, list(zip(displacements, lengths, strict=True)))
        case Struct(lengths, displacements, olds):
            members = zip(lengths, displacements, olds, strict=True)
            return [byte for length, at, old in members for byte in _place(old, [(at, length)])]
        case Subarray(_, _, _, old):
            starts = [0]
            for stride, start, count in datatype.axes():
                starts = [at + (start + i) * stride for at in starts for i in range(count)]
            return _place(old, [(at, 1) for at in starts])
        case Resized(_, _, old):
            return offsets(old)
    raise TypeError(f"not a datatype: {datatype!r}")


def blocks(positions: list[int]) -> int:
    """Contiguous pieces of a type map: the copies that a library makes which takes them one at a time."""
    return sum(1 for i, at in enumerate(positions) if i == 0 or at != positions[i - 1] + 1)


def _place(old: Datatype, where: list[tuple[int, int]]) -> list[int]:
    inner = offsets(old)
    return [at + i * old.extent + byte for at, length in where for i in range(length) for byte in inner]
