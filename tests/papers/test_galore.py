"""What this paper adds to the generic tests: projections, trajectories, states of the right size, bad input."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.agreement import assert_trees_agree
from common.architecture import Transformer
from common.checkpoint import Checkpoint
from common.data.text import batches, king_james
from common.models import transformer_jax, transformer_torch
from common.models.weights import from_flax, from_torch
from common.training import jax_loop, torch_loop
from papers.galore import agreement, memory, optimizer_jax, published
from papers.galore.config import PRESETS, Config
from papers.galore.optimizer_torch import GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit, GaLoreSGD
from papers.galore.projection import SIDES, Projection
from papers.galore.projection_torch import projectors, randomized_svd

pytestmark = pytest.mark.xdist_group("galore")


def parameter(*shape, dtype=torch.float64, seed=0):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def run(optimizer, parameters, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for each in parameters:
            each.grad = torch.randn(each.shape, generator=generator, dtype=each.dtype)
        optimizer.step()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
def test_trajectories_are_the_published_packages(side, shape, monkeypatch):
    """AdamW and Adafactor, in float64 with both decomposing in float32, over two refreshes, all sides."""
    published_package = pytest.importorskip("galore_torch")
    exact = torch.linalg.svd
    single = lambda m, **options: tuple(x.to(m.dtype) for x in exact(m.float(), **options))  # noqa: E731
    monkeypatch.setattr(torch.linalg, "svd", single)
    names = {"rank": 5, "scale": 0.5}
    pairs = [
        (GaLoreAdamW, published_package.GaLoreAdamW, {"weight_decay": 0.1}, {"no_deprecation_warning": True}),
        (GaLoreAdafactor, published_package.GaLoreAdafactor, {"weight_decay": 0.1, "beta1": 0.9, "scale_parameter": True}, {"relative_step": False}),
    ]  # fmt: skip
    for ours, theirs, options, more in pairs:
        mine, other = parameter(*shape), parameter(*shape)
        a = ours([{"params": [mine], **names, "gap": 4, "side": side, "signs": "library"}], lr=0.01, **options)
        b = theirs([{"params": [other], **names, "update_proj_gap": 4, "proj_type": side}], lr=0.01, **options, **more)
        run(a, [mine], 10)
        run(b, [other], 10)
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


def test_eight_bit_trajectory_is_the_published_packages(monkeypatch):
    published_package, _ = pytest.importorskip("galore_torch"), pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    mine, other = (parameter(96, 160, dtype=torch.float32) for _ in range(2))
    group = {"rank": 32, "scale": 0.25}
    a = GaLoreAdamW8bit([{"params": [mine], **group, "gap": 4, "signs": "library"}], lr=0.01, grid=True)
    theirs = {"update_proj_gap": 4, "proj_type": "std"}
    b = published_package.GaLoreAdamW8bit([{"params": [other], **group, **theirs}], lr=0.01, weight_decay=0.0)
    run(a, [mine], 10)
    run(b, [other], 10)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    assert torch.equal(a.state[mine]["mean"], b.state[other]["state1"])
    assert torch.equal(a.state[mine]["square_scale"], b.state[other]["absmax2"])


def test_codes_are_those_of_bitsandbytes_bit_for_bit():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    mine, other = (parameter(100, 77, dtype=torch.float32) for _ in range(2))
    a, b = GaLoreAdamW8bit([mine], lr=0.01, grid=True), bitsandbytes.optim.Adam8bit([other], lr=0.01)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        # Magnitudes over many decades meet every code.
        mine.grad = torch.randn(100, 77, generator=generator) * 10.0 ** torch.randn(100, 77, generator=generator)
        other.grad = mine.grad.clone()
        a.step()
        b.step()
        ours, theirs = a.state[mine], b.state[other]
        for one, two in (("mean", "state1"), ("square", "state2"), ("mean_scale", "absmax1"), ("square_scale", "absmax2")):
            assert torch.equal(ours[one], theirs[two]), one
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


SHAPE = Transformer(width=16, depth=1, heads=2, kv_heads=1, head_dim=8, hidden=24, context=12)


def test_both_frameworks_train_a_model_alike_in_float64():
    """Square, wide and tall matrices, six steps with two refreshes, on the King James text."""
    batch_at = batches(king_james().train, 4, 12, seed=5)
    ours = transformer_torch.TransformerLM(SHAPE, dtype=torch.float64)
    optimizer = memory.make("galore", dict(ours.named_parameters()), {"rank": 4, "gap": 3}, lr=1e-2)
    losses = torch_loop.train(ours, torch_loop.next_token_loss, batch_at, optimizer, 6).losses
    with jax.enable_x64(True):
        twin = transformer_jax.TransformerLM(SHAPE, param_dtype=jnp.float64)
        optimizer = optimizer_jax.adamw(1e-2, 4, 3, transposed=True)
        same = jax_loop.train(twin, jax_loop.next_token_loss, batch_at, optimizer, 6).losses
        weights = from_flax(twin)
    np.testing.assert_allclose(losses, same, rtol=1e-9)
    assert_trees_agree(weights, from_torch(ours), 1e-9)


@pytest.mark.parametrize("rule", ["momentum", "adafactor", "randomized"])
def test_any_inner_transformation_can_be_wrapped(rule):
    weights, gradients = agreement.drawn(0, np.float64)
    group = {"rank": 5, "gap": 4, "scale": 0.25, "method": "randomized" if rule == "randomized" else "svd"}
    if rule == "adafactor":
        torch_rule = lambda p: GaLoreAdafactor([{"params": p, **group}], lr=0.01)  # noqa: E731
        inner = optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=2), optax.clip_by_block_rms(1.0))
    else:
        torch_rule = lambda p: GaLoreSGD([{"params": p, **group}], lr=0.01, momentum=0.9)  # noqa: E731
        inner = optax.trace(0.9)
    twin = optax.chain(optimizer_jax.galore(inner, 5, 4, 0.25, method=group["method"]), optax.scale(-0.01))
    for got, want in zip(
        agreement.by_torch(torch_rule, weights, gradients), agreement.by_jax(twin, weights, gradients), strict=True
    ):
        # optax takes its decay in float32.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8 if rule == "adafactor" else 1e-11)


def test_eight_bit_twins_keep_the_same_codes():
    rng = np.random.default_rng(0)
    weight, gradients = rng.standard_normal((48, 128)).astype(np.float32), rng.standard_normal((3, 48, 128)).astype(np.float32)
    mine = nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = GaLoreAdamW8bit([{"params": [mine], "rank": 32, "gap": 2}], lr=0.01)
    twin = optimizer_jax.adamw(0.01, 32, 2, rule=optimizer_jax.scale_by_adam8bit(), projected=lambda path, leaf: True)
    parameters, update = jnp.asarray(weight), jax.jit(twin.update)
    state = twin.init(parameters)
    for each in gradients:
        mine.grad = torch.from_numpy(each.copy())
        optimizer.step()
        updates, state = update(jnp.asarray(each), state)
        parameters = optax.apply_updates(parameters, updates)
    np.testing.assert_allclose(mine.detach().numpy(), parameters, atol=1e-4)
    codes = next(leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.uint8)
    # The matrices are multiplied in another order, so a moment on a border may fall to its other side.
    assert np.mean(optimizer.state[mine]["mean"].numpy().ravel() != np.asarray(codes)) < 0.01


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 12), st.sampled_from(SIDES))
def test_projectors_are_orthonormal_and_keep_what_they_should(rows, columns, rank, side):
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 13 + columns), dtype=torch.float64)
    rank = min(rank, rows, columns)
    left, right = projectors(gradient, rank, Projection(rank, side=side))
    kept = gradient
    if left is not None:
        torch.testing.assert_close(left.mT @ left, torch.eye(rank, dtype=torch.float64))
        assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
        kept = left @ (left.mT @ kept)
    if right is not None:
        torch.testing.assert_close(right @ right.mT, torch.eye(rank, dtype=torch.float64))
        kept = kept @ right.mT @ right
    best = torch.linalg.svdvals(gradient)[:rank].square().sum()
    torch.testing.assert_close(kept.square().sum(), best)


def test_randomized_decomposition_finds_the_leading_directions():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 40, generator=generator, dtype=torch.float64)).Q for n in (60, 90))
    matrix = left * 0.7 ** torch.arange(40) @ right.mT
    u, s, _ = randomized_svd(matrix, 8)
    exact = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(s[:8], exact.S[:8], rtol=1e-6, atol=0)
    assert (u[:, :8].mT @ exact.U[:, :8]).square().sum() == pytest.approx(8, rel=1e-6)


def test_at_full_rank_descent_is_descent_and_adam_is_adam_in_turned_coordinates():
    mine, plain = parameter(6, 9), parameter(6, 9)
    descent = GaLoreSGD([{"params": [mine], "rank": 6, "scale": 1.0, "gap": 2}], lr=0.1, momentum=0.0)
    run(descent, [mine], 5)
    run(torch.optim.SGD([plain], lr=0.1), [plain], 5)
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)
    mine, turned = parameter(6, 9), parameter(6, 9)
    adam = GaLoreAdamW([{"params": [mine], "rank": 6, "scale": 1.0, "gap": 100}], lr=0.1)
    run(adam, [mine], 5)
    basis = adam.state[mine]["left"]
    turned = nn.Parameter(basis.mT @ turned.detach())
    other = GaLoreAdamW([turned], lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        turned.grad = basis.mT @ torch.randn(6, 9, generator=generator, dtype=torch.float64)
        other.step()
    torch.testing.assert_close(mine, basis @ turned, rtol=0, atol=1e-12)
    plain = parameter(6, 9)
    run(GaLoreAdamW([plain], lr=0.1), [plain], 5)
    assert (mine - plain).abs().max() > 0.01


def test_projected_descent_contracts_within_its_subspace():
    """f(W) = |A W - B|^2 / 2: the residual's projection falls, and by no more than a subspace can explain."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(30, n, generator=generator, dtype=torch.float64) / 6 for n in (10, 14))
    weight = nn.Parameter(torch.zeros(10, 14, dtype=torch.float64))
    optimizer = GaLoreSGD([{"params": [weight], "rank": 3, "scale": 1.0, "gap": 10**6}], lr=0.5)
    residuals = []
    for _ in range(60):
        gradient = a.mT @ (a @ weight.detach() - b)
        weight.grad = gradient
        optimizer.step()
        residuals.append((optimizer.state[weight]["left"].mT @ gradient).norm().item())
    assert residuals[-1] < 1e-3 * residuals[0]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(residuals))
    assert torch.linalg.matrix_rank(weight.detach()) == 3


def test_states_have_the_size_of_the_projection():
    wide, tall, bias = (
        parameter(64, 96, dtype=torch.float32),
        parameter(96, 64, dtype=torch.float32),
        parameter(5, dtype=torch.float32),
    )
    optimizer = GaLoreAdamW8bit([{"params": [wide, tall], "rank": 48}, {"params": [bias]}], quantize_projector=True)
    run(optimizer, [wide, tall, bias], 2)
    for each, low, name in ((wide, (48, 96), "left"), (tall, (96, 48), "right")):
        state = optimizer.state[each]
        assert state["mean"].shape == state["square"].shape == low
        assert state["mean"].dtype == state["square"].dtype == state[name].dtype == torch.uint8
        assert state["mean_scale"].shape == (-(-48 * 96 // 256),)
    assert optimizer.state[bias]["mean"].dtype == torch.float32


@pytest.mark.parametrize("quantized", [False, True])
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(quantized, tmp_path):
    """Through the checkpoint of the training loop: codes stay codes."""
    batch_at = batches(king_james().train, 2, 12, seed=5)

    def train(steps, store=None):
        model = transformer_torch.TransformerLM(SHAPE)
        kind = {"quantize_projector": quantized, "least": 64} if quantized else {}
        method = "galore 8-bit" if quantized else "galore"
        optimizer = memory.make(method, dict(model.named_parameters()), {"rank": 4, "gap": 3}, lr=1e-2, **kind)
        torch_loop.train(model, torch_loop.next_token_loss, batch_at, optimizer, steps, checkpoint=store, every=2)
        return from_torch(model)

    whole, store = train(7), Checkpoint(tmp_path / "state.safetensors")
    train(4, store)
    assert_trees_agree(train(7, store), whole, 0.0)


def test_a_gradient_that_is_not_finite_skips_the_refresh_in_both_frameworks():
    mine = parameter(6, 9)
    optimizer = GaLoreAdamW([{"params": [mine], "rank": 3, "gap": 2}], lr=0.1)
    twin = optax.chain(optimizer_jax.galore(optimizer_jax.scale_by_adam(), 3, 2), optax.scale(-0.1))
    gradients = np.random.default_rng(0).standard_normal((6, 6, 9))
    gradients[0, 0, 0], gradients[3, 2, 2] = np.nan, np.inf  # the first step, and the one that refreshes
    with jax.enable_x64(True):
        value = jnp.asarray(mine.detach().numpy())
        state, update = twin.init(value), jax.jit(twin.update)
        for each in gradients:
            mine.grad = torch.from_numpy(each.copy())
            optimizer.step()
            updates, state = update(jnp.asarray(each), state)
            value = value + updates
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, mine.detach().numpy(), atol=1e-12)
        assert int(state[0].skipped) == optimizer.skipped() == 2


def test_bad_groups_are_refused():
    matrix, vector, cube = parameter(4, 6), parameter(4), parameter(2, 3, 4)
    for bad in (vector, cube):
        with pytest.raises(ValueError, match=r"parameter 0.0 has shape .* only matrices can be projected"):
            GaLoreAdamW([{"params": [bad], "rank": 2}])
    with pytest.raises(ValueError, match="parameter weight has shape"):
        GaLoreAdamW([{"params": [("weight", vector)], "rank": 2}])
    with pytest.warns(UserWarning, match="rank 9 is beyond the shorter side .* 4 is taken"):
        optimizer = GaLoreAdamW([{"params": [matrix], "rank": 9}])
    run(optimizer, [matrix], 1)
    assert optimizer.state[matrix]["left"].shape == (4, 4)
    with pytest.raises(ValueError, match="leave strict mode"):
        GaLoreAdamW([{"params": [matrix], "rank": 9}], strict=True)
    for key, value in (
        ("gap", 0),
        ("gap", -3),
        ("rank", 0),
        ("side", "up"),
        ("method", "qr"),
        ("signs", "any"),
        ("update_proj_gap", 5),
    ):
        with pytest.raises(ValueError, match=key):
            GaLoreAdamW([{"params": [matrix], "rank": 2, key: value}])
    with pytest.raises(ValueError, match="not negative"):
        GaLoreAdamW([matrix], lr=-1.0)


def test_bad_leaves_are_refused():
    with pytest.raises(ValueError, match=r"parameter \['b'\] has shape \(3,\)"):
        optimizer_jax.galore(optax.identity(), 2).init({"a": jnp.zeros((3, 4)), "b": jnp.zeros(3)})
    with pytest.warns(UserWarning, match="3 is taken"):
        optimizer_jax.galore(optax.identity(), 9).init(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="leave strict mode"):
        optimizer_jax.galore(optax.identity(), 9, strict=True).init(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="gap is 0"):
        optimizer_jax.galore(optax.identity(), 2, 0)


def test_states_are_counted_as_the_formula_says():
    for method in ("full", "galore", "galore 8-bit", "galore 8-bit all"):
        assert memory.counted_state("60M", method) == memory.closed_state("60M", method)


def test_paper_preset_is_the_papers_smallest_model():
    from papers.galore.training import architecture

    paper, size = architecture(PRESETS["paper"]), published.SIZES["60M"]
    assert (paper.width, paper.hidden, paper.depth, paper.heads) == tuple(size[k] for k in ("width", "hidden", "depth", "heads"))
    assert memory.llama("60M").parameters() == pytest.approx(58e6, rel=0.01)
    assert memory.llama("7B").parameters() == pytest.approx(6.74e9, rel=0.001)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"width": 30, "heads": 4}, "not a multiple of heads"), ({"gap": 0}, "wanted 1 or more"), ({"layer": [3]}, "rows and columns"), ({"tasks": 5}, "1 to 4")],
)  # fmt: skip
def test_impossible_options_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Config(**change)


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(GaLoreAdamW([{"params": [mine := parameter(5, 7)], "rank": 3, "side": "full"}]), [mine], 2)
