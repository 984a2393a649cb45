"""Checkpoints of a run: named arrays with a note, written whole or not at all, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError


@dataclass(frozen=True)
class Checkpoint:
    """One file of arrays. Its path carries a key of everything that the arrays depend on, so what loads always fits."""

    path: Path

    def save(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
        """Replace the file by these arrays; a kill at any moment leaves the old one or the new one."""
        from safetensors.numpy import save

        whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        note = {"meta": json.dumps(dict(meta or {})), "sha256": _digest(whole)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, save(whole, metadata=note))

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """(arrays, meta), or None if nothing was saved. A damaged file is an error, never a silent fresh start."""
        if not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                note = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if note.get("sha256") != _digest(arrays):
                raise ValueError("its checksum does not fit its content")
            return arrays, json.loads(note["meta"])
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            raise UserError(f"the checkpoint {self.path} is damaged ({error}); delete it to start again") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that no reader and no kill ever sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        whole.update(np.asarray(arrays[name], order="C").tobytes())
    return whole.hexdigest()
