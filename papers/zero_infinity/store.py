"""Where slices live between their visits: host memory under a cap, or files that survive a kill.

Both are called alike: ``put(name, array)`` and ``get(name, out)`` begin a move and return its handle; ``commit(step)`` makes
all that was put the state of that step.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from common import UserError
from common.offload import Block, DamagedFile, FileTier, Handle, Pool, ThreadQueue, Trace

Bytes = UInt8[np.ndarray, " bytes"]


class HostStore:
    """Slices in a pool, pinned where there is CUDA. ``put`` and ``get`` are copies within RAM, done at once.

    Raises:
        OutOfBudget: the pool has no room for another slice.
    """

    survives = False

    def __init__(self, pool: Pool) -> None:
        self._pool, self._blocks = pool, dict[str, Block]()

    def put(self, name: str, array: Bytes, kept: bool = True) -> Handle:
        if name not in self._blocks:
            self._blocks[name] = self._pool.allocate(array.nbytes, name)
        self._blocks[name].numpy()[:] = array
        return Handle()

    def get(self, name: str, out: Bytes, kept: bool = True) -> Handle:
        out[:] = self._blocks[name].numpy()
        return Handle()

    def settle(self) -> None:
        """Wait for all that was put."""

    def commit(self, step: int, note: Mapping[str, Any]) -> None:
        """Nothing outlives the process."""

    def close(self) -> None:
        for block in self._blocks.values():
            block.free()


class FileStore:
    """Slices in files. What is kept has two files: a step writes those that the last commit does not name.

    A rank that is killed therefore finds its last committed step whole, and the one before it as long as no rank has begun to
    write the step after: no rank can, before all have taken part in its forward pass.

    Args:
        bytes_per_second: of reads, and of writes; None leaves the disk its own speed.

    Raises:
        UserError: the folder cannot be made or written.
    """

    survives = True

    def __init__(
        self, folder: Path, *, threads: int = 2, bytes_per_second: float | int | None = None, trace: Trace | None = None
    ) -> None:
        self.files = FileTier(folder, threads=threads)
        self._reads = ThreadQueue("read", trace=trace, bytes_per_second=bytes_per_second)
        self._writes = ThreadQueue("write", trace=trace, bytes_per_second=bytes_per_second)
        self._writing: list[Handle] = []
        self.step = -1

    def put(self, name: str, array: Bytes, kept: bool = True) -> Handle:
        """``array`` must not change until the handle is done. Not kept: one file, which a kill may leave at any step's."""
        full = self._name(name, self.step + 1, kept)
        handle = self._writes.run(lambda: self.files.write(full, array).finish(), array.nbytes, name=name)
        self._writing.append(handle)
        return handle

    def get(self, name: str, out: Bytes, kept: bool = True) -> Handle:
        full = self._name(name, max(self.step, 0), kept)  # before the first commit, what was put last
        return self._reads.run(lambda: self.files.read(full, out).finish(), out.nbytes, name=name)

    def settle(self) -> None:
        writing, self._writing = self._writing, []
        finish(writing)

    def commit(self, step: int, note: Mapping[str, Any]) -> None:
        self.settle()
        text = json.dumps({**note, "step": step}).encode()
        self.files.write("commit", np.frombuffer(text, np.uint8)).finish()
        self.step = step

    def close(self) -> None:
        for queue in (self._reads, self._writes):
            queue.close()
        with contextlib.suppress(Exception):  # raised already where it was waited for
            self.files.close()

    @staticmethod
    def _name(name: str, step: int, kept: bool) -> str:
        return f"{name}.{step % 2}" if kept else name


Store = HostStore | FileStore


def finish(handles: Iterable[Handle]) -> None:
    """Wait until all moves have ended, also after one has failed; then raise what the first of those raised."""
    errors = []
    for handle in handles:
        try:
            handle.finish()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]


class Saved:
    """The committed slices of another run, or of this one before it ended.

    Raises:
        UserError: a rank's folder is missing or damaged.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        self._tiers = [FileTier(place(folder, rank, ranks), direct=False) for rank in range(ranks)]
        self.notes = [committed(tier) for tier in self._tiers]
        self.step = min(note["step"] for note in self.notes)
        if max(note["step"] for note in self.notes) > self.step + 1:
            raise UserError(f"{folder}: the ranks' steps are {[note['step'] for note in self.notes]}; they are not of one run")

    def read(self, rank: int, name: str) -> Bytes:
        name = f"{name}.{self.step % 2}"
        out = np.empty(self._tiers[rank].size(name), np.uint8)
        self._tiers[rank].read(name, out).finish()
        return out

    def close(self) -> None:
        for tier in self._tiers:
            tier.close()


def place(folder: Path, rank: int, ranks: int) -> Path:
    return folder / f"{rank}-of-{ranks}"


def found(folder: Path) -> int | None:
    """Of how many ranks the saved state in a folder is, None if there is none; of several, the one furthest on."""
    steps: dict[int, int] = {}
    for first in folder.glob("0-of-*"):
        ranks = int(first.name.rpartition("-")[2])
        folders = [place(folder, rank, ranks) for rank in range(ranks)]
        if all((each / "commit.tier").exists() for each in folders):
            steps[ranks] = min(_step(each) for each in folders)
    return max(steps, key=lambda ranks: (steps[ranks], ranks), default=None)


def committed(files: FileTier) -> dict[str, Any]:
    """The note of the last commit.

    Raises:
        DamagedFile: it cannot be read; names the file.
    """
    try:
        content = np.empty(files.size("commit"), np.uint8)
        files.read("commit", content).finish()
        return json.loads(content.tobytes())
    except KeyError as error:
        raise UserError(f"{files.folder} has no committed step; start without resume, or name another folder") from error
    except ValueError as error:
        raise DamagedFile(f"{files.folder / 'commit.tier'} is damaged ({error}); take an older copy") from error


def _step(folder: Path) -> int:
    with FileTier(folder, direct=False) as files:
        return committed(files)["step"]
