"""Write the files of a new paper from the templates beside this file."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from string import Template
from typing import Any

from common import ROOT, UserError

TEMPLATES = Path(__file__).parent / "templates"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s new-paper --", description="Write the files of a new paper.")
    parser.add_argument("slug", help="name of the package: lower case, words joined by underscores, such as flash_attention")
    options = parser.parse_args(arguments)
    try:
        written = write(options.slug, ROOT)
    except UserError as error:
        print(f"new-paper: {error}", file=sys.stderr)
        return 2
    print("wrote", *(f"  {path.relative_to(ROOT)}" for path in written), sep="\n")
    print(f"now: nox -s tests -- -k {options.slug}   (red where you must write; CONTRIBUTING.md, 'Add a paper')")
    return 0


def write(slug: str, root: Path) -> list[Path]:
    """Write all files below ``root`` and return their paths; on any failure nothing stays behind."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", slug):
        raise UserError(f"{slug!r} is no package name; wanted lower-case words joined by underscores, such as flash_attention")
    room = root / "papers" / slug
    targets = {
        "notebook.ipynb": root / "notebooks" / f"{slug}.ipynb",
        "test.py": root / "tests" / "papers" / f"test_{slug}.py",
    }
    sources = sorted(TEMPLATES.iterdir())
    paths = [targets.get(source.stem, room / source.stem) for source in sources]
    if taken := [path for path in (room, *paths) if path.exists()]:
        raise UserError(f"{taken[0].relative_to(root)} exists already; choose another name or remove it")
    try:
        for source, path in zip(sources, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = Template(source.read_text(encoding="utf-8")).substitute(slug=slug, session=slug.replace("_", "-"))
            path.write_text(_notebook(text) if source.stem == "notebook.ipynb" else text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(room, ignore_errors=True)
        for path in targets.values():
            path.unlink(missing_ok=True)
        raise
    return paths


def _notebook(text: str) -> str:
    """A notebook from cells that are divided by lines of ``%% markdown`` or ``%% code``."""
    cells = []
    parts = re.split(r"^%% (markdown|code)\n", text, flags=re.MULTILINE)[1:]
    for number, (kind, source) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{number:02d}",
            "metadata": {},
            "source": source.strip().splitlines(keepends=True),
        }
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
