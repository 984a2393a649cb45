"""The simulation, the engine, the file and the guard."""

import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from common import UserError, hardware, zoo
from common.architecture import VisionTransformer
from common.data.digits import digits
from common.models.weights import initial_weights
from common.training import jax_loop, torch_loop
from kernels.gemm_int8 import dyadic
from papers.i_vit import baselines, cost, engine, errors, guard, minilm, model_jax, model_torch, network, store
from papers.i_vit.convert import convert_vit, dropped
from papers.i_vit.simulation import Codes, Options, Simulation
from papers.i_vit.straight import dyadic_parts, power_of_two

pytestmark = pytest.mark.xdist_group("i_vit")

SMALL = VisionTransformer(image=8, patch=4, channels=1, classes=10, width=16, depth=1, heads=2, hidden=32)


def small_weights(seed=3, architecture=SMALL):
    rng = np.random.default_rng(seed)
    weights = initial_weights(architecture, seed)
    return {
        n: a * 8 if a.ndim == 2 else a + rng.normal(0, 0.1, a.shape) for n, a in weights.items()
    }  # fmt: skip


def calibrated(weights=None, options=None, architecture=SMALL):
    model = model_torch.QuantisedViT(
        architecture, weights or small_weights(architecture=architecture), options or Options(default=(16, False))
    )
    model.train()
    with torch.no_grad():
        model(torch.from_numpy(digits().train[:32]))
    return model.eval()


@pytest.fixture(scope="module")
def exported():
    return calibrated().convert()


@given(st.lists(st.floats(1e-18, 1e8), min_size=1, max_size=6))
def test_simulated_factors_are_the_kernels(ratios):
    m, e = dyadic(ratios)
    for make in (np.array, lambda r: torch.tensor(r, dtype=torch.float64)):
        found = dyadic_parts(make(ratios))
        assert np.array_equal(np.asarray(found[0]), m)
        assert np.array_equal(np.asarray(found[1]), e)


def test_powers_of_two_are_exact():
    k = np.arange(-62.0, 63.0)
    assert np.array_equal(power_of_two(k), np.ldexp(1.0, k.astype(int)))
    with jax.enable_x64(True):
        assert np.array_equal(np.asarray(power_of_two(jnp.asarray(k))), np.ldexp(1.0, k.astype(int)))


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=20), st.floats(0.01, 4), st.sampled_from([8, 16]))
def test_quantiser_stays_in_its_range_and_within_half_a_step(values, most, bits):
    a = Simulation({}, ["x"], np.array([[-most, most]]))
    x = np.array(values)
    q, scale = a.input("x", x, bits)
    assert q.min() >= -(2 ** (bits - 1))
    assert q.max() <= 2 ** (bits - 1) - 1
    inside = np.abs(x) <= most
    assert np.all(np.abs(q * scale - x)[inside] <= scale / 2 * (1 + 1e-9))


@settings(max_examples=6)
@given(st.integers(0, 1000), st.sampled_from([(12, False), (16, False), (40, True)]), st.sampled_from([8, 16]))
def test_engine_computes_what_the_simulation_does(seed, gelu, bits):
    model = calibrated(small_weights(seed), Options(default=gelu, softmax_bits=bits))
    images = digits().test[:16]
    with torch.no_grad():
        want, _ = model.codes(torch.from_numpy(images))
    out = model.convert()
    got = engine.run(out.torch(), out.notes, torch.from_numpy(out.quantise(images)))
    assert got.dtype == torch.int32
    assert torch.equal(got.double(), want)


def test_both_frameworks_train_alike_and_export_the_same_file(tmp_path):
    data, weights, options = digits(), small_weights(), Options(default=(16, False))
    batches = [(data.train[i : i + 16].astype(np.float64), data.train_labels[i : i + 16]) for i in (0, 16, 32)]
    mine = model_torch.QuantisedViT(SMALL, weights, options)
    from common.models.vision_torch import classification_loss

    losses = torch_loop.train(mine, classification_loss, batches.__getitem__, torch_loop.adamw(mine, 1e-4, 1e-4), 3).losses
    with jax.enable_x64(True):
        theirs = model_jax.QuantisedViT(SMALL, weights, options)
        found = jax_loop.train(theirs, model_jax.classification_loss, batches.__getitem__, jax_loop.adamw(1e-4, 1e-4), 3).losses
        theirs.eval()
        written = theirs.convert()
    mine.eval()
    assert np.abs(found / losses - 1).max() < 1e-9
    assert np.abs(np.asarray(theirs.ranges[...]) - mine.ranges.numpy()).max() < 1e-9
    want = mine.convert()
    assert all(np.array_equal(written.arrays[name], array) for name, array in want.arrays.items())
    codes = want.quantise(data.test[:8])
    # What JAX wrote runs in PyTorch's engine, and the other way round, with the same bits.
    written.save(tmp_path / "jax.safetensors")
    want.save(tmp_path / "torch.safetensors")
    from_jax, from_torch = store.load(tmp_path / "jax.safetensors"), store.load(tmp_path / "torch.safetensors")
    run = jax.jit(lambda arrays, codes: engine.run(arrays, from_torch.notes, codes))
    logits = [
        engine.run(from_jax.torch(), from_jax.notes, torch.from_numpy(codes)).numpy(),
        np.asarray(run(from_torch.jax(), jnp.asarray(codes))),
    ]
    assert np.array_equal(*logits)
    with torch.no_grad():
        assert np.array_equal(mine.codes(torch.from_numpy(data.test[:8]))[0].numpy(), logits[0])


def test_gradients_point_where_the_float_models_do():
    trained, data = zoo.load("digits_vit.v1"), digits()
    images, labels = torch.from_numpy(data.train[:32]), torch.from_numpy(data.train_labels[:32])
    model = model_torch.QuantisedViT(trained.architecture, trained.weights, Options(default=(16, False)))
    model.train()
    float_model = trained.torch().double()
    for each, x in ((model, images), (float_model, images.double())):
        # The largest logits lie far apart; a softer loss has more of a gradient.
        torch.nn.functional.cross_entropy(each(x) / 8, labels).backward()
    mine, theirs = dict(model.vit.named_parameters()), dict(float_model.named_parameters())
    for name in (
        "blocks.0.attention.query.weight",
        "blocks.2.feed_forward.up.weight",
        "blocks.1.attention_norm.weight",
        "positions",
    ):
        assert torch.nn.functional.cosine_similarity(mine[name].grad.flatten(), theirs[name].grad.flatten(), dim=0) > 0.8, name


def test_float32_cannot_hold_the_integers():
    trained, images = zoo.load("digits_vit.v1"), torch.from_numpy(digits().test[:32])
    model = calibrated(trained.weights, architecture=trained.architecture)
    single = model_torch.QuantisedViT(trained.architecture, trained.weights, model.options, torch.float32).eval()
    single.ranges = model.ranges.float()
    with torch.no_grad():
        # A few steps off somewhere, and hardly a logit is the same.
        assert (single.codes(images)[0].double() != model.codes(images)[0]).double().mean() > 0.5


def test_file_is_whole_or_refused(tmp_path, exported):
    path = tmp_path / "net.safetensors"
    exported.save(path)
    back = store.load(path)
    assert back.notes == exported.notes
    assert {n: a.tobytes() for n, a in back.arrays.items()} == {n: a.tobytes() for n, a in exported.arrays.items()}
    whole = path.read_bytes()
    for place in (len(whole) - 5, whole.index(b"unit") + 8):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no whole file of an integer network"):
            store.load(path)
    path.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="export it again"):
        store.load(path)
    dataclasses.replace(exported, arrays={**exported.arrays, "extra": np.ones(2, np.float32)}).save(path)
    with pytest.raises(UserError, match="extra is float32, not an integer"):
        store.load(path)


def test_file_holds_its_bytes(tmp_path, exported):
    assert exported.nbytes == cost.exported_bytes(SMALL)
    exported.save(tmp_path / "net.safetensors")
    header = (tmp_path / "net.safetensors").stat().st_size - exported.nbytes
    assert 0 < header < 12_000


def test_guard_passes_integers(exported):
    codes = np.zeros((1, 8, 8, 1), np.int8)

    def run(arrays, codes):
        return engine.run(arrays, exported.notes, codes)

    assert guard.floats_jax(run, exported.jax(), jnp.asarray(codes)) == []
    assert guard.floats_torch(run, exported.torch(), torch.from_numpy(codes)) == []
    # Integers all the way, and none that are made of nothing: weights and inputs are seen.
    assert guard.operations(run, exported.jax(), jnp.asarray(codes)) > 100


@pytest.mark.parametrize("kind", ["value", "constant", "number"])
def test_guard_finds_a_float(kind, exported):
    def fault(q):
        if kind == "value":
            return (q.float() * 0.5).to(q.dtype) if isinstance(q, torch.Tensor) else (q.astype(jnp.float32) * 0.5).astype(q.dtype)
        if kind == "constant":
            half = torch.tensor([0.5]) if isinstance(q, torch.Tensor) else jnp.array([0.5])
            return q + (half.to(q.dtype) if isinstance(q, torch.Tensor) else half.astype(q.dtype))
        # A number that is not whole, hidden in a loop of an inner function.
        if isinstance(q, torch.Tensor):
            return torch.clamp(q, max=1e9)
        return jax.lax.fori_loop(0, 2, lambda _, x: jax.jit(lambda x: (x * 1.5).astype(x.dtype))(x), q)

    codes = np.zeros((1, 8, 8, 1), np.int8)

    def run(arrays, codes, fault=None):
        return engine.run(arrays, exported.notes, codes, fault)

    for found in (
        guard.floats_jax(lambda a, c: run(a, c, fault), exported.jax(), jnp.asarray(codes)),
        guard.floats_torch(lambda a, c: run(a, c, fault), exported.torch(), torch.from_numpy(codes)),
    ):
        assert found


def test_guard_looks_into_branches():
    @jax.jit
    def hidden(x):
        return jax.lax.cond(x[0] > 0, lambda x: x, lambda x: (x.astype(jnp.float16) + 1).astype(x.dtype), x)

    assert guard.floats_jax(hidden, jnp.ones(2, jnp.int32))


def test_bad_input():
    model = model_torch.QuantisedViT(SMALL, small_weights()).eval()
    images = torch.from_numpy(digits().test[:2])
    with pytest.raises(RuntimeError, match=r"input has seen no data .* calibrate"):
        model(images)
    with pytest.raises(RuntimeError, match="calibrate"):
        model.convert()
    weights = small_weights()
    weights["blocks.0.attention_norm.weight"][5] = 0
    with pytest.raises(ValueError, match=r"blocks.0.attention_norm.weight is 0 in channel 5"):
        model_torch.QuantisedViT(SMALL, weights)
    ranges = calibrated().ranges.numpy().copy()
    ranges[2] = np.nan
    with pytest.raises(ValueError, match=r"embedding: its range is .*finite number above 0"):
        convert_vit(small_weights(), ranges, SMALL, Options())
    with pytest.raises(ValueError, match="the weights lack"):
        model_torch.QuantisedViT(SMALL, {n: a for n, a in small_weights().items() if n != "head.bias"})


def test_a_norm_with_a_small_weight_drops_bits():
    weights = small_weights()
    weights["norm.weight"][3], weights["norm.bias"][3] = 1e-3, 0.2
    with pytest.raises(OverflowError, match=r"norm.bias reaches from .*pass dropped"):
        calibrated(weights).convert()
    bits = dropped(weights)
    assert bits == {"blocks.0.attention_norm": 0, "blocks.0.feed_forward_norm": 0, "norm": bits["norm"]}
    assert bits["norm"] >= 4
    model = calibrated(weights, Options(default=(16, False), dropped=bits))
    out, images = model.convert(), digits().test[:8]
    with torch.no_grad():
        want = model.codes(torch.from_numpy(images))[0]
    assert torch.equal(engine.run(out.torch(), out.notes, torch.from_numpy(out.quantise(images))).double(), want)


def test_each_layer_can_stay_in_floating_point():
    model = calibrated()
    images = torch.from_numpy(digits().test[:64])
    with torch.no_grad():
        want = model(images)
        for name in ("softmax", "gelu", "norm"):
            model.options = dataclasses.replace(model.options, floats=frozenset({name}))
            found = model(images)
            assert not torch.equal(found, want), name
            assert (found - want).norm() / want.norm() < 0.2, name


def test_chosen_n():
    assert errors.choose_n(12 / 127) == (40, True)
    n, wide = errors.choose_n(6 / 127)
    assert not wide
    assert errors.gelu_error(6 / 127, n) <= min(errors.gelu_error(6 / 127, other) for other in errors.CHOICES)
    assert errors.gelu_error(1 / 127, 24) == np.inf


def test_baselines_are_near_the_functions():
    from scipy.special import ndtr

    x, scale = np.arange(-127, 128), 4 / 127
    assert np.abs(baselines.ibert_gelu(x, scale) - x * scale * ndtr(x * scale)).max() < 0.03
    z = -np.arange(0, 3000)
    assert np.abs(baselines.ibert_exp(z, 0.002) - np.exp(z * 0.002)).max() < 0.01
    weights = baselines.log_int_softmax(np.array([[0, -10, -200]]), 0.1)
    assert np.all(np.isin(weights, [0.0, *(2.0**-k for k in range(16))]))


def test_layers_count_the_multiplications_of_deit():
    a = cost.deit("S")
    macs = sum(each for _, each, _ in cost.layers(a, 1, True))
    assert macs == pytest.approx(4.6e9, rel=0.01)
    assert sum(each for _, each, _ in cost.layers(a, 8, False)) == 8 * macs
    assert a.parameters() == pytest.approx(22.05e6, rel=0.01)
    device = hardware.device("rtx_2080_ti")
    # Nothing is won where nothing is multiplied faster but the traffic shrinks.
    assert all(1 < each < 1.5 for each in cost.speedups(device, 1, "fp32").values())
    assert all(each < 4.05 for each in cost.speedups(device, 1).values())


def test_float_layer_is_torchs_encoder_layer():
    rng = np.random.default_rng(0)
    shapes = {"query": (384, 384), "key": (384, 384), "value": (384, 384), "output": (384, 384)}
    weights = {f"layer.attention.{n}.weight": rng.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()}
    weights |= {f"layer.attention.{n}.bias": rng.normal(0, 0.05, 384).astype(np.float32) for n in shapes}
    for name, inputs, outputs in (("up", 384, 64), ("down", 64, 384)):
        weights[f"layer.feed_forward.{name}.weight"] = rng.normal(0, 0.05, (outputs, inputs)).astype(np.float32)
        weights[f"layer.feed_forward.{name}.bias"] = rng.normal(0, 0.05, outputs).astype(np.float32)
    for name in ("attention_norm", "feed_forward_norm"):
        weights[f"layer.{name}.weight"] = rng.normal(1, 0.1, 384).astype(np.float32)
        weights[f"layer.{name}.bias"] = rng.normal(0, 0.1, 384).astype(np.float32)
    layer = torch.nn.TransformerEncoderLayer(384, 12, 64, 0.0, "gelu", minilm.EPSILON, batch_first=True)
    joined = [
        np.concatenate([weights[f"layer.attention.{n}.{k}"] for n in ("query", "key", "value")]) for k in ("weight", "bias")
    ]
    state = {"self_attn.in_proj_weight": joined[0], "self_attn.in_proj_bias": joined[1]}
    theirs = {
        "self_attn.out_proj": "attention.output", "linear1": "feed_forward.up", "linear2": "feed_forward.down",
        "norm1": "attention_norm", "norm2": "feed_forward_norm",
    }  # fmt: skip
    state |= {f"{a}.{k}": weights[f"layer.{b}.{k}"] for a, b in theirs.items() for k in ("weight", "bias")}
    layer.load_state_dict({n: torch.from_numpy(a) for n, a in state.items()})
    x = torch.from_numpy(rng.normal(size=(2, 5, 384)).astype(np.float32))
    with torch.no_grad():
        assert torch.allclose(minilm.float_layer(weights, x), layer(x), atol=2e-5)


def test_words_are_cut_into_the_longest_pieces(monkeypatch):
    class Text:
        held_out = np.frombuffer(b"Unseen, unseenable.", np.uint8)

    monkeypatch.setattr(minilm, "king_james", Text)
    words = {"un": 1, "unseen": 2, ",": 3, "##able": 4, "##a": 5, ".": 6}
    assert minilm.tokens(words, 1, 5).tolist() == [[2, 3, 2, 4, 6]]


def test_engine_takes_codes_of_any_shape():
    a = engine.Engine({"x.m": torch.tensor([2**30], dtype=torch.int32), "x.e": torch.tensor([31], dtype=torch.int32)}, {})
    assert a.act("x", 8, engine.Codes(torch.tensor([[6, 7, -7]], dtype=torch.int16))).q.tolist() == [[3, 4, -3]]
    b = Simulation({}, ["x"], np.array([[-254.0, 254.0]]))
    assert b.act("x", 8, Codes(np.array([[6.0, 7.0, -7.0]]), np.float64(1.0))).q.tolist() == [[3, 4, -3]]
    assert network.block_acts("a")[0] == "a.attention.query"
