"""Every notebook runs from top to bottom at preset smoke and stays small."""

import pytest

from common import ROOT
from common.notebooks import LIMIT, execute


@pytest.mark.parametrize("slug", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebook_runs(slug, monkeypatch):
    path = ROOT / "notebooks" / f"{slug}.ipynb"
    assert path.stat().st_size <= LIMIT
    monkeypatch.setenv("PRESET", "smoke")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    execute(path)
