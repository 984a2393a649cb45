"""The classes that an application sees instead of mpi4py's: the same, but for what they do with datatypes that the layer knows.

Whatever is unusual (a buffer that is too small, a form of argument that is rare, a datatype that was never committed) is
handed to the library as it came, so that its behaviour and its errors stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from papers.tempi.interpose import layer
from papers.tempi.interpose.layer import UNFIT, Entry
from papers.tempi.interpose.messages import Request, start


class Datatype(MPI.Datatype):
    """mpi4py's Datatype, translated when it is committed. One that the layer knows becomes a :class:`_Known`, whose Pack and
    Unpack are its own; all others keep mpi4py's, and cost nothing more."""

    _entry: Entry | None = None

    def __init__(self, datatype: Any = None) -> None:
        self._know(layer.LAYER.types.get(self.handle))

    def Commit(self) -> Datatype:
        super().Commit()
        self._know(layer.LAYER.commit(self))
        return self

    def Free(self) -> None:
        handle = self.handle
        super().Free()
        layer.LAYER.free(handle)
        self._know(None)

    def _know(self, entry: Entry | None) -> None:
        self._entry = entry
        self.__class__ = Datatype if entry is None else _Known


class _Known(Datatype):
    """A committed datatype of the layer's: Pack and Unpack make one strided copy."""

    def Pack(self, inbuf: Any, outbuf: Any, position: int, comm: Any) -> int:
        if self._entry is not None:
            try:
                made = self._entry.packing[inbuf.nbytes]
            except (KeyError, AttributeError):
                made = layer.LAYER.packs(self._entry, "pack", inbuf)
            if made is not None:
                try:
                    made.pack(inbuf, outbuf, position)
                    layer.LAYER.counts["pack"] += 1
                    return position + made.size
                except UNFIT:
                    pass
        return _library_pack(self, inbuf, outbuf, position, comm)

    def Unpack(self, inbuf: Any, position: int, outbuf: Any, comm: Any) -> int:
        if self._entry is not None:
            try:
                made = self._entry.unpacking[outbuf.nbytes]
            except (KeyError, AttributeError):
                made = layer.LAYER.packs(self._entry, "unpack", outbuf)
            if made is not None:
                try:
                    made.unpack(inbuf, outbuf, position)
                    layer.LAYER.counts["unpack"] += 1
                    return position + made.size
                except UNFIT:
                    pass
        return _library_unpack(self, inbuf, position, outbuf, comm)


_library_pack, _library_unpack = MPI.Datatype.Pack, MPI.Datatype.Unpack


class _Layered:
    """What all communicators of the layer do; stands before mpi4py's class in the order of bases."""

    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:
        message = start(buf, out=True)
        if message is None:
            super().Send(buf, dest, tag)  # type: ignore[misc]
            return
        try:
            super().Send(message.spec, dest, tag)  # type: ignore[misc]
        finally:
            message.drop()

    def Recv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG, status: Any = None) -> None:
        message = start(buf, out=False)
        if message is None:
            super().Recv(buf, source, tag, status)  # type: ignore[misc]
            return
        status = MPI.Status() if status is None else status
        try:
            super().Recv(message.spec, source, tag, status)  # type: ignore[misc]
        except BaseException:
            message.drop()
            raise
        message.finish(status)

    def Sendrecv(
        self,
        sendbuf: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = MPI.ANY_SOURCE,
        recvtag: int = MPI.ANY_TAG,
        status: Any = None,
    ) -> None:
        out, into = start(sendbuf, out=True), start(recvbuf, out=False)
        status = MPI.Status() if status is None else status
        specs = out.spec if out else sendbuf, into.spec if into else recvbuf
        try:
            super().Sendrecv(specs[0], dest, sendtag, specs[1], source, recvtag, status)  # type: ignore[misc]
        except BaseException:
            for each in (out, into):
                if each:
                    each.drop()
            raise
        for each in (out, into):
            if each:
                each.finish(status)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Request:
        return self._start("Isend", buf, True, dest, tag)

    def Irecv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG) -> Request:
        return self._start("Irecv", buf, False, source, tag)

    def _start(self, name: str, buf: Any, out: bool, peer: int, tag: int) -> Request:
        message = start(buf, out)
        try:
            request = Request(getattr(super(), name)(message.spec if message else buf, peer, tag))
        except BaseException:
            if message:
                message.drop()
            raise
        request._message = message
        return request

    def Alltoallw(self, sendbuf: Any, recvbuf: Any) -> None:
        _exchange(super().Alltoallw, sendbuf, recvbuf)  # type: ignore[misc]


class _Neighbours(_Layered):
    def Neighbor_alltoallw(self, sendbuf: Any, recvbuf: Any) -> None:
        _exchange(super().Neighbor_alltoallw, sendbuf, recvbuf)  # type: ignore[misc]


def _exchange(call: Any, sendbuf: Any, recvbuf: Any) -> None:
    """The same collective call with packed bytes on the side whose datatypes are all known."""
    out = _parts(sendbuf, out=True)
    into = _parts(recvbuf, out=False)
    try:
        call(out.spec if out else sendbuf, into.spec if into else recvbuf)
        if into:
            into.unpack()
    finally:
        for each in (out, into):
            if each:
                layer.LAYER.slabs.give(each.buffer)


class _Parts:
    """The parts of one side of an Alltoallw, packed one behind the other."""

    def __init__(self, copies: list[Any], views: list[Any], out: bool) -> None:
        self.copies, self.views = copies, views
        self.sizes = [0 if each is None else each.size for each in copies]
        self.places = np.cumsum([0, *self.sizes]).tolist()
        self.buffer = layer.LAYER.slabs.take(self.places.pop())
        if out:
            for made, view, at in zip(self.copies, self.views, self.places, strict=True):
                if made is not None:
                    np.copyto(made.packed(self.buffer, at), view)
                    layer.LAYER.counts["pack"] += 1

    @property
    def spec(self) -> list[Any]:
        return [self.buffer, self.sizes, self.places, [MPI.BYTE] * len(self.sizes)]

    def unpack(self) -> None:
        for made, view, at in zip(self.copies, self.views, self.places, strict=True):
            if made is not None:
                np.copyto(view, made.packed(self.buffer, at))
                layer.LAYER.counts["unpack"] += 1


def _parts(spec: Any, out: bool) -> _Parts | None:
    """One side of an exchange as (buffer, counts, displacements, datatypes), if every part of it is known, else None."""
    if not isinstance(spec, (list, tuple)) or len(spec) != 4 or spec[0] is MPI.IN_PLACE:
        return None
    direction, gain = ("pack" if out else "unpack"), False
    copies: list[Any] = []
    views: list[Any] = []
    try:
        memory = np.frombuffer(spec[0], np.uint8)
        for count, at, datatype in zip(*spec[1:], strict=True):
            if count == 0:
                copies.append(None)
                views.append(None)
                continue
            entry = layer.LAYER.types.get(datatype.handle)
            if entry is None:
                return None
            made = entry.copy(int(count))
            if not out and not made.reversible:
                return None
            gain = gain or layer.LAYER.gains(made, direction)
            copies.append(made)
            views.append(made.view(memory[int(at) :]))
    except (*UNFIT, AttributeError):
        return None
    if not gain or not (out or memory.flags.writeable):
        return None
    return _Parts(copies, views, out)


def _communicator(base: Any, over: type) -> Any:
    """A communicator class of the layer, whose new communicators are the layer's too."""

    def wrapping(name: str) -> Any:
        def create(self: Any, *arguments: Any, **options: Any) -> Any:
            return wrap(getattr(base, name)(self, *arguments, **options))

        create.__name__ = name
        return create

    makers = ("Dup", "Clone", "Split", "Split_type", "Create", "Create_group", "Create_cart", "Create_graph", "Sub",
              "Create_dist_graph", "Create_dist_graph_adjacent", "Dup_with_info")  # fmt: skip
    return type(base.__name__, (over, base), {name: wrapping(name) for name in makers if hasattr(base, name)})


Intracomm = _communicator(MPI.Intracomm, _Layered)
Cartcomm = _communicator(MPI.Cartcomm, _Neighbours)
Graphcomm = _communicator(MPI.Graphcomm, _Neighbours)
Distgraphcomm = _communicator(MPI.Distgraphcomm, _Neighbours)

_LAYERED = {MPI.Intracomm: Intracomm, MPI.Cartcomm: Cartcomm, MPI.Graphcomm: Graphcomm, MPI.Distgraphcomm: Distgraphcomm}


def wrap(value: Any) -> Any:
    """An object of mpi4py as one of the layer, if there is such a class, with the same handle."""
    if type(value) is MPI.Datatype:
        return Datatype(value)
    if type(value) in _LAYERED:
        return _LAYERED[type(value)](value)
    return value
