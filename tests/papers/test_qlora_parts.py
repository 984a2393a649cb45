"""Paging, ratings and counted memory of QLoRA."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.offload import OutOfBudget
from papers.qlora import elo, memory_model, published
from papers.qlora.paged_jax import PagedAdamW as PagedJax
from papers.qlora.paged_torch import PagedAdamW
from papers.qlora.paging import KIB, PageStore

pytestmark = pytest.mark.xdist_group("qlora")

PAGE = 64 * KIB


def _write(store, name, value):
    with store.use(name) as page:
        page.numpy("float32")[:] = value


def _read(store, name):
    with store.use(name) as page:
        return page.numpy("float32").copy()


def test_pages_come_back_as_they_left_and_every_byte_is_counted(tmp_path):
    with PageStore(2 * PAGE, tmp_path, page=PAGE) as store:
        for i, name in enumerate("abc"):
            _write(store, name, i + 1)
        assert (store.evictions, store.faults, store.resident) == (1, 0, 2 * PAGE)
        assert (_read(store, "a") == 1).all() and store.faults == 1
        assert (_read(store, "c") == 3).all() and (_read(store, "b") == 2).all()
        assert store.moved() == {"read": 2 * PAGE, "write": store.evictions * PAGE}
        assert store.peak <= 2 * PAGE
        assert {path.stem for path in tmp_path.iterdir()} == {"a", "b"}


def test_the_page_used_least_recently_leaves_first(tmp_path):
    with PageStore(2 * PAGE, tmp_path, page=PAGE) as store:
        _write(store, "a", 1)
        _write(store, "b", 2)
        _read(store, "a")
        _write(store, "c", 3)
        hits = store.hits
        _read(store, "a")
        assert store.hits == hits + 1 and store.faults == 0


def test_a_reservation_pushes_pages_out_and_they_return(tmp_path):
    with PageStore(4 * PAGE, tmp_path, page=PAGE) as store:
        for i in range(4):
            _write(store, str(i), i)
        with store.reserve(2 * PAGE + 1):
            assert store.resident == PAGE
        assert all((_read(store, str(i)) == i).all() for i in range(4)) and store.faults == 3
        with pytest.raises(OutOfBudget), store.reserve(5 * PAGE):
            pass


def test_a_store_that_is_too_small_says_the_least(tmp_path):
    with pytest.raises(ValueError, match=f"wanted at least one page, {PAGE} bytes"):
        PageStore(PAGE - 1, tmp_path, page=PAGE)
    for page in (32 * KIB, 4096 * KIB, 96 * KIB):
        with pytest.raises(ValueError, match="wanted a power of two from 65536 to 2097152"):
            PageStore(1 << 30, tmp_path, page=page)
    with PageStore(PAGE, tmp_path, page=PAGE) as store, pytest.raises(ValueError, match="wanted contiguous float32"):
        PagedAdamW([torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)], store)


@settings(max_examples=8)
@given(
    st.lists(st.integers(1, 20_000), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(1, 4),
)
def test_paged_adamw_is_adamw_to_the_bit(tmp_path_factory, sizes, kind, fused, pages):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator, dtype=kind) for size in sizes]
    plain, paged = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.8, 0.99), "weight_decay": 0.1, "fused": fused}
    with PageStore(pages * PAGE, tmp_path_factory.mktemp("pages"), page=PAGE) as store:
        optimizers = torch.optim.AdamW(plain, **options), PagedAdamW(paged, store, **options)
        for step in range(3):
            for p, q in zip(plain, paged, strict=True):
                p.grad = torch.randn(p.shape, generator=generator, dtype=kind)
                q.grad = p.grad.clone()
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
                optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(plain, paged, strict=True))


def test_paged_adamw_in_jax_is_torch_s(tmp_path):
    rng = np.random.default_rng(0)
    start = {"a": rng.standard_normal((30, 700)).astype(np.float32), "b": rng.standard_normal(5).astype(np.float32)}
    p = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    q = {name: jnp.asarray(value) for name, value in start.items()}
    with PageStore(2 * PAGE, tmp_path, page=PAGE) as store:
        mine, theirs = PagedJax(store, 1e-2, weight_decay=0.1), torch.optim.AdamW(p.values(), lr=1e-2, weight_decay=0.1)
        for _ in range(5):
            g = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in start.items()}
            q = mine.step(q, {name: jnp.asarray(value) for name, value in g.items()})
            for name, parameter in p.items():
                parameter.grad = torch.tensor(g[name])
            theirs.step()
        assert store.faults > 0
    for name in start:
        np.testing.assert_allclose(q[name], p[name].detach(), rtol=1e-5, atol=1e-6)


def test_elo_of_one_game():
    for counts, gain in (((1, 0, 0), 16), ((0, 1, 0), 0), ((0, 0, 1), -16)):
        found = elo.ratings({("a", "b"): counts}, orders=3)
        assert found == {"a": 1000 + gain, "b": 1000 - gain}


def test_elo_of_games_in_a_known_order():
    def by_hand(scores):
        a = b = 1000.0
        for s in scores:
            gain = 32 * (s - 1 / (1 + 10 ** ((b - a) / 400)))
            a, b = a + gain, b - gain
        return a

    orders = [by_hand(s) for s in ((1, 1, 0), (1, 0, 1), (0, 1, 1))]
    found = elo.ratings({("a", "b"): (2, 0, 1)}, orders=6000, seed=1)
    assert abs(found["a"] - np.mean(orders)) < 0.2
    assert abs(sum(found.values()) - 2000) < 1e-6


def test_elo_bad_input():
    for verdicts, orders in (({}, 1), ({("a", "b"): (0, 0, 0)}, 1), ({("a", "a"): (1, 0, 0)}, 1), ({("a", "b"): (1, 0, 0)}, 0)):
        with pytest.raises(ValueError, match="at least one game"):
            elo.ratings(verdicts, orders=orders)


def test_verdicts_are_every_pair_once():
    names = {name for pair in published.VERDICTS for name in pair}
    assert len(published.VERDICTS) == len(names) * (len(names) - 1) // 2
    assert all(150 <= sum(counts) <= 160 for counts in published.VERDICTS.values())


def test_bits_of_the_scales_have_a_closed_form():
    found = memory_model.overhead_bits(512, 1024)
    assert found["plain"] == 32 / 64
    assert found["double"] == 8 / 64 + 32 / (64 * 256) + 32 / (512 * 1024)


def test_memory_of_a_llama_has_a_closed_form():
    a = memory_model.llama(width=512, depth=3, heads=8, hidden=1408, vocabulary=1000)
    found = memory_model.fine_tuning_bytes(a, rank=16, batch=1, length=64)
    matrices = 3 * (4 * 512 * 512 + 3 * 512 * 1408)
    ends = 3 * 16 * (4 * 1024 + 3 * 1920)
    assert a.parameters() == matrices + 2 * 1000 * 512 + 7 * 512
    assert found["weights"] == matrices // 2 + 2 * (a.parameters() - matrices)
    assert found["adapters and gradients"] == 2 * 2 * ends and found["optimizer"] == 8 * ends
    assert memory_model.full_bytes(a) == 12 * a.parameters()
