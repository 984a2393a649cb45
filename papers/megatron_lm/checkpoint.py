"""Distributed checkpoints: every rank of one replica writes its own shards, and any layout reads them back.

A folder holds ``step-<n>/pp<r>-tp<r>.safetensors``, each sealed with a checksum, and ``latest.json``, which is written whole
and last: a kill at any moment leaves the previous checkpoint as it was. What a killed save has left is removed by the next.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import UserError
from common.checkpoint import seal, unseal, write_whole
from papers.megatron_lm.shape import Shape, cut, join
from papers.megatron_lm.trainer import Trainer

_KIND = "megatron_lm"
_PARTS = ("weight", "first", "second")


def save(folder: Path, trainer: Trainer, step: int) -> None:
    """Write weights and optimiser as they are after ``step`` steps; called by all ranks."""
    target = folder / f"step-{step:09d}"
    if trainer.world.rank == 0:
        _tidy(folder)
        target.mkdir(parents=True, exist_ok=True)
    trainer.world.barrier()
    if trainer.dp.rank == 0:
        arrays: dict[str, np.ndarray] = {}
        for name, weight in trainer.parameters():
            held = (weight.detach(), *trainer.moments[name])
            arrays |= {f"{part}/{name}": each.cpu().numpy() for part, each in zip(_PARTS, held, strict=True)}
        seal(target / _file(trainer.pp.rank, trainer.tp.rank), _KIND, arrays, {"step": step})
    trainer.world.barrier()
    if trainer.world.rank == 0:
        layout = trainer.layout
        note = {"step": step, "pipeline": layout.pipeline, "tensor": layout.tensor, "shape": asdict(trainer.shape)}
        write_whole(folder / "latest.json", json.dumps(note).encode())
        _tidy(folder)


def load(folder: Path, trainer: Trainer) -> int:
    """Take up the last checkpoint, whatever layout wrote it; returns its step, 0 if there is none. Called by all ranks.

    Raises:
        UserError: a damaged or missing file, or one of another model.
    """
    note = _note(folder)
    if note is None:
        return 0
    if note["shape"] != asdict(trainer.shape):
        raise UserError(f"the checkpoint {folder} is of the model {note['shape']}, not of {asdict(trainer.shape)}")
    source = _Source(folder / f"step-{note['step']:09d}", note, trainer.shape)
    for name, weight in trainer.parameters():
        for part, held in zip(_PARTS, (weight.data, *trainer.moments[name]), strict=True):
            shard = cut(name, source.whole(part, name), trainer.tp.size, trainer.tp.rank)
            held.copy_(torch.from_numpy(np.ascontiguousarray(shard)))
    trainer.steps = int(note["step"])
    return trainer.steps


class _Source:
    """The files of one checkpoint, each read once."""

    def __init__(self, folder: Path, note: dict[str, Any], shape: Shape) -> None:
        self.folder, self.note, self.shape = folder, note, shape
        self.files: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def whole(self, part: str, name: str) -> np.ndarray:
        """A parameter, or a moment of it, put together from the shards of all tensor ranks."""
        for pp in range(self.note["pipeline"]):
            shards = [self._file(pp, tp).get(f"{part}/{name}") for tp in range(self.note["tensor"])]
            if all(shard is not None for shard in shards):
                return join(name, [shard for shard in shards if shard is not None], self.shape.vocabulary)
        raise UserError(f"the checkpoint {self.folder} lacks {name}")

    def _file(self, pp: int, tp: int) -> dict[str, np.ndarray]:
        if (pp, tp) not in self.files:
            path = self.folder / _file(pp, tp)
            try:
                self.files[pp, tp], _ = unseal(path, _KIND)
            except (ValueError, OSError) as error:
                raise UserError(f"the checkpoint's file {path} is damaged or missing ({error})") from error
        return self.files[pp, tp]


def _file(pp: int, tp: int) -> str:
    return f"pp{pp}-tp{tp}.safetensors"


def _note(folder: Path) -> dict[str, Any] | None:
    path = folder / "latest.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); remove the folder to start again") from error


def _tidy(folder: Path) -> None:
    """Remove what the manifest does not name."""
    note = _note(folder)
    keep = {"latest.json"} | ({f"step-{note['step']:09d}"} if note else set())
    for path in folder.iterdir() if folder.exists() else ():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
