"""The embedded text is the known one, a user's own takes its place, and its parts do not overlap."""

import hashlib
import lzma
import shutil

import numpy as np
import pytest

import common.data
from common import ROOT, UserError
from common.data import text

NAME = "text/king_james.txt.xz"
FILE = ROOT / "data" / NAME


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("REPRODUCTION_DATA", raising=False)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's folder with a copy of the file."""
    (tmp_path / "text").mkdir()
    monkeypatch.setenv("REPRODUCTION_DATA", str(tmp_path))
    return shutil.copy(FILE, tmp_path / NAME)


def test_the_embedded_text():
    bible = text.king_james()
    assert len(bible.whole) == 4_139_401 and bible.whole.max() < 128
    assert bible.whole.tobytes().count(b"\n= ") + 1 == 66
    assert bible.source == "embedded data/text/king_james.txt.xz"
    assert bible.sha256 == hashlib.sha256(FILE.read_bytes()).hexdigest()


def test_the_split_is_by_whole_books():
    bible = text.king_james()
    train, held_out = bible.train.tobytes(), bible.held_out.tobytes()
    assert 0.05 < len(held_out) / len(bible.whole) < 0.08
    assert len(train) + len(held_out) == len(bible.whole)
    books = [line.decode()[2:] for line in held_out.split(b"\n") if line.startswith(b"= ")]
    assert books == list(text.HELD_OUT)
    assert train.count(b"\n= ") + 1 + len(books) == 66
    assert b"Vanity of vanities, saith the Preacher" in held_out and b"Vanity of vanities, saith the Preacher" not in train
    assert train.startswith(b"= Genesis\n\nIn the beginning God created")
    assert train.endswith(b"Amen.\n") and b"= 1 John\n" in train


def test_the_source_is_split_by_whole_modules():
    source = text.python_source()
    assert len(source.train) + len(source.held_out) == len(source.whole) == 2_556_268 and source.whole.max() < 128
    heads = [line.decode()[5:] for line in source.held_out.tobytes().split(b"\n") if line.startswith(b"# == ")]
    assert heads == list(text.HELD_OUT_MODULES)
    assert source.train.tobytes().startswith(b"# == _collections_abc.py\n")
    assert 0.05 < len(source.held_out) / len(source.whole) < 0.08


def test_another_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(common.data, "ROOT", tmp_path)
    with pytest.raises(UserError, match="is missing"):
        text.king_james()
    (tmp_path / "data" / "text").mkdir(parents=True)
    damaged = bytearray(FILE.read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "data" / NAME).write_bytes(damaged)
    with pytest.raises(UserError, match="instead of 0ea4fdd8d811"):
        text.king_james()


def test_an_own_copy_is_used_and_named(own):
    content = b"".join(b"= %s\n\nA verse.\n" % name.encode() for name in ("Genesis", *text.HELD_OUT))
    own.write_bytes(lzma.compress(content))
    bible = text.king_james()
    assert bible.source == f"local {own}" and bible.sha256 == hashlib.sha256(own.read_bytes()).hexdigest()
    assert bible.train.tobytes() == b"= Genesis\n\nA verse.\n"


def test_no_byte_of_an_own_copy_is_lost(own):
    """Neither a preface nor the second of two books with one name."""
    names = ("Genesis", "Genesis", *text.HELD_OUT)
    own.write_bytes(lzma.compress(b"A preface.\n\n" + b"".join(b"= %s\n\nA verse.\n" % name.encode() for name in names)))
    bible = text.king_james()
    assert len(bible.train) + len(bible.held_out) == len(bible.whole)
    assert bible.train.tobytes() == b"A preface.\n\n" + 2 * b"= Genesis\n\nA verse.\n"


def test_a_folder_without_the_file_leaves_the_embedded_one(own):
    own.unlink()
    assert text.king_james().source.startswith("embedded")


def test_bad_own_copies_are_refused_in_one_sentence(own, monkeypatch):
    for content in (b"= Genesis\n\nA verse.\n", b"hello", b"= G\xe9n\xe8se\n"):
        own.write_bytes(lzma.compress(content))
        with pytest.raises(UserError, match="has no part 'Ruth' \\('= Ruth' on a line\\)"):
            text.king_james()
    own.write_bytes(FILE.read_bytes()[:5000])
    with pytest.raises(UserError, match="is no whole xz file"):
        text.king_james()
    monkeypatch.setenv("REPRODUCTION_DATA", str(own.parent / "nowhere"))
    with pytest.raises(UserError, match="nowhere, which is no folder"):
        text.king_james()


def test_a_batch_depends_on_seed_and_step_alone():
    some = np.arange(100, dtype=np.uint8)
    at = text.batches(some, 4, 9, seed=1)
    batch = at(7)
    assert batch.shape == (4, 10) and batch.dtype == np.int64
    assert (np.diff(batch) == 1).all()
    at(3)
    assert np.array_equal(batch, text.batches(some, 4, 9, seed=1)(7))
    assert not np.array_equal(batch, at(8)) and not np.array_equal(batch, text.batches(some, 4, 9, seed=2)(7))
    starts = {int(row[0]) for step in range(200) for row in at(step)}
    assert starts == set(range(91)), "every window is drawn, the last one too"
    with pytest.raises(ValueError, match="windows of 100 \\+ 1 bytes need a longer text than 100 bytes"):
        text.batches(some, 4, 100, seed=1)


def test_windows_have_every_byte_as_target_once():
    some = np.arange(98, dtype=np.uint8)
    found = list(text.windows(some, 4, 9))
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert np.concatenate([batch[:, 1:].ravel() for batch in found]).tolist() == list(range(1, 91))
    assert all((batch[:, 1:] == batch[:, :-1] + 1).all() for batch in found)
