"""Where the blocks live between their visits: in host memory, or in files behind a few pages of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.offload import Block, FileTier, Handle, Pool, Slots, ThreadQueue

STAGING = 4
"""Blocks of host memory that the file tier works with: two on their way up, two on their way down."""


class HostTier:
    """All blocks in a pool, pinned where there is CUDA.

    Raises:
        OutOfBudget: the pool cannot hold the blocks.
    """

    def __init__(self, pool: Pool, blocks: int, size: int) -> None:
        self._blocks = [pool.allocate(size, f"block {i}") for i in range(blocks)]

    def fill(self, block: int, write: Callable[[np.ndarray], None]) -> None:
        """Let ``write`` set the bytes of a block."""
        write(self._blocks[block].numpy())

    def source(self, block: int) -> tuple[Block, Handle]:
        """Where a block is to be read, and when it is ready."""
        return self._blocks[block], Handle()

    def target(self, block: int) -> Block:
        """Where a block is to be written."""
        return self._blocks[block]

    def taken(self, block: int, place: Block, copied: Handle) -> None:
        """The copy from ``source`` was queued as this handle."""

    def given(self, block: int, place: Block, copied: Handle) -> None:
        """The copy to ``target`` was queued as this handle."""

    def settle(self) -> None:
        """Wait until everything is where it belongs."""

    def close(self) -> None:
        for block in self._blocks:
            block.free()


class StoredTier:
    """All blocks in files, ``STAGING`` of them in a pool: the model may be larger than the RAM that the pool is allowed.

    Each block has two files. A step writes those that the last :meth:`commit` did not name, so a kill at any moment finds
    the last committed step whole.

    Raises:
        OutOfBudget: the pool cannot hold the staging blocks.
    """

    def __init__(self, pool: Pool, files: FileTier, blocks: int, size: int) -> None:
        self.files, self._staging = files, Slots(pool, STAGING, size, "staging")
        self._queue = ThreadQueue("store")
        self.size, self._generation, self._current = size, 0, [0] * blocks
        self._stored: dict[int, Handle] = {}

    def fill(self, block: int, write: Callable[[np.ndarray], None]) -> None:
        place = self._staging.acquire()
        write(place.numpy())
        self.given(block, place, Handle())

    def source(self, block: int) -> tuple[Block, Handle]:
        if block in self._stored:
            self._stored.pop(block).finish()
        place = self._staging.acquire()
        return place, self.files.read(self._name(block, self._current[block]), place.numpy())

    def target(self, block: int) -> Block:
        return self._staging.acquire()

    def taken(self, block: int, place: Block, copied: Handle) -> None:
        self._queue.run(lambda: self._staging.release(place), 0, name="release", after=[copied])

    def given(self, block: int, place: Block, copied: Handle) -> None:
        generation = self._current[block] = 1 - self._generation

        def store() -> None:
            try:
                self.files.write(self._name(block, generation), place.numpy()).finish()
            finally:
                self._staging.release(place)

        self._stored[block] = self._queue.run(store, self.size, name=f"block {block}", after=[copied])

    def settle(self) -> None:
        for handle in self._stored.values():
            handle.finish()
        self._stored.clear()

    def commit(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Make what was stored since the last commit, and these small arrays, the state that :meth:`resume` finds."""
        self.settle()
        from safetensors.numpy import save

        generation = self._current[0]
        assert set(self._current) == {generation}, "a commit stands between two steps"
        note = {"meta": json.dumps(dict(meta)), "generation": str(generation)}
        content = save({name: np.asarray(each, order="C") for name, each in arrays.items()}, metadata=note)
        self.files.write("state", np.frombuffer(content, np.uint8)).finish()
        self._generation = generation

    def resume(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """(arrays, meta) of the last commit, or None if there was none."""
        if "state" not in self.files.names():
            return None
        from safetensors.numpy import load

        content = np.empty(self.files.size("state"), np.uint8)
        self.files.read("state", content).finish()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8].tobytes(), "little")].tobytes())["__metadata__"]
        self._generation = int(header["generation"])
        self._current = [self._generation] * len(self._current)
        return load(content.tobytes()), json.loads(header["meta"])

    def close(self) -> None:
        self._queue.close()
        self.files.close()
        self._staging.close()

    @staticmethod
    def _name(block: int, generation: int) -> str:
        return f"block {block}.{generation}"


Tier = HostTier | StoredTier
