"""The engine against one process in memory: every mode, every size, every mistake that can be made at its door."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common import UserError
from common.agreement import relative_error
from common.distributed import alone, launch
from common.offload import Arena, OutOfBudget, Pool, Trace
from common.training.torch_loop import next_token_loss
from papers.zero_infinity import exact, trainings
from papers.zero_infinity.construct import partitioned
from papers.zero_infinity.partition import ALIGN, Layout, Partition, Unit
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.tiling_torch import TiledLinear
from papers.zero_infinity.trainings import Training
from papers.zero_infinity.zero3 import Offload, ZeRO3

pytestmark = pytest.mark.xdist_group("zero_infinity")

SHAPE = exact.shape(32, 1, 16)
BATCHES = tuple(np.random.default_rng(i).integers(0, 256, (4, 17)) for i in range(3))
TRAINING = Training(SHAPE, BATCHES, Adam(1e-3, decay=0.1), "float64", chunk=4096)


@pytest.fixture(scope="module")
def plain():
    return trainings.plain(TRAINING)


@pytest.fixture(scope="module")
def want(plain):
    """One rank, everything in memory. PyTorch's Adam rounds its last bit otherwise."""
    got = trainings.train(alone(), TRAINING)
    assert _apart(got, plain) < 1e-13
    np.testing.assert_allclose(got["losses"], plain["losses"], rtol=1e-13)
    return got


def _apart(got, want):
    return max(relative_error(got["weights"][name], each) for name, each in want["weights"].items())


@pytest.mark.parametrize(
    "change",
    [
        {"files": True},
        {"files": True, "parameters": False},
        {"overlap": False},
        {"recompute": True},
        {"files": True, "chunk": 1024},
        {"partition": Partition.owner},
    ],
    ids=str,
)
def test_every_mode_is_the_same_training_bit_by_bit(change, want, tmp_path):
    """One rank divides by one and adds nothing, so nothing may round differently."""
    change = dict(change)
    folder = str(tmp_path) if change.pop("files", False) else ""
    got = trainings.train(alone(), dataclasses.replace(TRAINING, folder=folder, **change))
    assert got["losses"] == want["losses"]
    assert all(np.array_equal(got["weights"][name], each) for name, each in want["weights"].items())
    assert got["broken"] == 0


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_ranks(ranks, tmp_path):
    """Three ranks divide no tensor evenly. A row for each."""
    training = dataclasses.replace(TRAINING, batches=tuple(batch[:ranks] for batch in BATCHES))
    plain = trainings.plain(training)
    for got in launch(_some_rows, ranks, str(tmp_path), training, timeout=60.0)[0]:
        assert _apart(got, plain) < 1e-9
        np.testing.assert_allclose(got["losses"], plain["losses"], rtol=1e-12)


def _some_rows(group, folder, training):
    found = []
    for i, (partition, files) in enumerate(((Partition.slices, True), (Partition.owner, False))):
        own = dataclasses.replace(training, partition=partition, folder=f"{folder}/{i}" if files else "")
        found.append(trainings.train(group, own))
    return found


def test_untied_and_learned_positions(tmp_path):
    """Positions are read by the model itself, outside of their module."""
    for change in ({"tied": False}, {"positions": "learned", "norm": "layer", "feed_forward": "gelu"}):
        training = dataclasses.replace(TRAINING, architecture=dataclasses.replace(SHAPE, **change))
        got, plain = trainings.train(alone(), training), trainings.plain(training)
        assert _apart(got, plain) < 1e-13
        seen = {name for names in got["external"].values() for name in names}
        assert seen == ({"embedding.weight", "positions.weight"} if "positions" in change else set())


def test_a_parameter_used_elsewhere_is_registered_with_who_used_it(want):
    engine = TRAINING.engine(alone())
    engine.step(next_token_loss, torch.from_numpy(BATCHES[0]))
    assert dict(engine.hooks.external) == {"": {"embedding.weight"}}
    # Outside of a pass nothing is fetched, and what is not there is NaN.
    assert torch.isnan(engine.model.embedding.weight).all()
    assert engine.model.embedding.weight.shape == (256, 32)
    engine.close()


def test_the_order_is_traced_once_and_prefetched():
    trace = Trace()
    engine = TRAINING.engine(alone(), trace=trace)
    batch = torch.from_numpy(BATCHES[0])
    engine.step(next_token_loss, batch)
    order = list(engine.fetcher.orders["train"])
    names = [engine.units[i].name for i in order]
    count = len(engine.units)
    # Forward in the order of use, the tied embedding again at the end; backward in reverse, the embedding first.
    assert names[0] == "embedding.weight" and names[count : count + 2] == ["embedding.weight", "embedding.weight"]
    assert names[1:4] == ["blocks.0.attention_norm.weight", "blocks.0.attention.query.weight", "blocks.0.attention.key.weight"]
    trace.clear()
    engine.step(next_token_loss, batch)
    assert engine.fetcher.orders["train"] == order and engine.fetcher.broken == 0
    # The copy of i+2 is queued when i is needed: before the first gradient leaves, several were there ahead of their use.
    assert engine.fetcher.skipped == 0
    engine.close()


def test_three_hops_ahead(monkeypatch):
    """In the second step: while i is used, i+1 is gathered, i+2 copied and i+3 read, unless it is there already."""

    def build():
        return nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(6)))

    engine = ZeRO3(build, alone(), arena=Arena(2**20), pool=Pool(2**22))
    fetcher, asked = engine.fetcher, set()
    engine.step(_square, torch.ones(2, 16))
    order = fetcher.orders["train"]
    assert order == [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1]  # the first layer's weight is not needed backward
    for hop in ("_gather", "_upload", "_read"):
        own = getattr(fetcher, hop)

        def watched(index, hop=hop, own=own):
            asked.add((len(fetcher._seen) - 1, hop, index))
            own(index)

        monkeypatch.setattr(fetcher, hop, watched)
    engine.step(_square, torch.ones(2, 16))
    for i, number in enumerate(order):
        for distance, hop in ((1, "_gather"), (2, "_upload"), (3, "_read")):
            if i + distance < len(order) and order[i + distance] != number:
                assert (i, hop, order[i + distance]) in asked
    assert (0, "_gather", 2) not in asked and (0, "_upload", 3) not in asked and (0, "_read", 4) not in asked
    engine.close()


class Branching(nn.Module):
    """Takes another way at every third call."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8, dtype=torch.float64)
        self.frozen = nn.Linear(8, 8, dtype=torch.float64).requires_grad_(False)
        self.unused = nn.Linear(8, 8, dtype=torch.float64)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        ways = (self.left, self.frozen, self.right) if self.calls % 3 else (self.right, self.frozen)
        for way in ways:
            x = torch.tanh(way(x))
        return x


def _branching():
    torch.manual_seed(5)
    return Branching()


def _square(model, x):
    return model(x).square().sum()


@pytest.mark.parametrize("files", [False, True])
def test_another_order_breaks_the_trace_and_not_the_result(files, tmp_path):
    """Also: frozen and unused parameters stay what they are, and so do those without a gradient in one step."""
    plain = _branching()
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    offload = Offload(tmp_path if files else None)
    engine = ZeRO3(_branching, alone(), arena=Arena(2**20, poison=True), pool=Pool(2**24), offload=offload, adam=Adam(1e-2))
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):  # torch counts steps for each parameter and the engine for all, so it ends with the skipped one
        loss = _square(plain, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert engine.step(_square, x) == pytest.approx(loss.item(), rel=1e-13)
    assert engine.fetcher.broken == 1
    for name, got in engine.tensors():
        torch.testing.assert_close(got, dict(plain.named_parameters())[name].detach(), rtol=1e-13, atol=1e-13)
    engine.close()


@pytest.mark.parametrize("room", [4.0, 5.0, 6.0])
def test_an_arena_with_little_room_does_without_prefetches(room):
    """Layers of one size; from the least that the door lets in to what suffices for everything."""

    def build():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(32, 32, bias=False, dtype=torch.float64) for _ in range(6)))

    x, plain = torch.ones(2, 32, dtype=torch.float64), build()
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3, weight_decay=0)
    engine = ZeRO3(build, alone(), arena=Arena(int(room * 8192), poison=True), pool=Pool(2**22))
    for _ in range(3):
        loss = _square(plain, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert engine.step(_square, x) == pytest.approx(loss.item(), rel=1e-13)
    assert (engine.fetcher.skipped == 0) == (room >= 6) and engine.fetcher.broken == 0
    assert engine.arena.peak <= room * 8192
    engine.close()


def test_nothing_is_left_in_the_arena(tmp_path):
    arena, pool = Arena(2**22, poison=True), Pool(2**24)
    engine = TRAINING.engine(alone(), arena=arena, pool=pool)
    for batch in BATCHES:
        engine.step(next_token_loss, torch.from_numpy(batch))
        assert arena.used == 0
    before = pool.used
    engine.evaluate(next_token_loss, torch.from_numpy(BATCHES[0]))
    assert (arena.used, pool.used) == (0, before)
    engine.close()
    assert pool.used == 0


def test_evaluate_is_the_loss_of_the_model(want):
    engine = TRAINING.engine(alone())
    batch = torch.from_numpy(BATCHES[0])
    assert [engine.evaluate(next_token_loss, batch) for _ in range(2)] == [want["losses"][0]] * 2
    engine.close()


def test_half_precision_weights_have_states_in_float32():
    training = dataclasses.replace(TRAINING, dtype="bfloat16")
    engine = training.engine(alone())
    losses = [engine.step(next_token_loss, torch.from_numpy(batch)) for batch in (*BATCHES, *BATCHES)]
    assert engine.state == torch.float32
    # Small steps survive in the states, though bfloat16 would round them away.
    reference = trainings.plain(dataclasses.replace(TRAINING, batches=(*BATCHES, *BATCHES)))
    np.testing.assert_allclose(losses, reference["losses"], rtol=5e-3)
    engine.close()


# Partition and construction


@given(st.integers(1, 7), st.lists(st.integers(1, 40), min_size=0, max_size=3), st.integers(1, 5), st.sampled_from(Partition))
def test_pieces_cover_every_element_once(ranks, shape, chunks, partition):
    unit, layout = Unit(3, "x", tuple(shape)), Layout(ranks, ALIGN * chunks, partition)
    assert unit.count <= layout.whole(unit) < unit.count + ranks * ALIGN
    positions = [range(piece.position, piece.position + piece.length) for piece in layout.pieces(unit, 0, layout.whole(unit))]
    assert [i for each in positions for i in each] == list(range(layout.whole(unit)))
    assert sum(layout.held(unit, rank) for rank in range(ranks)) == layout.whole(unit)
    for rank in range(ranks):
        assert all(0 < end - start <= layout.chunk for start, end in layout.chunks(unit, rank))


def test_layout_refuses():
    for ranks, chunk in ((0, 64), (1, 0), (1, 65)):
        with pytest.raises(ValueError, match="multiple of 64"):
            Layout(ranks, chunk)


def test_construction_never_holds_the_model():
    """The largest tensor that is whole at any time is one layer, and initialisers see and fill whole tensors."""

    class Slices:
        def __init__(self):
            self.kept = {}

        def keep(self, unit, whole):
            self.kept[unit.index] = whole.clone()

        def whole(self, unit, dtype):
            return self.kept[unit.index].clone()

    def build():
        torch.manual_seed(1)
        return nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)), nn.LayerNorm(16))

    slices = Slices()
    with partitioned(slices) as built:
        model = build()
    want = dict(build().named_parameters())
    units = built.named(model)
    assert built.largest == 256 and sum(unit.count for unit in units) == sum(p.numel() for p in want.values())
    assert all(torch.equal(slices.kept[unit.index], want[unit.name].detach()) for unit in units)
    assert all(p.data.untyped_storage().nbytes() == 4 for p in model.parameters())
    with pytest.raises(RuntimeError, match="stop"), partitioned(None):
        raise RuntimeError("stop")
    assert nn.Linear(2, 2).weight.isfinite().all()  # the patch is gone, also after an error


def test_counted_parameters_are_those_of_the_formula():
    from papers.zero_infinity import published

    model = published.TABLE["0.10T"]
    blocks = 12 * model.layers * model.hidden**2
    assert exact.count(model) == blocks + model.layers * 4 * model.hidden


# Doors


def test_an_arena_too_small_suggests_tiles_and_they_help():
    def build(linear):
        torch.manual_seed(0)
        return nn.Sequential(linear(64, 256), nn.Linear(256, 8))

    room = {"arena": Arena(48 * 1024), "pool": Pool(2**22)}
    with pytest.raises(UserError, match=r"0.weight \(256, 64\) needs 262,144 bytes .* at least 6 tiles"):
        ZeRO3(partial(build, nn.Linear), alone(), **room)
    tiled = ZeRO3(partial(build, partial(TiledLinear, in_splits=1, out_splits=8)), alone(), **room)
    assert np.isfinite(tiled.step(_square, torch.ones(2, 64)))
    assert tiled.arena.peak <= 48 * 1024
    tiled.close()


def test_a_pool_too_small(tmp_path):
    with pytest.raises(OutOfBudget, match="slice on its way up"):
        dataclasses.replace(TRAINING, pool=2**14, folder=str(tmp_path)).engine(alone())
    with pytest.raises(OutOfBudget, match="weight"):
        dataclasses.replace(TRAINING, pool=2**17).engine(alone())


def test_several_dtypes():
    with pytest.raises(ValueError, match="2 dtypes"):
        ZeRO3(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), alone(), arena=Arena(2**16), pool=Pool(2**20))


def test_a_model_on_the_meta_device():
    def build():
        with torch.device("meta"):
            return nn.Linear(2, 2)

    with pytest.raises(ValueError, match="meta"):
        ZeRO3(build, alone(), arena=Arena(2**16), pool=Pool(2**20))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        dataclasses.replace(TRAINING, folder=str(tmp_path / "file")).engine(alone())


# PyTorch's own


def _fsdp(group, batches):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (group.size,))
    model = TRAINING.build()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    adam = TRAINING.adam
    optimizer = torch.optim.AdamW(model.parameters(), adam.rate, (adam.first, adam.second), adam.epsilon, adam.decay)
    for batch in batches:
        loss = next_token_loss(model, torch.from_numpy(batch[group.rank :: group.size].copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: each.full_tensor().detach().numpy() for name, each in model.named_parameters()}


@pytest.mark.slow
def test_the_weights_are_those_of_fsdp2(tmp_path):
    theirs = launch(_fsdp, 2, BATCHES, timeout=100.0)[0]
    got = launch(trainings.train, 2, TRAINING, timeout=100.0)[0]["weights"]
    assert max(relative_error(got[name], each) for name, each in theirs.items()) < 1e-9
