"""Named arrays with a note as one safetensors file: written whole or not at all, refused when damaged.

Files of a paper's own format and the checkpoints of a run are sealed alike: one note of the file's kind, and a checksum of
note and arrays.
"""

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


def seal(path: Path, kind: str, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> int:
    """Write arrays and a note (JSON values) as a file of that kind; the same content gives the same bytes.

    Returns:
        bytes of the file.
    """
    from safetensors.numpy import save

    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(dict(note), sort_keys=True)
    # One entry alone: safetensors keeps several in no order.
    content = save(whole, {kind: json.dumps({"note": text, "sha256": _digest(whole, text)}, sort_keys=True)})
    write_whole(path, content)
    return len(content)


def unseal(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and note of a file that :func:`seal` has written.

    Raises:
        ValueError: it is damaged, cut short, or of another kind; in words that fit behind "the file is no ... (".
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            known = json.loads((file.metadata() or {})[kind])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(arrays, known["note"]) != known["sha256"]:
            raise ValueError("its checksum does not fit its content")
        return arrays, json.loads(known["note"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Checkpoint:
    """One file of arrays. Its path carries a key of everything that the arrays depend on, so what loads always fits."""

    path: Path

    def save(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
        """Replace the file by these arrays; a kill at any moment leaves the old one or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        seal(self.path, "checkpoint", arrays, meta or {})

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """(arrays, meta), or None if nothing was saved. A damaged file is an error, never a silent fresh start."""
        if not self.path.exists():
            return None
        try:
            return unseal(self.path, "checkpoint")
        except (ValueError, OSError) as error:
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


def _digest(arrays: Mapping[str, np.ndarray], note: str) -> str:
    whole = hashlib.sha256(note.encode())
    for name in sorted(arrays):
        whole.update(f"\0{name} {arrays[name].dtype} {arrays[name].shape}\0".encode())
        # As bytes: NumPy's buffers do not know bfloat16.
        whole.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()
