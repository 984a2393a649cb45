"""MARLIN: packed models in both frameworks, one file, rounding against the best there is, stripes, roofline, serving."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import UserError, runner
from common.architecture import Transformer
from common.gptq import gptq, nearest
from common.hardware import device
from common.models import transformer_jax, transformer_torch, weights
from common.serving import Request, saturated
from kernels.gemm_w4a16 import triton_impl
from papers.marlin import model_jax, model_torch, partition, published, roofline, serving, store, swizzle
from papers.marlin.config import Config

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("marlin")

SHAPE = Transformer(width=48, depth=1, heads=4, kv_heads=2, head_dim=12, hidden=136, context=32)


@pytest.fixture(scope="module")
def models():
    drawn = weights.initial_weights(SHAPE, 3)
    ours, theirs = transformer_torch.TransformerLM(SHAPE), transformer_jax.TransformerLM(SHAPE)
    weights.to_torch(ours, drawn)
    weights.to_flax(theirs, drawn)
    return ours, theirs


def tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, length))


def fresh(model: torch.nn.Module) -> torch.nn.Module:
    again = transformer_torch.TransformerLM(SHAPE)
    again.load_state_dict(model.state_dict())
    return again


def test_both_frameworks_round_alike_and_read_one_file(models, tmp_path):
    ours, theirs = models
    batches = [tokens(2, 20), tokens(1, 32)]
    mine = model_torch.hessians(ours, map(torch.from_numpy, batches))
    other = model_jax.hessians(theirs, map(jnp.asarray, batches))
    assert mine.keys() == other.keys() and len(mine) == 7
    for name in mine:
        np.testing.assert_allclose(np.asarray(other[name]), mine[name].numpy(), rtol=0, atol=1e-5 * float(mine[name].abs().max()))
    packed = fresh(ours)
    layers = model_torch.quantize(packed, mine)
    for name in ("blocks.0.feed_forward.down",):
        layer = layers[name]
        with jax.enable_x64(True):
            hessian = jnp.asarray(mine[name].numpy())
        weight = jnp.asarray(model_torch.linear(ours)[name].weight.detach().numpy())
        again = store.Packed.of(model_jax.rounded(weight, hessian), weight.shape)
        assert np.array_equal(np.asarray(again.words), layer.words.numpy()), name
        assert np.array_equal(np.asarray(again.scales), layer.scales.numpy()), name
    store.save(tmp_path / "torch", layers)
    twin = model_jax.attach(transformer_jax.TransformerLM(SHAPE), store.load(tmp_path / "torch"))
    name = "blocks.0.feed_forward.up"
    held = twin.blocks[0].feed_forward.up
    assert np.array_equal(np.asarray(held.B[...]), layers[name].words.numpy())
    np.testing.assert_array_equal(np.asarray(held.weight()), packed.get_submodule(name).weight().numpy())
    as_jax = {
        each: store.Packed(jnp.asarray(p.words.numpy()), jnp.asarray(p.scales.numpy()), p.outputs, p.inputs)
        for each, p in layers.items()
    }
    store.save(tmp_path / "jax", as_jax)
    assert (tmp_path / "jax").read_bytes() == (tmp_path / "torch").read_bytes()


def test_packed_models_agree(models):
    ours, _ = models
    mine = fresh(ours)
    layers = model_torch.quantize(mine, None)
    twin = transformer_jax.TransformerLM(SHAPE)
    weights.to_flax(twin, weights.initial_weights(SHAPE, 3))
    model_jax.attach(twin, layers)
    x = tokens(2, 16)
    with torch.no_grad():
        want = mine(torch.from_numpy(x)).numpy()
    dense = fresh(ours)
    for name, layer in model_torch.linear(dense).items():
        layer.weight.data = mine.get_submodule(name).weight()
    with torch.no_grad():
        np.testing.assert_allclose(want, dense(torch.from_numpy(x)).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(twin(jnp.asarray(x))), want, rtol=0, atol=1e-5)


def test_gradients_pass_through_a_packed_layer(models):
    layer = model_torch.MarlinLinear(store.Packed.of(model_torch.rounded(torch.randn(48, 40), None), (48, 40)))
    x = torch.randn(3, 40, requires_grad=True)
    seed = torch.randn(3, 48)
    (found,) = torch.autograd.grad(layer(x), x, seed)
    torch.testing.assert_close(found, seed @ layer.weight(), rtol=0, atol=1e-5)


def test_rounding_lies_between_the_best_and_the_nearest():
    """All codes of five weights, by brute force: GPTQ is never better than the best, and mostly no worse than the nearest."""
    generator = torch.Generator().manual_seed(0)
    every = torch.cartesian_prod(*[torch.arange(-8.0, 8.0, dtype=torch.float64)] * 5)
    better = 0
    for _ in range(8):
        w = torch.randn(1, 5, generator=generator, dtype=torch.float64)
        x = torch.randn(64, 5, generator=generator, dtype=torch.float64) @ torch.randn(
            5, 5, generator=generator, dtype=torch.float64
        )
        h = 2 * x.T @ x / 64
        mine, plain = gptq(w, h, group=5, damping=1e-6, clip="none"), nearest(w, group=5)
        assert torch.equal(mine.scales, plain.scales)

        def error(codes, scales=mine.scales, w=w, h=h):
            d = codes.double() * scales.double() - w
            return ((d @ h) * d).sum(1)

        assert float(error(every).min()) <= float(error(mine.codes)) * (1 + 1e-9)
        better += float(error(mine.codes)) <= float(error(plain.codes)) * (1 + 1e-9)
    assert better >= 6


@pytest.fixture
def saved(tmp_path):
    layers = {"a": store.Packed.of(model_torch.rounded(torch.randn(40, 30), None), (40, 30))}
    store.save(tmp_path / "file", layers)
    return tmp_path / "file"


def test_damaged_files_are_refused(saved):
    whole = saved.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        saved.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="no whole file of packed layers"):
            store.load(saved)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 25):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        try:
            found = store.load(saved)
        except UserError:
            continue
        # Only a byte of the notes that says the same may differ.
        assert found["a"].outputs == 40 and found["a"].inputs == 30
    with pytest.raises(UserError, match="no whole file"):
        store.load(saved.with_name("missing"))


def test_a_file_that_is_well_signed_must_still_fit(saved):
    layer = store.load(saved)["a"]
    store.save(saved, {"a": store.Packed(layer.words, layer.scales, 300, 30)})
    with pytest.raises(UserError, match="layer 'a' is 300 x 30, its words hold 256 x 128"):
        store.load(saved)
    store.save(saved, {"a": store.Packed(layer.words[:4], layer.scales, 40, 30)})
    with pytest.raises(UserError, match="k is 64"):
        store.load(saved)


def test_layers_of_another_model_are_refused(models, saved):
    for attach, model in ((model_torch.attach, fresh(models[0])), (model_jax.attach, transformer_jax.TransformerLM(SHAPE))):
        with pytest.raises(ValueError, match="layer 'a': the file has"):
            attach(model, store.load(saved))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 4))
def test_stripes_cover_every_tile_once_and_in_order(k_tiles, n_tiles, blocks, unit):
    for made in (partition.striped(k_tiles, n_tiles, blocks, unit), partition.even(k_tiles, n_tiles, blocks)):
        order = made.owner.T.reshape(-1)
        assert made.owner.shape == (k_tiles, n_tiles) and (np.diff(order) >= 0).all() and order.max() < blocks
        assert made.loads.sum() == k_tiles * n_tiles
        assert made.hand_overs == sum(len(set(column)) - 1 for column in made.owner.T.tolist())
    whole = partition.by_column(k_tiles, n_tiles, blocks)
    assert whole.hand_overs == 0 and whole.chain == 1
    # A stripe is a multiple of the unit, so with unit dividing k_tiles none begins inside a group.
    if k_tiles % unit == 0:
        starts = np.flatnonzero(np.diff(partition.striped(k_tiles, n_tiles, blocks, unit).owner.T.reshape(-1))) + 1
        assert (starts % unit == 0).all()


def test_no_tiles_are_refused():
    with pytest.raises(ValueError, match="0 x 3 tiles"):
        partition.striped(0, 3, 1)


def test_the_kernel_walks_the_schedule(monkeypatch):
    """As many sums are handed over as the schedule says: the locks' counts, read where the top program would clear them."""
    given_to = {}

    class Spy:
        def __getitem__(self, grid):
            def call(parts, packed, scales, y, locks, m, strips, groups, each, single, M, K, N, *rest, **options):
                given_to.update(grid=grid[0], each=each, high=groups * 128 // K, across=strips * 256 // N)

            return call

    monkeypatch.setattr(triton_impl, "marlin_kernel", Spy())
    packed, scales = torch.zeros(256, 2 * 4096, dtype=torch.int32), torch.ones(32, 4096, dtype=torch.float16)
    triton_impl.matmul(torch.zeros(16, 4096, dtype=torch.float16), packed, scales, blocks=72)
    made = partition.striped(given_to["high"], given_to["across"], 72)
    assert (given_to["each"], given_to["grid"]) == (made.iterations, made.used) == (15, 69)
    triton_impl.matmul(torch.zeros(64, 4096, dtype=torch.float16), packed, scales, blocks=72)
    made = partition.striped(given_to["high"], given_to["across"], 72, unit=2)
    assert (given_to["each"], given_to["grid"]) == (made.iterations, made.used)


def test_swizzle_frees_every_bank():
    for width in (8, 16, 32):
        assert swizzle.passes(width, xor=True) == {"write": 0, "read": 0}
        assert swizzle.passes(width, xor=False) == {"write": 0, "read": 7}


@pytest.mark.parametrize("kind", roofline.BITS)
def test_roofline_is_one_text_for_all(kind):
    a10, layers, m = device("a10"), published.LAYERS["Llama 7B"], np.array([1.0, 16, 64, 300])
    want = roofline.speedup(a10, m, layers, kind)
    np.testing.assert_allclose(roofline.speedup(a10, torch.from_numpy(m), layers, kind).numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(roofline.speedup(a10, jnp.asarray(m), layers, kind)), want, rtol=1e-5)
    assert [roofline.speedup(a10, float(each), layers, kind) for each in m] == pytest.approx(list(want))
    assert (want == 1).all() if kind == "fp16" else (want > 1)[:3].all()


def test_roofline_turns_at_the_critical_batch():
    a10 = device("a10")
    k, n = 10**6, 10**6  # activations do not count
    edge = roofline.critical(a10)
    assert roofline.seconds(a10, 0.99 * edge, k, n) < 1.001 * roofline.seconds(a10, 1, k, n)
    assert roofline.seconds(a10, 2 * edge, k, n) == pytest.approx(2 * roofline.seconds(a10, edge, k, n), rel=1e-3)


def test_serving_matches_the_closed_form_of_a_full_batch():
    engine = serving.Engine(device("a10"), published.LLAMA["7B"], "int4", 1e-3)
    step = engine.decode(16, 16 * 96)
    served = engine.serve([Request(0.0, 64, 64)] * 16, 16)
    assert served.finished.max() == pytest.approx(engine.prefill(16 * 64) + 63 * step, rel=0.01)
    rate, _ = saturated(16, 64, step, engine.prefill(64))
    many = engine.serve([Request(0.0, 64, 64)] * 160, 16)
    assert len(many.finished) / many.finished.max() == pytest.approx(rate, rel=0.25)


def test_the_share_of_the_rest_grows_with_the_context():
    engine = serving.Engine(device("a10"), published.LLAMA["7B"])
    assert 0 < serving.share(engine, 1, 100) < serving.share(engine, 16, 10_000) < 1


def test_smoke_has_the_figures_of_the_notebook():
    details = runner.run_or_load("marlin", "smoke")["details"]
    assert {"speedup", "partition", "gains", "latency", "bits_per_byte", "layer_errors"} <= set(details)
    assert details["bits_per_byte"]["float32"] < details["bits_per_byte"]["GPTQ"] < details["bits_per_byte"]["nearest"]


def test_bad_configurations():
    with pytest.raises(ValueError, match="bits is 8; wanted 4, or 16"):
        Config(bits=8)
    with pytest.raises(ValueError, match="k is 100 and n is 4096"):
        Config(k=100)
    with pytest.raises(ValueError, match="wanted 1 and 16 among them"):
        Config(batches=[4])
