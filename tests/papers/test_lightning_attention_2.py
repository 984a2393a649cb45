"""What this paper adds to the generic tests: its models agree across frameworks, its cost and memory models are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.agreement import assert_trees_agree
from common.architecture import Transformer
from common.command_line import main
from common.data.text import batches, king_james
from common.models import transformer_jax, transformer_torch
from common.models.weights import from_flax, from_torch
from common.training import jax_loop, torch_loop
from papers.lightning_attention_2 import cost, memory, model_jax, model_torch
from papers.lightning_attention_2.config import PRESETS, Config

pytestmark = pytest.mark.xdist_group("lightning_attention_2")

SHAPE = Transformer(width=16, depth=2, heads=2, kv_heads=2, head_dim=8, hidden=24, context=40, output_norm=True)


def test_both_frameworks_train_alike_in_float64():
    """Four AdamW steps on the King James text end at the same weights."""
    batch_at = batches(king_james().train, 2, 40, seed=5)
    ours = transformer_torch.TransformerLM(SHAPE, model_torch.mechanism("loop", 2, 2), dtype=torch.float64)
    losses = torch_loop.train(ours, torch_loop.next_token_loss, batch_at, torch_loop.adamw(ours, 1e-3), 4).losses
    with jax.enable_x64(True):
        twin = transformer_jax.TransformerLM(SHAPE, model_jax.mechanism("loop", 2, 2), param_dtype=jnp.float64)
        same = jax_loop.train(twin, jax_loop.next_token_loss, batch_at, jax_loop.adamw(1e-3), 4).losses
        weights = from_flax(twin)
    np.testing.assert_allclose(losses, same, rtol=1e-9)
    assert_trees_agree(weights, from_torch(ours), 1e-9)


def test_the_fault_of_the_controls_is_the_same_in_both_frameworks():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, 100, 8))
    slope = np.array([0.1, 0.5])
    got = model_torch.forgetful(*map(torch.from_numpy, (q, k, v, slope)), return_state=True)
    with jax.enable_x64(True):
        twin = model_jax.forgetful(*map(jnp.asarray, (q, k, v, slope)), return_state=True)
        for mine, theirs in zip(got, twin, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_affine_fit_goes_through_its_ends_and_recovers_a_line():
    a, b = cost.fit_affine({10: 7.0, 30: 17.0})
    assert (a, b) == (2.0, 0.5)
    assert cost.tokens_per_second(10, a, b) == pytest.approx(1 / 7)
    assert cost.crossover((1.0, 2.0), (4.0, 0.0)) == 1.5


@pytest.mark.parametrize("kind", ["LA1", "LA2", "FA2"])
def test_cost_model_is_one_text_for_three_frameworks(kind):
    n = np.array([512.0, 4096.0, 94208.0])
    for count in (cost.attention_flops, cost.attention_bytes):
        want = count(kind, n, 128, 128)
        np.testing.assert_allclose(count(kind, torch.from_numpy(n), 128, 128).numpy(), want, rtol=1e-12)
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                jax.vmap(lambda n, count=count: count(kind, n, 128, 128))(jnp.asarray(n)), want, rtol=1e-12
            )


def test_flops_of_the_blocks_are_those_of_the_kernel():
    """The closed form against PyTorch's own counter on the loop, which multiplies whole blocks."""
    from torch.utils.flop_counter import FlopCounterMode

    from kernels.linear_attention import lightning_attention

    n, d, e, block = 256, 32, 16, 64
    q, k, v = torch.randn(1, 1, n, d), torch.randn(1, 1, n, d), torch.randn(1, 1, n, e)
    with FlopCounterMode(display=False) as counter:
        lightning_attention(q, k, v, torch.tensor([0.1]), block=block)
    assert counter.get_total_flops() == cost.attention_flops("LA2", n, d, e, block)


def test_growth_exponent():
    n = np.array([1e3, 2e3, 4e3])
    assert cost.growth_exponent(n, 3 * n) == pytest.approx(1)
    assert cost.growth_exponent(n, 5 * n**2) == pytest.approx(2)


def test_memory_is_linear_where_the_definition_is_quadratic():
    """The counter sees what it claims to see: the masked product of the definition holds n x n."""
    assert memory.linear_growth(512) <= 2.1
    assert memory.linear_growth(512, backend="reference") > 3.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lengths": [100]}, "each twice the one before"),
        ({"lengths": [100, 300]}, "each twice the one before"),
        ({"check_dims": [16]}, "the two numbers d and e"),
        ({"width": 100, "model_heads": 3}, "not a multiple of model_heads"),
    ],
)
def test_impossible_options_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Config(**change)


def test_paper_preset_is_the_papers_size():
    paper = PRESETS["paper"]
    shape = Transformer(
        width=paper.width, depth=paper.depth, heads=paper.model_heads, kv_heads=paper.model_heads, hidden=paper.hidden,
        head_dim=paper.width // paper.model_heads, context=paper.seq_len, vocabulary=64000, tied=False,
    )  # fmt: skip
    assert 0.35e9 < shape.parameters() < 0.5e9


def test_paper_preset_is_refused_without_a_gpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("common.runner.gpu", lambda: None)
    monkeypatch.setenv("REPRODUCTION_OUTPUTS", str(tmp_path))
    assert main("lightning_attention_2", ["preset=paper"]) == 2
    assert "training on 52,428,800,000 tokens needs a GPU" in capsys.readouterr().err
