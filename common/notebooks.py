"""Execute notebooks: ``nox -s notebooks -- [--update] [slug ...]``. Without --update the files stay as they are."""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from common import ROOT, UserError

LIMIT = 300_000
"""Bytes of a notebook with its outputs."""


def execute(path: Path, timeout: int = 300) -> Any:
    """The notebook with fresh outputs; a cell that raises is raised here, with its text. Writes nothing."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    for cell in notebook.cells:
        # Times of execution would make every update a change.
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(picture: str) -> str:
    """The PNG in 128 colours: a third of the size, and figures of lines and fields look the same."""
    whole = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(128).save(whole, "png", optimize=True)
    return base64.b64encode(whole.getvalue()).decode() + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s notebooks --", description=__doc__)
    parser.add_argument("slugs", nargs="*", help="notebooks by name; all if none is given")
    parser.add_argument("--update", action="store_true", help="rewrite the outputs in place")
    options = parser.parse_args(arguments)
    known = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    try:
        if unknown := [slug for slug in options.slugs if slug not in known]:
            raise UserError(f"there is no notebook {unknown[0]!r}; there are {', '.join(known) or 'none'}")
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        for slug in options.slugs or known:
            _one(known[slug], options.update)
    except UserError as error:
        print(f"notebooks: {error}", file=sys.stderr)
        return 2
    return 0


def _one(path: Path, update: bool) -> None:
    import nbformat

    start = time.perf_counter()
    text = nbformat.writes(execute(path))
    if len(text) > LIMIT:
        raise UserError(
            f"{path.name} has {len(text):,} bytes with its outputs, {LIMIT:,} are allowed; draw fewer or smaller figures"
        )
    if update:
        path.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
    print(f"{path.stem}: {time.perf_counter() - start:.1f} s, {len(text) / 1000:.0f} kB{', rewritten' if update else ''}")


if __name__ == "__main__":
    raise SystemExit(main())
