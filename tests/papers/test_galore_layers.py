"""Updates layer by layer: the same trajectory, less memory, in both frameworks; and the baselines that training compares."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

from common.agreement import assert_trees_agree
from common.architecture import Transformer
from common.models import transformer_jax, transformer_torch
from common.models.weights import from_flax, from_torch
from common.training import jax_loop, torch_loop
from papers.galore import baselines, gradients, memory
from papers.galore.per_layer import update_each_layer
from papers.galore.per_layer_jax import BlockWise

pytestmark = pytest.mark.xdist_group("galore")

SHAPE = Transformer(width=16, depth=2, heads=2, kv_heads=2, head_dim=8, hidden=24, context=12, vocabulary=32, tied=False)


def tokens_at(step):
    return np.random.default_rng(step).integers(0, 32, (2, 13))


@pytest.mark.parametrize("tied", [False, True])
def test_updates_layer_by_layer_end_at_the_same_weights(tied):
    shape = Transformer(**{**vars(SHAPE), "tied": tied})
    found = []
    for per_layer in (False, True):
        model = transformer_torch.TransformerLM(shape, dtype=torch.float64)
        optimizer = memory.make("galore", dict(model.named_parameters()), {"rank": 4, "gap": 3}, lr=1e-2)
        if per_layer:
            update_each_layer(optimizer)
        torch_loop.train(model, torch_loop.next_token_loss, tokens_at, optimizer, 5, schedule=lambda step: 1 / (step + 1))
        found.append(from_torch(model))
        assert all((each.grad is None) == per_layer for each in model.parameters())
    assert_trees_agree(*found, 0.0)


def test_updates_block_by_block_end_at_the_same_weights():
    with jax.enable_x64(True):
        optimizer = optax.adam(1e-2)
        whole, piecewise = (transformer_jax.TransformerLM(SHAPE, param_dtype=jnp.float64) for _ in range(2))
        losses = jax_loop.train(whole, jax_loop.next_token_loss, tokens_at, optimizer, 3).losses
        walker = BlockWise(piecewise, optimizer)
        same = [float(walker.step(jnp.asarray(tokens_at(step)))) for step in range(3)]
        np.testing.assert_allclose(same, losses, rtol=1e-12)
        got, want = from_flax(walker.restore()), from_flax(whole)
    assert_trees_agree(got, want, 1e-9)


def test_gradients_are_freed():
    one, all_at_once = gradients.peaks_torch(True), gradients.peaks_torch(False)
    assert one["gradients"] <= 1.1 < 10 < all_at_once["gradients"]
    assert one["step"] < all_at_once["step"] / 3


def test_clipping_is_by_parameter():
    mine = nn.Parameter(torch.zeros(3, 4))
    optimizer = memory.GaLoreAdamW([mine], lr=1.0, betas=(0.0, 0.0), eps=1.0)
    update_each_layer(optimizer, clip=1e-3)
    (mine * 100).sum().backward()
    # With epsilon far above, Adam's step is the gradient itself.
    assert mine.norm().item() == pytest.approx(1e-3, rel=0.01)


def test_impossible_uses_are_refused():
    model = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"accumulation is 2.* must be 1"):
        update_each_layer(memory.GaLoreAdamW(model.parameters()), accumulation=2)
    tied = transformer_jax.TransformerLM(Transformer(**{**vars(SHAPE), "tied": True}))
    with pytest.raises(ValueError, match="tied=False"):
        BlockWise(tied, optax.sgd(0.1))
    assert nnx.state(tied)


def test_baselines_begin_where_they_should():
    generator = torch.Generator().manual_seed(0)
    model = transformer_torch.TransformerLM(SHAPE)
    tokens = torch.from_numpy(tokens_at(0))
    before = model(tokens[:, :-1])
    baselines.swap(model, lambda layer: baselines.Lora(layer, 3, 2.0, generator))
    torch.testing.assert_close(model(tokens[:, :-1]), before)
    layers = [each for each in model.modules() if isinstance(each, baselines.Lora)]
    assert len(layers) == 2 * 7
    for each in layers:
        each.b.data.normal_(std=0.1, generator=generator)
    changed = model(tokens[:, :-1])
    baselines.merge_all(model, torch.optim.SGD([layers[0].a], lr=0.1))
    torch.testing.assert_close(model(tokens[:, :-1]), changed, rtol=1e-4, atol=1e-5)
    assert all(not each.b.any() and not each.weight.requires_grad for each in layers)


def test_a_low_rank_layer_is_of_low_rank_and_varies_as_the_weight_did():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(60, 80)
    nn.init.normal_(layer.weight, std=0.02, generator=generator)
    low = baselines.LowRank(layer, 8, generator)
    weight = low.b @ low.a
    assert torch.linalg.matrix_rank(weight) == 8
    assert weight.std().item() == pytest.approx(0.02, rel=0.2)
    x = torch.randn(5, 60, generator=generator)
    torch.testing.assert_close(low(x), x @ weight.mT + layer.bias)
