"""The ring on real ranks against PyTorch's own attention, and everything that must be refused before it hangs."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.agreement import relative_error
from common.command_line import main
from common.distributed import Group, RankError, Ranks, launch
from papers.sequence_parallelism import held, memory_model, parallel
from papers.sequence_parallelism.alternatives_torch import gathered_attention, ulysses_attention
from papers.sequence_parallelism.config import PRESETS, Config
from papers.sequence_parallelism.counts import ring_sent
from papers.sequence_parallelism.data import IGNORED, PAD, chunk, masked_batch
from papers.sequence_parallelism.encoder import Place, Shape
from papers.sequence_parallelism.exact import attention_error
from papers.sequence_parallelism.linformer_torch import linformer_attention
from papers.sequence_parallelism.online_torch import ring_attention_online
from papers.sequence_parallelism.parallel import Adam, Job, serial, train
from papers.sequence_parallelism.ring_torch import Ring, ring_attention

pytestmark = pytest.mark.xdist_group("sequence_parallelism")

TEXT = np.frombuffer(b"In the beginning God created the heaven and the earth. " * 40, np.uint8)


@pytest.fixture(scope="module")
def two():
    with Ranks(2, timeout=60.0) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def three():
    with Ranks(3, timeout=60.0) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four():
    with Ranks(4, timeout=60.0) as ranks:
        yield ranks


def against_torch(group: Group, kind: str, sizes: tuple[int, int, int, int], seed: int, dtype: str, options: dict) -> float:
    """Largest relative error of a rank's output and gradients, for any shapes."""
    batch, heads, length, dim = sizes
    drawn = torch.Generator().manual_seed(seed)
    q, k, v, cotangent = torch.randn(4, batch, heads, length * group.size, dim, generator=drawn, dtype=torch.float64)
    causal, masked = options.pop("causal", False), options.pop("masked", False)
    seen = torch.rand(batch, length * group.size, generator=drawn) < 0.6 if masked else None
    if seen is not None:
        seen[:, 0] = True  # each query must see a key

    def mine(x: torch.Tensor) -> torch.Tensor:
        return x.detach().chunk(group.size, 2)[group.rank].to(getattr(torch, dtype))

    whole = [each.clone().requires_grad_() for each in (q, k, v)]
    bias = torch.zeros(batch, 1, q.shape[2], q.shape[2], dtype=torch.float64)
    if seen is not None:
        bias = bias.masked_fill(~seen[:, None, None], -torch.inf)
    if causal:
        bias = bias.masked_fill(torch.ones(bias.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    want = F.scaled_dot_product_attention(*whole, attn_mask=bias)
    want.backward(cotangent)
    parts = [mine(each).requires_grad_() for each in whole]
    ring = Ring(group, **options)
    if kind == "ring":
        got = ring_attention(*parts, ring, mask=seen, causal=causal)
    else:
        got = ring_attention_online(*parts, ring, causal=causal)
    got.backward(mine(cotangent))
    errors = [relative_error(got.detach(), mine(want))]
    for one, other in zip(parts, whole, strict=True):
        scale = float(other.grad.abs().max())
        errors.append(float((one.grad - mine(other.grad)).abs().max()) / max(scale, 1e-30))
    return max(errors)


@settings(max_examples=15)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    seed=st.integers(0, 2**20),
    causal=st.booleans(),
    masked=st.booleans(),
    overlap=st.booleans(),
    reduce=st.sampled_from(["scatter", "all"]),
)
def test_ring_is_attention_for_any_shape(three, sizes, seed, causal, masked, overlap, reduce) -> None:
    options = {"causal": causal, "masked": masked, "overlap": overlap, "reduce": reduce}
    assert max(three.run(against_torch, "ring", sizes, seed, "float64", options)) < 1e-10


@settings(max_examples=8)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    seed=st.integers(0, 2**20),
    causal=st.booleans(),
    overlap=st.booleans(),
)
def test_online_ring_is_attention_for_any_shape(three, sizes, seed, causal, overlap) -> None:
    options = {"causal": causal, "overlap": overlap}
    assert max(three.run(against_torch, "online", sizes, seed, "float64", options)) < 1e-10


@pytest.mark.parametrize("kind", ["ring", "online"])
def test_float32_and_chunks_larger_than_a_socket_holds(three, kind) -> None:
    """Every rank sends two megabytes before any of them receives; nothing may wait for ever."""
    assert max(three.run(against_torch, kind, (2, 64, 64, 64), 1, "float32", {})) < 1e-5


def test_grouped_queries_go_around(four) -> None:
    assert max(four.run(grouped)) < 1e-10


def grouped(group: Group) -> float:
    drawn = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, 12, 4, generator=drawn, dtype=torch.float64) for heads in (6, 2, 2))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    parts = [each.chunk(group.size, 2)[group.rank] for each in (q, k, v, want)]
    return relative_error(ring_attention_online(*parts[:3], Ring(group), causal=True), parts[3])


def test_chunks_come_by_from_the_left(four) -> None:
    for rank, seen in enumerate(four.run(owners)):
        assert seen == [((rank - step) % 4, float((rank - step) % 4)) for step in range(4)]


def owners(group: Group) -> list[tuple[int, float]]:
    return [(owner, x.item()) for owner, (x,) in Ring(group).around(torch.tensor([float(group.rank)]))]


def test_a_ring_of_one_sends_nothing() -> None:
    (rows,) = launch(alone, 1)
    assert rows == 0


def alone(group: Group) -> float:
    assert attention_error(group, "ring", 0) < 1e-12
    return group.traffic.bytes()


def test_overlap_and_mask_change_no_byte(four) -> None:
    assert len(set(four.run(bytes_by_option))) == 1


def bytes_by_option(group: Group) -> float:
    counts = []
    for overlap in (True, False):
        for mask in (None, torch.ones(1, 8 * group.size, dtype=torch.bool)):
            x = torch.randn(1, 2, 8, 4).requires_grad_()
            before = group.traffic.bytes()
            ring_attention(x, x, x, Ring(group, overlap=overlap), mask=mask).sum().backward()
            counts.append(group.traffic.bytes() - before)
    assert len(set(counts)) == 1
    return counts[0]


# What must be refused, on every rank and before anything is sent.


def unequal(group: Group) -> str:
    x = torch.randn(1, 2, 4 + (group.rank == 1), 8)
    with pytest.raises(ValueError) as caught:
        ring_attention(x, x, x, Ring(group))
    assert group.traffic.bytes(kind="exchange") == 0
    return str(caught.value)


def test_unequal_chunks_are_found_before_anything_is_sent(three) -> None:
    start = time.monotonic()
    said = three.run(unequal)
    assert time.monotonic() - start < 20
    assert len(set(said)) == 1 and "must be the same on all ranks" in said[0] and "rank 1 has" in said[0]


def short_mask(group: Group) -> str:
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError) as caught:
        ring_attention(x, x, x, Ring(group), mask=torch.ones(1, 4, dtype=torch.bool))
    return str(caught.value)


def test_a_mask_of_the_chunk_is_refused(three) -> None:
    assert all("of this rank's chunk" in said and "wanted (1, 12)" in said for said in three.run(short_mask))


def dies(group: Group) -> None:
    x = torch.randn(1, 2, 4, 8)
    if group.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    ring_attention(x, x, x, Ring(group, check=False))


def test_a_rank_that_dies_is_named_and_ends_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match="rank 2 of 3 was killed by SIGKILL"):
        launch(dies, 3, timeout=30.0)
    assert time.monotonic() - start < 30


def linformer_numbers(group: Group, chunk: int, rows: int) -> int:
    q, k, v = (torch.randn(2, 4, chunk, 8).requires_grad_() for _ in range(3))
    columns = [torch.randn(rows, chunk).requires_grad_() for _ in range(2)]
    return held.kept(lambda: linformer_attention(q, k, v, *columns, group))


def test_linformers_formula_is_what_autograd_keeps(two) -> None:
    """q is kept scaled; the projections are weights, and the input and output of the layers around are not in this call."""
    batch, heads, dim, length, rows, size = 2, 4, 8, 32, 5, 2
    width, chunk = heads * dim, length // size
    formula = memory_model.linformer(size, batch, length, width, heads, rows)
    weights = 16 * width**2 + 8 * rows * length / size
    around = 2 * batch * length * width / size
    kept = two.run(linformer_numbers, chunk, rows)[0]
    assert kept - 2 * rows * chunk == formula - weights - around


def test_bytes_are_the_closed_forms(two, three) -> None:
    for ranks in (two, three):
        size = ranks.size
        for kind, backward in (("all", 6), ("scatter", 4)):
            for got in ranks.run(ring_sent, kind):
                assert got == (2, pytest.approx(backward, rel=1e-12))
        for forward, backward in ranks.run(ring_sent, "online"):
            assert forward == 2
            assert backward * (size - 1) == pytest.approx(2 * (size - 1) + 2 * size)


def late_for_ever(group: Group) -> None:
    if group.rank == 1:
        time.sleep(60)
    x = torch.randn(1, 2, 4, 8)
    ring_attention(x, x, x, Ring(group, check=False))


def test_a_rank_that_hangs_does_not_hold_the_others_for_ever() -> None:
    with pytest.raises(RankError, match="rank"):
        launch(late_for_ever, 2, timeout=3.0)


def test_a_length_that_cannot_be_divided_names_the_filling() -> None:
    batch = masked_batch(TEXT, 2, 18, 0, 0)
    with pytest.raises(ValueError, match="pad by 2 to 20"):
        chunk(batch, 0, 5)
    filled = chunk(batch, 4, 5, pad=True)
    assert filled.tokens[:, -2:].tolist() == [[PAD, PAD]] * 2
    assert filled.labels[:, -2:].tolist() == [[IGNORED, IGNORED]] * 2
    assert filled.seen is not None and filled.seen.sum(1).tolist() == [18, 18] and filled.seen.shape == (2, 20)


IMPOSSIBLE = {
    "sequence=2 has 4 ranks, this group has 2": {"axes": {"sequence": 2, "data": 2}},
    "2 ranks cannot share 3 heads": {"axes": {"tensor": 2}, "shape": Shape(18, 1, 3, 8)},
    "2 stages cannot share 3 blocks": {"axes": {"pipe": 2}, "shape": Shape(16, 3, 2, 8)},
    "2 parts cannot share 3 sequences": {"axes": {"data": 2}, "batches": [masked_batch(TEXT, 3, 8, 0, 0)]},
    "pad by 1 to 8": {"axes": {"sequence": 2}, "batches": [masked_batch(TEXT, 2, 7, 0, 0)]},
    "8 tokens, filling included, are more than the 6 positions": {"axes": {"pipe": 2}, "shape": Shape(16, 2, 2, 6)},
    "cannot share 9 columns": {"axes": {"sequence": 2}, "shape": Shape(16, 1, 2, 9, rows=3)},
}


def refusals(group: Group, jobs: list[Job]) -> list[str]:
    """What each job is refused with; the first of two stages alone sees the tokens, so only that rank speaks."""
    said = []
    for job in jobs:
        try:
            if job.axes.get("pipe") == 2 and job.shape.depth == 2 and group.rank == 1:
                said.append("")
                continue
            train(group, job)
            said.append("accepted")
        except ValueError as error:
            said.append(str(error))
    return said


def test_impossible_trainings_are_refused(two) -> None:
    whole = {"shape": Shape(16, 1, 2, 8), "batches": [masked_batch(TEXT, 2, 8, 0, 0)]}
    first, second = two.run(refusals, [Job(**{**whole, **change}) for change in IMPOSSIBLE.values()])
    for says, one, other in zip(IMPOSSIBLE, first, second, strict=True):
        assert says in one and other in ("", one)


def refused(group: Group) -> list[str]:
    x = torch.randn(1, 4, 4, 8)
    said = []
    for call in (
        lambda: ulysses_attention(x, x, x, group),
        lambda: linformer_attention(x, x, x, torch.ones(2, 4), torch.ones(2, 5), group),
        lambda: Ring(group, reduce="some"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        said.append(str(caught.value))
    return said


def test_other_doors(three) -> None:
    ulysses, columns, reduce = three.run(refused)[0]
    assert "3 ranks share 4 heads" in ulysses
    assert "the value projection has 5 columns, the chunk 4 tokens" in columns
    assert "wanted 'scatter' or 'all'" in reduce


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranks": 1}, "two or more"),
        ({"heads": 6}, "ranks that divide the heads"),
        ({"length": 510}, "pad length by 2"),
        ({"steps": 0}, "at least one"),
    ],
)
def test_impossible_options_are_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(**change)


def test_usage_errors_are_one_sentence(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REPRODUCTION_OUTPUTS", str(tmp_path))
    assert main("sequence_parallelism", ["preset=smoke", "ranks=3"]) == 2
    assert "ranks that divide the heads" in capsys.readouterr().err
    assert main("sequence_parallelism", ["preset=paper"]) == 2
    assert "torchrun --nnodes=2 --nproc-per-node=8" in capsys.readouterr().err


# The training around it.


def test_chunks_and_filling_train_like_the_whole(four) -> None:
    """Ten tokens on four ranks: two of them are filling, which nobody may see."""
    shape = Shape(16, 1, 2, 12)
    job = Job(shape, [masked_batch(TEXT, 2, 10, 1, step) for step in range(3)], axes={"sequence": 4}, pad=True)
    found, want = four.run(train, job), serial(job)
    assert parallel.errors(found, want, shape) < 1e-9
    assert parallel.errors(found, want, shape, "gradients") < 1e-9


@pytest.mark.parametrize("axes", [{"sequence": 2, "tensor": 2}, {"sequence": 2, "data": 2}])
def test_linformer_trains_on_grids(four, axes) -> None:
    shape = Shape(16, 1, 2, 8, rows=3)
    job = Job(shape, [masked_batch(TEXT, 2, 8, 1, step) for step in range(2)], axes=axes)
    assert parallel.errors(four.run(train, job), serial(job), shape) < 1e-9


@pytest.mark.parametrize("change", [{"split": True}, {"micro": 1}, {"reduce": "all"}])
def test_ways_to_send_end_at_the_same_weights(four, change) -> None:
    axes = {"pipe": 2, "sequence": 2} if "reduce" in change else {"pipe": 2, "tensor": 2}
    shape = Shape(16, 2, 2, 8)
    job = Job(shape, [masked_batch(TEXT, 4, 8, 2, step) for step in range(2)], axes=axes, **change)
    assert parallel.errors(four.run(train, job), serial(job), shape) < 1e-9


@pytest.mark.slow
def test_all_four_axes_at_once() -> None:
    shape = Shape(16, 2, 2, 8)
    job = Job(shape, [masked_batch(TEXT, 4, 8, 2, step) for step in range(3)], axes=dict.fromkeys(parallel.AXES, 2))
    assert parallel.errors(launch(train, 16, job), serial(job), shape) < 1e-9


@pytest.mark.parametrize("fault", ["late", "divided", "alone"])
def test_faults_show(four, fault) -> None:
    shape = Shape(16, 1, 2, 8)
    job = parallel.faults(Job(shape, [masked_batch(TEXT, 2, 8, 1, 0)], axes={"sequence": 4}), fault)
    assert parallel.errors(four.run(train, job), serial(job), shape, "gradients") > 1e-3


@pytest.mark.slow  # PyTorch's takes seconds to import; every run holds ours against optax
def test_adam_is_pytorchs() -> None:
    torch.manual_seed(0)
    one, other = torch.nn.Linear(5, 3, dtype=torch.float64), torch.nn.Linear(5, 3, dtype=torch.float64)
    other.load_state_dict(one.state_dict())
    ours, theirs = Adam(one, 1e-2), torch.optim.Adam(other.parameters(), 1e-2)
    for _ in range(4):
        x = torch.randn(7, 5, dtype=torch.float64)
        for model, optimizer in ((one, ours), (other, theirs)):
            model.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-12, atol=1e-14)


def gathered_keeps(group: Group) -> bool:
    """The gathered alternative equals the ring."""
    x = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(group.rank), dtype=torch.float64)
    return torch.allclose(gathered_attention(*x, group), ring_attention(*x, Ring(group)), atol=1e-12)


def test_gathering_is_the_same(three) -> None:
    assert all(three.run(gathered_keeps))


def test_parts_are_the_whole() -> None:
    """Every weight lies on some rank, those that are shared out exactly once."""
    shape = Shape(16, 2, 2, 8, rows=3)
    from papers.sequence_parallelism.encoder import initial_weights, part

    whole = initial_weights(shape, 0)
    places = [Place((t, 2), (s, 2), (p, 2)) for t in range(2) for s in range(2) for p in range(2)]
    parts = [part(whole, shape, place) for place in places]
    assert set().union(*parts) == set(whole)
    name = "blocks.1.attention.query.weight"
    tensors = [part(whole, shape, Place(tensor=(t, 2)))[name] for t in range(2)]
    np.testing.assert_array_equal(np.concatenate(tensors), whole[name])
    name = "blocks.0.feed_forward.down.weight"
    tensors = [part(whole, shape, Place(tensor=(t, 2)))[name] for t in range(2)]
    np.testing.assert_array_equal(np.concatenate(tensors, 1), whole[name])
    name = "blocks.0.attention.key_columns"
    columns = [part(whole, shape, Place(sequence=(s, 2)))[name] for s in range(2)]
    np.testing.assert_array_equal(np.concatenate(columns, 1), whole[name])


@given(st.integers(1, 4), st.integers(6, 40), st.integers(0, 99), st.integers(1, 6))
def test_batches(count, length, step, ranks) -> None:
    batch = masked_batch(TEXT, count, length, 7, step)
    again = masked_batch(TEXT, count, length, 7, step)
    assert all(np.array_equal(one, other) for one, other in zip(batch[:4], again[:4], strict=True))
    assert batch.asked == (batch.labels != IGNORED).sum()
    assert ((batch.labels < PAD) | (batch.labels == IGNORED)).all()
    parts = [chunk(batch, rank, ranks, pad=True) for rank in range(ranks)]
    np.testing.assert_array_equal(np.concatenate([each.tokens for each in parts], 1)[:, :length], batch.tokens)
    assert [each.start for each in parts] == [rank * parts[0].tokens.shape[1] for rank in range(ranks)]
    # Unmask, and put swapped segments back: a piece of the text.
    whole = np.where(batch.labels == IGNORED, batch.tokens, batch.labels)
    for row, order in zip(whole, batch.order, strict=True):
        border = list(row).index(258)
        one, two = row[1:border], row[border + 1 :]
        text = np.concatenate([two, one] if order else [one, two]).astype(np.uint8).tobytes()
        assert text in TEXT.tobytes()


def test_presets_fit_the_claims() -> None:
    assert PRESETS["laptop"].ranks == 4 and PRESETS["laptop"].grids == 4 and PRESETS["paper"].width == 768
