"""Data sets: a small one lies embedded in ``data/`` and needs no network; a user's own copy takes its place.

The rule for all of them: if the environment variable REPRODUCTION_DATA names a folder that holds the data set's file
(by the same path as below ``data/``), that file is used and its checksum recorded. Else the embedded file is used, and its
checksum must be the known one. What a loader returns says which it was.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, UserError


@dataclass(frozen=True)
class Found:
    """The file of a data set.

    Attributes:
        source: where it came from, for the results: "embedded data/<file>" or "local <path>".
        sha256: checksum of the file.
    """

    path: Path
    source: str
    sha256: str


def find(file: str, sha256: str) -> Found:
    """The user's own copy of a data file, or the embedded one with this checksum.

    Raises:
        UserError: REPRODUCTION_DATA names no folder, or the embedded file is missing or not the known one.
    """
    if own := os.environ.get("REPRODUCTION_DATA"):
        if not Path(own).is_dir():
            raise UserError(f"REPRODUCTION_DATA names {own}, which is no folder; correct it or unset it to use the embedded data")
        path = Path(own).resolve() / file
        if path.is_file():
            return Found(path, f"local {path}", _checksum(path))
    path = ROOT / "data" / file
    if not path.is_file():
        raise UserError(f"the embedded data file {path} is missing; restore it from the repository (git checkout data)")
    if (found := _checksum(path)) != sha256:
        raise UserError(
            f"the embedded data file {path} has sha256 {found[:12]}… instead of {sha256[:12]}…; "
            "restore it from the repository, or put your own copy into a folder that REPRODUCTION_DATA names"
        )
    return Found(path, f"embedded data/{file}", found)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
