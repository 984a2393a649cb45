"""The packed file and the files between the stages: everything comes back, nothing damaged is read."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

from common import UserError
from common.architecture import VisionTransformer
from common.checkpoint import seal
from papers.gpusq_vit import compress, sizes, store, tool
from papers.gpusq_vit.config import Config
from papers.gpusq_vit.stages import load_feature_losses, save_feature_losses

pytestmark = pytest.mark.xdist_group("gpusq_vit")
SHAPE = VisionTransformer(image=8, patch=2, channels=1, classes=10, width=16, depth=1, heads=2, hidden=32)


def made(bits, rows=6, k=20, seed=0):
    weights = np.random.default_rng(seed).standard_normal((rows, k)).astype(np.float32)
    layers = {"blocks.0.feed_forward.up": sizes.pack_float(weights, bits)}
    scales = {} if bits == 16 else {"blocks.0.feed_forward.up": 0.25}
    return store.Compressed(layers, scales, {"norm.weight": np.arange(4, dtype=np.float16)}, bits, SHAPE)


@given(bits=st.sampled_from([16, 8, 4]), rows=st.integers(0, 5), k=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_of_the_format_come_back(tmp_path_factory, bits, rows, k, seed):
    """Any stored bits: NaN and infinity among the float16 values and scales, places that point twice to one."""
    rng = np.random.default_rng(seed)
    whole = compress.filled(k, bits)

    def noise(dtype, *shape):
        return rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]

    dtype, stored = {16: (np.float16, whole // 2), 8: (np.int8, whole // 2), 4: (np.uint8, whole // 4)}[bits]
    words = -(-whole // (32 if bits == 4 else 16))
    scale = None if bits == 16 else noise(np.float16, rows)
    layer = compress.Packed(noise(dtype, rows, stored), noise(np.uint16, rows, words), scale, k, bits)
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    size = store.Compressed({"up": layer}, {"up": 0.5}, {}, bits).save(path)
    assert size == path.stat().st_size
    back = store.load(path)
    found = back.layers["up"]
    assert (found.k, found.bits, back.input_scales, back.architecture) == (k, bits, {"up": 0.5}, None)
    for mine, theirs in ((found.values, layer.values), (found.meta, layer.meta), (found.scale, layer.scale)):
        assert (mine is None and theirs is None) or mine.tobytes() == theirs.tobytes()
    with np.errstate(invalid="ignore"):
        assert found.weights().tobytes() == layer.weights().tobytes() and found.weights().shape == (rows, k)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_is_what_was_counted(tmp_path, bits):
    compressed = made(bits)
    size = compressed.save(tmp_path / "a")
    assert 0 < size - compressed.nbytes < 1500  # names, shapes, the checksum
    assert store.load(tmp_path / "a").architecture == SHAPE


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flipped") / "model.safetensors"
    made(8).save(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        back = store.load(path)
    except UserError as error:
        assert "is no whole compressed model" in str(error)
    else:  # only what says nothing: the space that fills up the header
        assert (
            back.layers["blocks.0.feed_forward.up"].weights().tobytes()
            == made(8).layers["blocks.0.feed_forward.up"].weights().tobytes()
        )


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path, cut):
    made(4).save(tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:cut])
    with pytest.raises(UserError, match="is no whole compressed model"):
        store.load(tmp_path / "a")


def test_parts_that_do_not_fit_are_refused(tmp_path):
    """With a right checksum: places of the wrong length, a scale too many, another version, and a file of something else."""
    good = made(8)
    layer = good.layers["blocks.0.feed_forward.up"]
    with pytest.raises(ValueError, match=r"20 columns of 8 bits want .*uint16.*\(6, 2\)"):
        compress.Packed(layer.values, layer.meta[:, :1], layer.scale, 20, 8)
    with pytest.raises(ValueError, match="the scale is"):
        compress.Packed(layer.values, layer.meta, layer.scale[:3], 20, 8)
    with pytest.raises(ValueError, match="weights of 5 bits"):
        compress.Packed(layer.values, layer.meta, layer.scale, 20, 5)
    arrays = {"up.values": layer.values, "up.meta": layer.meta[:, :1].copy(), "up.scale": layer.scale}

    def write(**changes):
        note = {"version": 1, "bits": 8, "columns": {"up": 20}, "architecture": None} | changes
        seal(tmp_path / "a", "sparse24", arrays, note)

    write()
    with pytest.raises(UserError, match="values and places are"):
        store.load(tmp_path / "a")
    write(version=2)
    with pytest.raises(UserError, match="of version 2, this reads version 1"):
        store.load(tmp_path / "a")
    save_file(arrays, tmp_path / "a")
    with pytest.raises(UserError, match="is no whole compressed model"):
        store.load(tmp_path / "a")
    with pytest.raises(UserError, match="is no whole compressed model"):
        store.load(tmp_path / "not there")


def test_feature_losses_pass_from_stage_to_stage(tmp_path):
    save_feature_losses(tmp_path, np.array([0.1, 1 / 3]))
    assert load_feature_losses(tmp_path, 2).tolist() == [0.1, 1 / 3]
    with pytest.raises(UserError, match="wanted 3 losses"):
        load_feature_losses(tmp_path, 3)
    (tmp_path / "feature_losses.json").write_text("{}")
    with pytest.raises(UserError, match="is no file of feature losses"):
        load_feature_losses(tmp_path, 2)


def test_the_second_stage_asks_for_the_first(tmp_path, capsys):
    assert tool.main(["quantize", str(tmp_path), "--preset", "smoke"]) == 2
    said = capsys.readouterr().err
    assert "feature_losses.json is missing" in said
    assert f"python -m papers.gpusq_vit.tool prune {tmp_path}" in said


@pytest.mark.slow
def test_the_stages_by_hand(tmp_path, capsys):
    for step in ("prune", "quantize", "evaluate"):
        assert tool.main([step, str(tmp_path), "--preset", "smoke", "--bits", "4"]) == 0
    said = capsys.readouterr().out
    quantised, packed = (float(said.partition(word)[2].partition("%")[0]) for word in ("quantised:", "packed file:"))
    assert abs(quantised - packed) < 1


def test_bad_options():
    with pytest.raises(ValueError, match="trials is 1; wanted two or more"):
        Config(trials=1)
    with pytest.raises(ValueError, match=r"critical is 0\.0; wanted a share"):
        Config(critical=0.0)
