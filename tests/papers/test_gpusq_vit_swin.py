"""The Swin block: as its authors' (through transformers), and pruned and quantised alike in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from common.agreement import assert_trees_agree, relative_error
from common.models.weights import from_flax, from_torch, to_flax, to_torch, torch_name
from papers.gpusq_vit import model_jax, model_torch, swin
from papers.gpusq_vit.swin_jax import SwinBlock as JaxBlock
from papers.gpusq_vit.swin_torch import SwinBlock

pytestmark = pytest.mark.xdist_group("gpusq_vit")


def drawn(block, seed=0):
    rng = np.random.default_rng(seed)
    return {name: array + 0.3 * rng.standard_normal(array.shape) for name, array in from_torch(block).items()}


def test_values_and_gradients_of_both_frameworks_under_both_transforms():
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, 2, 36, 16))
    mine = SwinBlock(16, 2, 6, 3, 1, dtype=torch.float64)
    weights = drawn(mine)
    to_torch(mine, weights)
    model_torch.prune(mine, 8)
    model_torch.quantize(mine, 8, x)
    y = mine(torch.from_numpy(x))
    y.backward(torch.from_numpy(dy))
    with jax.enable_x64(True):
        theirs = JaxBlock(16, 2, 6, 3, 1, param_dtype=jnp.float64)
        to_flax(theirs, weights)
        model_jax.prune(theirs, 8)
        model_jax.quantize(theirs, 8, x)
        graph, parameters, rest = nnx.split(theirs, nnx.Param, ...)

        @jax.jit
        def both(parameters, x, dy):
            value, pull = jax.vjp(lambda parameters: nnx.merge(graph, parameters, rest)(x), parameters)
            return value, pull(dy)[0]

        found, gradients = both(parameters, jnp.asarray(x), jnp.asarray(dy))
        flat = {torch_name(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}
        for name, each in flat.items():
            flat[name] = each.T if each.ndim == 2 and name != "bias" else each
    assert relative_error(found, y.detach().numpy()) < 1e-6  # ranges of inputs are kept in float32
    want = {name: p.grad.numpy() for name, p in mine.named_parameters() if not name.endswith("key.bias")}
    assert_trees_agree({name: flat[name] for name in want}, want, 1e-6)
    assert sum("pruned" in layer.on_weight for layer in model_torch.layers(mine).values()) == 6
    assert set(from_flax(theirs)) == set(weights)


def test_windows_do_not_see_each_other():
    block = SwinBlock(8, 2, 6, 3)
    to_torch(block, drawn(block))
    x = torch.randn(1, 36, 8, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, 0, 3] += 1  # of the first window
    changed = (block(x) != block(moved)).any(-1).reshape(6, 6)
    assert changed[:3, :3].all() and changed.sum() == 9


def test_strangers_are_the_wrapped_ones():
    assert not swin.strangers(6, 3, 0).any()
    apart = swin.strangers(6, 3, 1)
    assert not apart[0].any() and apart[1:].any((1, 2)).all()
    with pytest.raises(ValueError, match="side 7, window 3, shift 0; wanted whole windows"):
        SwinBlock(8, 2, 7, 3)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 1])
def test_the_authors_block(shift):
    pytest.importorskip("transformers")
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    config = SwinConfig(embed_dim=16, window_size=3, layer_norm_eps=1e-5, drop_path_rate=0.0, hidden_act="gelu")
    layer = SwinLayer(config, dim=16, input_resolution=(6, 6), num_heads=2, shift_size=shift).eval()
    block = SwinBlock(16, 2, 6, 3, shift)
    to_torch(block, drawn(block))
    parts = {
        "attention_norm": "layernorm_before", "feed_forward_norm": "layernorm_after", "attention.query": "attention.q_proj",
        "attention.key": "attention.k_proj", "attention.value": "attention.v_proj", "attention.output": "attention.o_proj",
        "feed_forward.up": "mlp.fc1", "feed_forward.down": "mlp.fc2",
    }  # fmt: skip
    state = {"attention.relative_position_bias.relative_position_bias_table": block.bias}
    for mine, theirs in parts.items():
        part = block.get_submodule(f"block.{mine}")
        state |= {f"{theirs}.weight": part.weight, f"{theirs}.bias": part.bias}
    missing, unknown = layer.load_state_dict(state, strict=False)
    assert not missing and not unknown
    x = torch.randn(2, 36, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = layer(x, (6, 6))
        want = want[0] if isinstance(want, tuple) else want
        assert relative_error(block(x).numpy(), want.numpy()) < 1e-5
