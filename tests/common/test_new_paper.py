"""A new paper starts whole: every file is there, valid, and says where the author must write."""

import ast
import json

import pytest

from common import UserError, ledger
from common.new_paper.__main__ import write


def test_files_are_whole(tmp_path):
    written = {str(path.relative_to(tmp_path)) for path in write("demo_paper", tmp_path)}
    room = {f"papers/demo_paper/{name}" for name in ("__init__.py", "config.py", "reproduce.py", "expected.yaml", "README.md")}
    assert written == room | {"notebooks/demo_paper.ipynb", "tests/papers/test_demo_paper.py"}
    for name in written:
        text = (tmp_path / name).read_text()
        assert "$" not in text, name
        if name.endswith(".py"):
            ast.parse(text)
    assert ledger.read(tmp_path / "papers/demo_paper/expected.yaml").claims[0].control == {"mechanism": False}
    cells = json.loads((tmp_path / "notebooks/demo_paper.ipynb").read_text())["cells"]
    headings = [cell["source"][0] for cell in cells if cell["source"] and cell["source"][0].startswith("## ")]
    assert [heading[:5] for heading in headings] == [f"## {i}." for i in range(1, 9)]


@pytest.mark.parametrize("name", ["Demo", "demo-paper", "demo__paper", "1demo", "", "../demo"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="no package name"):
        write(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    write("demo", tmp_path)
    (tmp_path / "papers/demo/README.md").write_text("mine")
    with pytest.raises(UserError, match="papers/demo exists already"):
        write("demo", tmp_path)
    assert (tmp_path / "papers/demo/README.md").read_text() == "mine"
