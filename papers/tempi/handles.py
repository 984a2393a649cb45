"""Between real MPI handles and descriptions."""

from __future__ import annotations

from typing import Any

from papers.tempi.datatypes import Contiguous, Datatype, Indexed, Named, Resized, Struct, Subarray, Vector, vector


def decode(handle: Any) -> Datatype | None:
    """What a handle was made of (MPI_Type_get_envelope, MPI_Type_get_contents); None where that is not known here.

    The bounds are the library's, which may round an upper bound up for alignment: the type then appears as resized. A library
    that sees another lower bound sees another type (Open MPI 5.0 takes a vector of stride -1 for contiguous): None. The handles
    that the library gives out on the way are freed again.
    """
    (low, width), size = handle.Get_extent(), handle.Get_size()
    if handle.is_predefined:
        return Named(handle.name.removeprefix("MPI_"), size, width)
    inner, combiner, given = handle.decode()
    olds = given["datatypes"] if combiner == "STRUCT" else [inner]
    try:
        found = _known(combiner, given, [decode(each) for each in olds])
    finally:
        for old in olds:
            if not old.is_predefined:
                old.Free()
    if found is None or (size and found.bounds[0] != low):
        return None
    return found if found.extent == width else Resized(low, width, found)


def _known(combiner: str, given: dict[str, Any], olds: list[Any]) -> Datatype | None:
    if None in olds:
        return None
    old = olds[0]
    match combiner:
        case "DUP":
            return old
        case "RESIZED":
            return Resized(given["lb"], given["extent"], old)
        case "CONTIGUOUS":
            return Contiguous(given["count"], old)
        case "VECTOR":
            return vector(given["count"], given["blocklength"], given["stride"], old)
        case "HVECTOR":
            return Vector(given["count"], given["blocklength"], given["stride"], old)
        case "SUBARRAY":
            from mpi4py import MPI

            sizes, subsizes, starts = (tuple(given[each]) for each in ("sizes", "subsizes", "starts"))
            return Subarray(sizes, subsizes, starts, old, fortran=given["order"] == MPI.ORDER_FORTRAN)
        case "INDEXED" | "HINDEXED" | "INDEXED_BLOCK" | "HINDEXED_BLOCK":
            unit = 1 if combiner[0] == "H" else old.extent
            places = tuple(given["displacements"] if unit == 1 else [at * unit for at in given["displacements"]])
            lengths = (given["blocklength"],) * len(places) if combiner.endswith("BLOCK") else tuple(given["blocklengths"])
            return Indexed(lengths, places, old)
        case "STRUCT":
            return Struct(tuple(given["blocklengths"]), tuple(given["displacements"]), tuple(olds))
    return None


def build(datatype: Datatype, module: Any = None) -> Any:
    """A handle of the MPI library for a description, not yet committed. ``module`` is the one to take types from."""
    if module is None:
        from mpi4py import MPI as module
    if isinstance(datatype, Named):
        return getattr(module, datatype.name).Dup()
    if isinstance(datatype, Struct):
        parts = [build(old, module) for old in datatype.olds]
        made = module.Datatype.Create_struct(list(datatype.lengths), list(datatype.displacements), parts)
    else:
        parts = [build(datatype.old, module)]
        made = _make(datatype, parts[0], module)
    for part in parts:
        part.Free()
    return made


def _make(datatype: Datatype, old: Any, module: Any) -> Any:
    match datatype:
        case Contiguous(count):
            return old.Create_contiguous(count)
        case Vector(count, blocklength, stride, inner):
            if inner.extent and stride % inner.extent == 0:
                return old.Create_vector(count, blocklength, stride // inner.extent)
            return old.Create_hvector(count, blocklength, stride)
        case Indexed(lengths, places, inner):
            same = len(set(lengths)) == 1
            if inner.extent and not any(at % inner.extent for at in places):
                steps = [at // inner.extent for at in places]
                return old.Create_indexed_block(lengths[0], steps) if same else old.Create_indexed(list(lengths), steps)
            return (
                old.Create_hindexed_block(lengths[0], list(places)) if same else old.Create_hindexed(list(lengths), list(places))
            )
        case Subarray(sizes, subsizes, starts, _, fortran):
            order = module.ORDER_FORTRAN if fortran else module.ORDER_C
            return old.Create_subarray(list(sizes), list(subsizes), list(starts), order)
        case Resized(low, width):
            return old.Create_resized(low, width)
    raise TypeError(f"cannot build {datatype!r}")
