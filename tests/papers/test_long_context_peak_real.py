"""What is real here: walked models, compressed caches, and the theory on this machine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from common.architecture import Transformer
from common.command_line import main
from common.models.transformer_torch import TransformerLM, softmax_attention
from papers.long_context_peak import analysis, compression, here, walk
from papers.long_context_peak.analysis import Convention
from papers.long_context_peak.compression import Plan

pytestmark = pytest.mark.xdist_group("long_context_peak")

SMALL = Transformer(width=24, depth=4, heads=4, kv_heads=2, head_dim=8, hidden=40, context=80, vocabulary=50, tied=False)


@pytest.fixture(scope="module")
def model() -> TransformerLM:
    return TransformerLM(SMALL, seed=3).eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 50, (3, 80)))


def test_walking_on_meta_is_walking(model: TransformerLM) -> None:
    """A model without weights has the same operations and the same parameters as one with them."""
    shell = walk.OnMeta(SMALL, 80)
    assert walk.operations(shell, 33) == walk.operations(model, 33)
    assert walk.operations(shell, 3, 30) == walk.operations(model, 3, 30)
    assert sum(each.numel() for each in shell.parameters()) == SMALL.parameters()
    assert walk.cache_bytes(model) == analysis.cache_bytes(analysis.model(SMALL, 4.0), 80)
    want = analysis.prefill_operations(analysis.model(SMALL), 3, 30, Convention.full)
    assert walk.operations(model, 3, 30) == want
    with pytest.raises(ValueError, match="rms and rope"):
        walk.OnMeta(dataclasses.replace(SMALL, norm="layer"), 80)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_stored_caches_come_back(model: TransformerLM, ids: torch.Tensor, bits: int) -> None:
    """What is kept is back to within half a step of its block, what is not is zero, and the bytes are those of the arrays."""
    past = compression.prefill(model, ids, 40, 8)
    keep = torch.from_numpy(np.random.default_rng(1).random((4, 3, 2, 40)) < 0.5)
    stored = compression.store(past.cache, keep, bits)
    back = compression.restore(stored, past.cache)
    assert back.length == 40
    step = {16: 2**-8, 8: 0.6 / 127, 4: 0.6 / 7}[bits]
    for got, want in ((back.keys, past.cache.keys), (back.values, past.cache.values)):
        assert not got[..., :40, :][~keep].any() and not got[..., 40:, :].any()
        assert (got - want)[..., :40, :][keep].abs().max() <= step * want.abs().max()
    numbers = 2 * int(keep.sum()) * 8
    blocks = 0 if bits == 16 else 2 * -(-numbers // 2 // 32) * 2
    assert stored.bytes == keep.numel() // 8 + numbers * bits // 8 + blocks
    with pytest.raises(ValueError, match="16, 8 or 4 bits"):
        compression.store(past.cache, keep, 3)


def test_a_whole_cache_reads_like_the_model(model: TransformerLM, ids: torch.Tensor) -> None:
    """With nothing dropped only the rounding to bfloat16 is left."""
    past = compression.prefill(model, ids, 40, 8)
    said, share = compression.read(model, past, Plan(window=8))
    plain = TransformerLM(SMALL, seed=3).eval()
    with torch.no_grad():
        logits = plain(ids[:, :-1])[:, 40:]
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 41:].flatten()) / np.log(2)
    assert share == 1 and compression.bits(said, past.rest) == pytest.approx(float(want), rel=1e-3)
    assert compression.divergence(said, logits.log_softmax(-1)) == pytest.approx(0, abs=1e-4)
    assert compression.divergence(said.roll(1, -1), said) > 0


def test_holes_are_not_seen(model: TransformerLM, ids: torch.Tensor) -> None:
    """Attention with holes is attention over the tokens that are left."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(1, 4, 3, 8, generator=generator), *torch.randn(2, 1, 2, 13, 8, generator=generator)
    keep = torch.ones(1, 1, 2, 10, dtype=torch.bool)
    keep[..., [2, 5, 6]] = False
    got = compression.Attention(keep=keep)(q, k, v, 0, start=10)
    left = [i for i in range(13) if i not in (2, 5, 6)]
    want = softmax_attention(q, k[:, :, left], v[:, :, left], 0, start=7)
    torch.testing.assert_close(got, want)


def test_attention_mass_adds_up(model: TransformerLM, ids: torch.Tensor) -> None:
    past = compression.prefill(model, ids, 40, 8)
    assert past.mass.shape == (4, 3, 2, 40)
    torch.testing.assert_close(past.mass.sum(-1), torch.full((4, 3, 2), 8.0 * 2))
    keep = compression.heaviest(past.mass, 12, 4)
    assert (keep.sum(-1) == 12).all() and keep[..., -4:].all() and keep[..., : compression.SINKS].all()


@pytest.mark.parametrize("name", compression.PLANS)
def test_levers_say_what_is_stored(model: TransformerLM, ids: torch.Tensor, name: str) -> None:
    plan = dataclasses.replace(compression.PLANS[name], window=8)
    important = {"layer": torch.tensor([True, False, True, False]), "head": torch.eye(2, dtype=torch.bool).repeat(2, 1)}
    _, share = compression.read(model, compression.prefill(model, ids, 64, 8), plan, important.get(plan.by))
    # The map of kept tokens is a bit beside heads of 8 numbers here.
    assert share == pytest.approx(plan.lever(64).multiplier, abs=0.01)


def test_plans_by_importance_need_it(model: TransformerLM, ids: torch.Tensor) -> None:
    past = compression.prefill(model, ids, 40, 8)
    with pytest.raises(ValueError, match="which are important"):
        compression.read(model, past, Plan(by="head", window=8))
    assert compression.choose(model, past, "head").sum() == 4
    assert compression.choose(model, past, "layer").sum() == 2


def test_one_efficiency_fits_its_own_point_and_flat_theory_fails() -> None:
    points = [here.Point("prefill", n, 3e-3 * n**1.1, 1e-3 * n) for n in (100, 200, 400)]
    efficiency = here.fit(points, 200)
    assert efficiency["prefill"] == pytest.approx(1 / (3 * 200**0.1))
    assert here.errors(points, efficiency, 200)["prefill"] == pytest.approx((2**0.1 - 2**-0.1) / 2, rel=0.01)
    flat = [point._replace(ideal=0.2) for point in points]
    assert here.errors(flat, here.fit(flat, 200), 200)["prefill"] > 0.3


def test_switches_go_through_real_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    cache = np.arange(100_000, dtype=np.float32)
    assert min(here.switches(tmp_path, cache, 2)) > 0
    assert np.array_equal(np.fromfile(tmp_path / "leaving", np.float32), cache)
    swap, room = here.Swap(tmp_path, cache.nbytes), np.empty_like(cache)
    swap.keep(2 * cache)
    swap.turn(cache, room)
    swap.close()
    assert np.array_equal(room, 2 * cache), "the other user's cache comes in, not the one that left"


def test_one_query_without_a_mask_is_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(1, 4, 1, 8, generator=generator), *torch.randn(2, 1, 2, 13, 8, generator=generator)
    torch.testing.assert_close(here.attention(q, k, v, 0, start=12), softmax_attention(q, k, v, 0, start=12))


def test_usage_errors_are_one_sentence(capsys, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("REPRODUCTION_OUTPUTS", str(tmp_path))
    assert main("long_context_peak", ["preset=smoke", "rounds=0"]) == 2
    assert "at least one round" in capsys.readouterr().err
