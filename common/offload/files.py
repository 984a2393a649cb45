"""The file tier: arrays in real files, read and written by threads, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import mmap
import os
import queue
import shutil
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import psutil

from common import UserError
from common.offload.memory import MIB
from common.offload.queues import Handle
from common.offload.trace import Trace

PAGE = 4096
"""Bytes; what O_DIRECT wants of addresses, offsets and lengths, and the size of a file's header."""

_SUFFIX = ".tier"


class OutOfSpace(UserError):
    """The disk cannot hold a file; the one that was there before, if any, still is."""


class DamagedFile(UserError):
    """A file that is not what was written: cut short, overwritten, or no file of this tier."""


class FileTier:
    """A folder with one file for each name. Writes replace a file whole: a kill at any moment leaves the old or the new one.

    The file system's room is reserved before the first byte is written. Reads and writes are cut into chunks that
    ``threads`` workers move with preadv and pwritev; with O_DIRECT they pass by the page cache, through aligned buffers of
    their own where the caller's memory is not aligned to 4096 bytes.

    Args:
        folder: made if it is missing.
        chunk: bytes of one request, a multiple of 4096.
        direct: True wants O_DIRECT, None takes it where the file system has it, False does without.
        durable: also wait until the disk has it (fsync), so that a loss of power is survived like a kill.

    Attributes:
        direct: whether O_DIRECT is in use; ``why_not`` says why it is not.
        trace: lanes "read" and "write".

    Raises:
        UserError: the folder cannot be made or written; O_DIRECT is wanted and the file system has none.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int = 2,
        chunk: int = MIB,
        direct: bool | None = None,
        durable: bool = False,
        trace: Trace | None = None,
    ) -> None:
        if threads < 1 or chunk < PAGE or chunk % PAGE:
            raise ValueError(
                f"threads is {threads} and chunk {chunk}; wanted at least 1 thread and a positive multiple of {PAGE} bytes"
            )
        self.folder, self.chunk, self.durable, self.trace = Path(folder), chunk, durable, trace or Trace()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.part"):
                if not psutil.pid_exists(int(left.name.split(".")[-3])):  # of a process that was killed
                    left.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} ({error.strerror}); name a folder that can be written") from error
        self.why_not = "not wanted" if direct is False else self._try_direct()
        self.direct = not self.why_not
        if direct and not self.direct:
            raise UserError(f"{self.folder}: {self.why_not}; leave direct=None to do without")
        self._workers = ThreadPoolExecutor(threads, "file tier")
        self._buffers: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(threads):
            self._buffers.put(mmap.mmap(-1, chunk))
        self._pending: dict[str, Handle] = {}
        self._number = itertools.count()

    def write(self, name: str, array: np.ndarray) -> Handle:
        """Put an array, which must not change until the handle is done, in place of what has this name.

        Raises (here or from ``wait()``):
            OutOfSpace: naming the bytes needed and free; nothing half-written stays.
        """
        content = _bytes(array)
        self._settle(name)
        part = self._path(name).with_suffix(f".{os.getpid()}.{next(self._number)}.part")
        header = json.dumps({"bytes": content.nbytes, "crc32": zlib.crc32(content.data)}).encode()
        start = self.trace.now()
        try:
            file = self._open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                _reserve(file, PAGE + _pages(content.nbytes))
                self._one(file, np.frombuffer(header.ljust(PAGE), np.uint8), 0, os.pwritev)
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            raise self._failed(error, part, name, content.nbytes) from error

        def finish(error: BaseException | None) -> None:
            try:
                if error is None and self.durable:
                    os.fsync(file)
            finally:
                os.close(file)
            if error is not None:
                raise self._failed(error, part, name, content.nbytes) from error
            part.replace(self._path(name))
            if self.durable:
                self._sync_folder()
            self.trace.add(name, "write", content.nbytes, start)

        handle = self._pending[name] = self._chunks(file, content, os.pwritev, finish)
        return handle

    def read(self, name: str, out: np.ndarray, *, verify: bool = True) -> Handle:
        """Fill ``out`` with what was written under a name; a write of it that is under way is waited for.

        Raises (here or from ``wait()``):
            KeyError: nothing has this name.
            DamagedFile: its length or checksum is wrong (``verify=False`` skips the checksum).
            ValueError: ``out`` has another size, or is not contiguous.
        """
        content = _bytes(out)
        self._settle(name)
        path = self._path(name)
        start = self.trace.now()
        note = self._note(name)
        if note["bytes"] != content.nbytes:
            raise ValueError(f"{name!r} has {note['bytes']:,} bytes, the array to fill has {content.nbytes:,}")
        file = self._open(path, os.O_RDONLY)

        def finish(error: BaseException | None) -> None:
            os.close(file)
            if error is not None:
                raise error
            if verify and zlib.crc32(content.data) != note["crc32"]:
                raise DamagedFile(f"{path} does not fit its checksum; write {name!r} again")
            self.trace.add(name, "read", content.nbytes, start)

        return self._chunks(file, content, os.preadv, finish)

    def size(self, name: str) -> int:
        """Bytes that were written under a name."""
        self._settle(name)
        return self._note(name)["bytes"]

    def names(self) -> list[str]:
        return sorted(unquote(path.stem) for path in self.folder.glob(f"*{_SUFFIX}"))

    def remove(self, name: str) -> None:
        self._settle(name)
        self._path(name).unlink(missing_ok=True)

    def require(self, size: int) -> None:
        """Refuse early what could not be written: raises OutOfSpace if fewer than ``size`` bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise OutOfSpace(f"{self.folder}: {size:,} bytes are needed, {free:,} are free; free some or name another folder")

    def close(self) -> None:
        """Finish what is under way; an error that nobody has waited for is raised here."""
        self._workers.shutdown()
        for handle in self._pending.values():
            if not handle.seen:
                handle.wait()

    def __enter__(self) -> FileTier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # An error under way is not hidden behind another.
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            self.close()

    def _chunks(self, file: int, content: np.ndarray, move: Callable[..., int], finish: Callable[..., None]) -> Handle:
        """Move all chunks; the worker that does the last one finishes."""
        starts = range(0, content.nbytes, self.chunk)
        future: Future[None] = Future()
        lock, left, errors = threading.Lock(), [len(starts)], list[BaseException]()

        def one(start: int) -> None:
            try:
                if not errors:
                    self._one(file, content[start : start + self.chunk], PAGE + start, move)
            except BaseException as error:
                errors.append(error)
            with lock:
                left[0] -= 1
                last = left[0] <= 0
            if last:
                try:
                    finish(errors[0] if errors else None)
                    future.set_result(None)
                except BaseException as error:
                    future.set_exception(error)

        for start in starts or [0]:
            self._workers.submit(one, start)
        return Handle(future)

    def _one(self, file: int, piece: np.ndarray, offset: int, move: Callable[..., int]) -> None:
        """Move one chunk, through an aligned buffer if it needs one."""
        if not self.direct or (piece.ctypes.data % PAGE == 0 and piece.nbytes % PAGE == 0):
            _all(move, file, piece.data, offset, piece.nbytes)
            return
        buffer = self._buffers.get()
        try:
            room = np.frombuffer(buffer, np.uint8)
            if move is os.pwritev:
                room[: piece.nbytes] = piece
            with memoryview(buffer)[: _pages(piece.nbytes)] as view:
                _all(move, file, view, offset, piece.nbytes)
            if move is os.preadv:
                piece[:] = room[: piece.nbytes]
        finally:
            self._buffers.put(buffer)

    def _note(self, name: str) -> dict[str, int]:
        path = self._path(name)
        try:
            with path.open("rb") as file:
                note = json.loads(file.read(PAGE))
                whole = os.fstat(file.fileno()).st_size >= PAGE + note["bytes"]
        except FileNotFoundError:
            raise KeyError(
                f"{self.folder} has nothing named {name!r}; it has {', '.join(self.names()[:5]) or 'nothing'}"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFile(f"{path} has no header of this tier; write {name!r} again") from error
        if not whole:
            raise DamagedFile(f"{path} was cut short; write {name!r} again")
        return note

    def _settle(self, name: str) -> None:
        """Wait for a write of this name that is under way; whether it failed is its own handle's business."""
        handle = self._pending.get(name)
        if handle is not None and handle.future is not None:
            wait([handle.future])

    def _failed(self, error: BaseException, part: Path, name: str, size: int) -> BaseException:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(self.folder).free
            return OutOfSpace(
                f"{self.folder}: no room for {name!r}; {size + PAGE:,} bytes are needed, {free:,} are free. Nothing was changed"
            )
        return error

    def _path(self, name: str) -> Path:
        return self.folder / (quote(name, safe=" ") + _SUFFIX)

    def _open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | (os.O_DIRECT if self.direct else 0), 0o666)

    def _try_direct(self) -> str:
        """'' if a file here can be opened with O_DIRECT, else why not."""
        if not hasattr(os, "O_DIRECT"):
            return "this system has no O_DIRECT"
        probe = self.folder / f"probe.{os.getpid()}.0.part"
        try:
            file = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o666)
            try:
                os.pwritev(file, [mmap.mmap(-1, PAGE)], 0)
            finally:
                os.close(file)
        except OSError as error:
            return f"its file system refuses O_DIRECT ({error.strerror})"
        finally:
            probe.unlink(missing_ok=True)
        return ""

    def _sync_folder(self) -> None:
        file = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _bytes(array: Any) -> np.ndarray:
    """The memory of a contiguous array as bytes, not copied."""
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise ValueError("the file tier takes contiguous NumPy arrays; views of arenas and of CPU tensors (.numpy()) are such")
    return array.reshape(-1).view(np.uint8)


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # without the promise that the room is there
        os.ftruncate(file, size)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _all(move: Callable[..., int], file: int, view: memoryview, offset: int, wanted: int) -> None:
    """Repeat a move that was cut short until ``wanted`` bytes are through."""
    done = 0
    while done < wanted:
        moved = move(file, [view[done:]], offset + done)
        if moved == 0:
            raise DamagedFile(f"a file ended after {offset + done} bytes, {offset + wanted} were expected")
        done += moved
