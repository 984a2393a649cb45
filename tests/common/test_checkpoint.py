import ml_dtypes
import numpy as np
import pytest

from common import UserError
from common.checkpoint import Checkpoint, seal, unseal, write_whole


def test_round_trip(tmp_path):
    saved = Checkpoint(tmp_path / "deep" / "a.safetensors")
    assert saved.load() is None
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "step": np.array(3), "empty": np.zeros((0, 2))}
    saved.save(arrays, {"note": [1, "two"]})
    found, meta = saved.load()
    assert meta == {"note": [1, "two"]}
    assert all(np.array_equal(found[name], arrays[name]) and found[name].dtype == arrays[name].dtype for name in arrays)
    assert [path.name for path in saved.path.parent.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damage_is_refused(tmp_path, damage):
    saved = Checkpoint(tmp_path / "a.safetensors")
    saved.save({"w": np.ones(1000)})
    content = bytearray(saved.path.read_bytes())
    if damage == "flip":
        content[-17] ^= 1
    saved.path.write_bytes({"flip": content, "cut": content[:-100], "empty": b""}[damage])
    with pytest.raises(UserError, match=r"damaged.*delete it"):
        saved.load()


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_sealed_file_is_the_same_bytes_each_time_and_of_one_kind(tmp_path):
    arrays = {"b": np.arange(3, dtype=ml_dtypes.bfloat16), "a": np.float32(2.5), "none": np.zeros((0, 4), np.int8)}
    assert seal(tmp_path / "x", "tables", arrays, {"n": 1, "m": [2]}) == (tmp_path / "x").stat().st_size
    seal(tmp_path / "y", "tables", dict(reversed(arrays.items())), {"m": [2], "n": 1})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    found, note = unseal(tmp_path / "x", "tables")
    assert note == {"n": 1, "m": [2]}
    assert all(np.array_equal(found[name], arrays[name]) and found[name].dtype == arrays[name].dtype for name in arrays)
    with pytest.raises(ValueError, match="chairs"):
        unseal(tmp_path / "x", "chairs")
    # The note is under the checksum too.
    (tmp_path / "x").write_bytes((tmp_path / "y").read_bytes().replace(b'n\\\\\\": 1', b'n\\\\\\": 2'))
    assert (tmp_path / "x").read_bytes() != (tmp_path / "y").read_bytes()
    with pytest.raises(ValueError, match="checksum does not fit"):
        unseal(tmp_path / "x", "tables")
