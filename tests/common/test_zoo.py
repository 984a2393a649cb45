"""The zoo: frozen files, the same function in both frameworks, trained past n-grams, and trained anew."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import common.data
from common import ROOT, UserError, zoo
from common.agreement import relative_error
from common.architecture import Transformer
from common.data import text
from common.data.digits import digits
from common.data.photo_patches import photo_patches
from common.models import transformer_jax, transformer_torch, vision_torch
from common.training import bits_per_byte, torch_loop
from common.zoo import baselines
from common.zoo.recipes import RECIPES

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("zoo")


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("REPRODUCTION_DATA", raising=False)


def test_every_recipe_is_frozen_within_its_band():
    assert set(zoo.names()) == set(RECIPES)
    for name, recipe in RECIPES.items():
        found = zoo.load(name).quality
        assert recipe.band[0] <= found["quality"] <= recipe.band[1], name
        assert found["metric"] == recipe.metric and found["steps"] == recipe.steps
    files = list((ROOT / "data" / "zoo").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 30e6


def test_a_flipped_byte_is_refused(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "data" / "zoo", tmp_path / "data" / "zoo")
    path = tmp_path / "data" / "zoo" / "byte_lm_draft.v1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(common.data, "ROOT", tmp_path)
    with pytest.raises(UserError, match=r"byte_lm_draft\.v1\.safetensors has sha256"):
        zoo.load("byte_lm_draft.v1")
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        zoo.load("byte_lm_draft.v1")


def test_unknown_and_broken_models_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"the zoo has no model .byte_lm\.v9.; it has byte_lm\.v1, "):
        zoo.load("byte_lm.v9")
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "byte_lm_draft.v1.safetensors").write_bytes(b"no safetensors")
    monkeypatch.setenv("REPRODUCTION_DATA", str(tmp_path))
    with pytest.raises(UserError, match="is no safetensors file"):
        zoo.load("byte_lm_draft.v1")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_both_frameworks_compute_the_same(name):
    model, rng = zoo.load(name), np.random.default_rng(0)
    if isinstance(model.architecture, Transformer):
        some = text.king_james().held_out[: 2 * 48].astype(np.int64).reshape(2, 48)
    else:
        side = 8 if name.startswith("digits") else 32
        some = rng.random((2, side, side, 1 if side == 8 else 3)).astype(np.float32)
    with torch.no_grad():
        want = model.torch()(torch.from_numpy(some)).numpy()
    got = np.asarray(jax.jit(model.jax())(jnp.asarray(some)))
    assert relative_error(got, want) < 2e-5  # some ten layers of float32


def test_decoding_gives_the_same_bytes_over_2000_greedy_steps():
    model = zoo.load("byte_lm.v1")
    ours, theirs = model.torch(), model.jax()
    held = text.king_james().held_out
    starts = np.linspace(0, len(held) - 64, 5).astype(int)
    prompts = held[starts[:, None] + np.arange(64)].astype(np.int64)
    want = transformer_torch.generate(ours, torch.from_numpy(prompts), 400).numpy()
    got = np.asarray(transformer_jax.generate(theirs, jnp.asarray(prompts), 400))
    assert want.shape == (5, 400) and np.array_equal(got, want)


def test_language_models_are_past_ngrams_and_compressors():
    """On a part of the held-out text here; on all of it in the index."""
    bible = text.king_james()
    part = bible.held_out[:40_000]
    ngram = baselines.ngram_bits(bible.train, part, order=5)
    model = zoo.load("byte_lm.v1").torch()
    found = bits_per_byte(torch_loop.evaluate(model, itertools.islice(text.windows(part, 16, 512), 4)))
    assert found < 0.93 * ngram
    assert ngram < min(baselines.compressor_bits(bible.train[-400_000:], part).values())


def test_classifiers_are_as_good_as_they_say():
    images = digits()
    model = zoo.load("digits_vit.v1")
    found = vision_torch.accuracy(model.torch(), torch.from_numpy(images.test), torch.from_numpy(images.test_labels))
    assert found == pytest.approx(model.quality["quality"], abs=0.003) and found >= 0.97
    images, model = photo_patches(train=8, test=64), zoo.load("photo_cnn.v1")
    found = vision_torch.accuracy(model.torch(), torch.from_numpy(images.test), torch.from_numpy(images.test_labels))
    assert found == pytest.approx(model.quality["quality"], abs=0.03)


def test_experts_are_all_used():
    use = np.array(zoo.load("byte_lm_moe.v1").quality["expert_use"])
    architecture = RECIPES["byte_lm_moe.v1"].architecture
    assert use.shape == (architecture.depth, architecture.experts)
    assert np.allclose(use.sum(1), 1, atol=1e-3) and use.min() > 0.02


def test_balance_loss_is_one_when_all_are_used_alike_and_the_same_in_both():
    even = np.full((8, 4), 0.25), np.arange(16).reshape(8, 2) % 4
    uneven = np.eye(4)[np.zeros(8, int)], np.zeros((8, 2), int)
    for (probabilities, chosen), want in ((even, 1.0), (uneven, 4.0)):
        ours = transformer_torch.balance_loss(
            [transformer_torch.Route(torch.from_numpy(probabilities), torch.from_numpy(chosen))]
        )
        theirs = transformer_jax.balance_loss([transformer_jax.Route(jnp.asarray(probabilities), jnp.asarray(chosen))])
        assert ours.item() == pytest.approx(want) and float(theirs) == pytest.approx(want)


def train(folder, *words):
    command = [sys.executable, "-m", "common.zoo.train", *words, "--folder", str(folder)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "REPRODUCTION_OUTPUTS": str(folder)}
    )


def test_a_short_training_improves(tmp_path):
    done = train(tmp_path, "byte_lm_draft.v1", "--seconds", "6")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "byte_lm_draft.v1.json").read_text())
    assert found["before"] == pytest.approx(8, abs=0.1) and found["quality"] < found["before"] - 0.3
    assert zoo.read(tmp_path / "byte_lm_draft.v1.safetensors").keys() == zoo.load("byte_lm_draft.v1").weights.keys()
    again = train(tmp_path, "byte_lm_draft.v1", "--freeze")
    assert again.returncode == 2 and "frozen already" in again.stderr
    assert train(tmp_path, "byte_lm.v7").returncode == 2


def test_ngrams_by_hand():
    """Two letters: after a train text of a and b in turn, an order-1 model is nearly sure; order 0 is not."""
    turn = np.frombuffer(b"ab" * 500, np.uint8)
    assert baselines.ngram_bits(turn, turn[:100], order=1) < 0.05
    assert 0.9 < baselines.ngram_bits(turn, turn[:100], order=0) < 1.1


@settings(max_examples=6)
@given(st.binary(min_size=8, max_size=60), st.integers(0, 3))
def test_ngram_probabilities_sum_to_one(content, order):
    """Over all 256 bytes that could follow a context that ends the text."""
    train = np.frombuffer(content, np.uint8)
    head = train[len(train) - order :] if order else train[:0]
    rows = [np.append(head, np.uint8(byte)) for byte in range(256)]
    total = sum(2 ** -baselines.ngram_bits(train, row, order) for row in rows)
    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("order", "size", "message"), [(7, 100, "order is from 0 to 6, not 7"), (5, 4, "order 5 needs texts longer than 6 bytes")]
)
def test_ngrams_refuse_what_they_cannot(order, size, message):
    some = np.zeros(size, np.uint8)
    with pytest.raises(ValueError, match=message):
        baselines.ngram_bits(some, some, order)
