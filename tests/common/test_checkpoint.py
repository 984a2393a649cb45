import numpy as np
import pytest

from common import UserError
from common.checkpoint import Checkpoint, write_whole


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
