"""The slices of one rank as a whole: committed, saved, taken up again, and cut anew for other numbers of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import UserError
from papers.zero_infinity.fetch import weight_name
from papers.zero_infinity.optimizer import state_name
from papers.zero_infinity.partition import Layout, Partition, Unit, digest
from papers.zero_infinity.store import FileStore, Saved, Store, place


@dataclass
class Records:
    """What a rank holds of all parameters, and where.

    Attributes:
        dtypes: of the weights and of the states.
        step: the last that is committed.
    """

    units: list[Unit]
    layout: Layout
    rank: int
    weights: Store
    states: Store
    dtypes: tuple[torch.dtype, torch.dtype]
    step: int = -1

    @property
    def stores(self) -> list[Store]:
        return list({id(each): each for each in (self.weights, self.states)}.values())

    def commit(self, step: int, done: set[int] | None = None) -> None:
        """Make what was put the state of this step; parameters that are not among the ``done`` are as they were before."""
        for unit in self.units:
            if done is not None and unit.index not in done:
                self._copy(unit, None)
        for store in self.stores:
            store.settle()
        for store in self.stores:
            store.commit(step, self._note())
        self.step = step

    def save(self, folder: Path) -> None:
        """Write everything as a folder that :meth:`load` reads."""
        target = FileStore(place(folder, self.rank, self.layout.ranks))
        target.step = self.step - 1
        for unit in self.units:
            self._copy(unit, target)
        target.commit(self.step, self._note())
        target.close()

    def go_on(self, folder: Path) -> None:
        """Take up the last step that all ranks have committed, in place.

        Raises:
            UserError: the folder holds another model, or was cut otherwise.
        """
        saved = Saved(folder, self.layout.ranks)
        saved.close()
        note = saved.notes[self.rank]
        self._check(folder, note)
        if note["chunk"] != self.layout.chunk or note["partition"] != self.layout.partition.value:
            raise UserError(f"{folder} was cut into chunks of {note['chunk']} by {note['partition']}; ask for the same")
        self._turn(saved.step)
        if not self.weights.survives:
            self._rebuild_weights()
        self.step = saved.step

    def load(self, folder: Path, ranks: int) -> None:
        """Cut what ``ranks`` ranks have saved into this rank's slices, and commit it.

        Raises:
            UserError: the folder holds another model.
            DamagedFile: a file is not what was written; names it.
        """
        saved = Saved(folder, ranks)
        note = saved.notes[0]
        self._check(folder, note)
        old = Layout(ranks, note["chunk"], Partition(note["partition"]))
        self._turn(saved.step - 1)
        weight, state = self._bytes()
        for unit in self.units:
            begin = self.layout.begin(unit, self.rank)
            for k, (start, end) in enumerate(self.layout.chunks(unit, self.rank)):
                states, weights = np.zeros((3, end - start, state), np.uint8), np.zeros((1, end - start, weight), np.uint8)
                for piece in old.pieces(unit, begin + start, begin + end):
                    first = piece.position - begin - start
                    for target, name in ((states, state_name), (weights, weight_name)):
                        rows, _, item = target.shape
                        found = saved.read(piece.rank, name(unit.index, piece.chunk)).reshape(rows, -1, item)
                        target[:, first : first + piece.length] = found[:, piece.start : piece.start + piece.length]
                self.states.put(state_name(unit.index, k), states.reshape(-1)).finish()
                self.weights.put(weight_name(unit.index, k), weights.reshape(-1)).finish()
        saved.close()
        self.commit(saved.step)

    def _copy(self, unit: Unit, target: FileStore | None) -> None:
        """Put a parameter's records, as they are, into ``target``, or into the next step of the stores they are in."""
        weight, state = self._bytes()
        for k, (start, end) in enumerate(self.layout.chunks(unit, self.rank)):
            for store, name, size in ((self.weights, weight_name, weight), (self.states, state_name, 3 * state)):
                if target is not None or store.survives:
                    content = np.empty((end - start) * size, np.uint8)
                    store.get(name(unit.index, k), content).finish()
                    (target or store).put(name(unit.index, k), content).finish()

    def _rebuild_weights(self) -> None:
        """Weights that lay in host memory are those of the states, rounded."""
        kind, state = self.dtypes
        for unit in self.units:
            for k, (start, end) in enumerate(self.layout.chunks(unit, self.rank)):
                content = np.empty(3 * (end - start) * state.itemsize, np.uint8)
                self.states.get(state_name(unit.index, k), content).finish()
                weight = torch.from_numpy(content).view(state)[: end - start].to(kind)
                self.weights.put(weight_name(unit.index, k), weight.view(torch.uint8).numpy()).finish()

    def _turn(self, step: int) -> None:
        for store in self.stores:
            if isinstance(store, FileStore):
                store.step = step

    def _bytes(self) -> tuple[int, int]:
        return self.dtypes[0].itemsize, self.dtypes[1].itemsize

    def _note(self) -> dict[str, Any]:
        return {
            "model": digest(self.units),
            "dtypes": [str(each) for each in self.dtypes],
            "chunk": self.layout.chunk,
            "partition": self.layout.partition.value,
        }

    def _check(self, folder: Path, note: dict[str, Any]) -> None:
        for what, own in self._note().items():
            if what in ("model", "dtypes") and note[what] != own:
                raise UserError(f"{folder} holds the states of another {what.rstrip('s')}: {note[what]}, here it is {own}")
