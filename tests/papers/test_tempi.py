"""The translation, the copies, the model and its measurements, without any MPI; the oracle is the type map, byte by byte."""

import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from papers.tempi import iid, ir, perf, published, summit
from papers.tempi.buffers import Slabs
from papers.tempi.config import PRESETS, Config
from papers.tempi.constructions import boxes, draws, lines
from papers.tempi.copies import copy
from papers.tempi.datatypes import BYTE, DOUBLE, FLOAT, INT, Contiguous, Indexed, Named, Resized, Struct, Subarray, Vector, vector
from papers.tempi.ir import Dense, Stream, canonical, ordered, regular, strided_block, translate
from papers.tempi.model import Model, bilinear, linear
from papers.tempi.typemap import blocks, offsets

pytestmark = [
    pytest.mark.xdist_group("tempi"),
    # The type checks of the test run look at a random entry of each tuple.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]

few, strides = st.integers(0, 3), st.integers(-40, 80)


def _wrap(old):
    axes = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3)

    def box(old, axes, fortran):  # (subsize, start, rest)
        sizes, counts, starts = zip(*((n + a + b, n, a) for n, a, b in axes), strict=True)
        return Subarray(sizes, counts, starts, old, fortran)

    def steps(old, length, first, step, n):
        return Indexed((length,) * n, tuple(first + i * step for i in range(n)), old)

    return st.one_of(
        st.builds(Contiguous, few, old),
        st.builds(vector, few, few, st.integers(-3, 5), old),
        st.builds(Vector, few, few, strides, old),
        st.builds(box, old, axes, st.booleans()),
        st.builds(steps, old, st.integers(1, 2), strides, strides, st.integers(1, 4)),
        st.builds(Resized, strides, st.integers(0, 60), old),
    )


regular_types = st.recursive(st.sampled_from([BYTE, INT, DOUBLE]), _wrap, max_leaves=4)


def _visited(block):
    """Byte offsets in the order of a block's loops."""
    found = [block.start]
    for count, stride in zip(reversed(block.counts), reversed(block.strides), strict=True):
        found = [at + i * stride for at in found for i in range(count)]
    return found


@given(regular_types)
def test_the_tree_visits_the_type_map(described):
    assume(described.size <= 3000)
    tree, want = translate(described), offsets(described)
    assert len(want) == described.size
    if not want:
        assert tree is None
        return
    kept, sorted_ = (strided_block(form(tree), described.extent) for form in (ordered, canonical))
    assert _visited(kept) == want, "the ordered form packs in MPI's order"
    assert sorted(_visited(sorted_)) == sorted(want), "the canonical form holds the same bytes"
    assert kept.span == (min(want), max(want) + 1)
    assert not kept.disjoint or len(set(want)) == len(want)
    steps = list(ir.steps(tree))
    assert not steps or steps[-1][1] == canonical(tree)


@given(regular_types, st.integers(1, 3))
def test_a_copy_packs_what_the_type_map_says(described, count):
    assume(0 < described.size <= 2000)
    made = copy(translate(described), described.extent, count)
    places = np.concatenate([np.array(offsets(described)) + i * described.extent for i in range(count)])
    low = min(0, int(places.min()))
    moved = copy(Stream(-low, 0, 1, translate(described)), described.extent, count)
    memory = np.random.default_rng(0).integers(0, 256, int(places.max()) - low + 9, dtype=np.uint8)
    packed = np.zeros(made.size + 3, np.uint8)
    moved.pack(memory, packed, 3)
    assert np.array_equal(packed[3:], memory[places - low]) and not packed[:3].any()
    assert np.array_equal(np.concatenate(list(made.offsets())), places)
    if made.reversible:
        target = np.full_like(memory, 9)
        moved.unpack(packed, target, 3)
        untouched = np.ones(len(target), bool)
        untouched[places - low] = False
        assert np.array_equal(target[places - low], packed[3:]) and (target[untouched] == 9).all()


def test_a_copy_out_of_bounds_touches_nothing():
    made = copy(translate(vector(4, 2, 8, BYTE)), 32, 1)
    source, packed = np.ones(26, np.uint8), np.zeros(8, np.uint8)
    made.pack(source, packed)
    for arguments in ((source[:25], packed, 0), (source, packed[:7], 0), (source, packed, 1), (source, packed, -1)):
        packed[:] = 0
        with pytest.raises((ValueError, TypeError)):
            made.pack(*arguments)
        assert not packed.any()
    with pytest.raises(ValueError):
        made.unpack(packed, source[:25])


@given(st.integers(0, 24))
def test_a_short_message_fills_a_prefix(size):
    made = copy(translate(vector(3, 4, 9, BYTE)), 22, 2)
    packed, whole, part = np.arange(1, 25, dtype=np.uint8), np.zeros(44, np.uint8), np.zeros(44, np.uint8)
    made.unpack(packed, whole)
    made.unpack_part(packed, part, size)
    places = np.concatenate(list(made.offsets()))
    assert np.array_equal(part[places[:size]], whole[places[:size]]) and not part[places[size:]].any()


@pytest.mark.parametrize("name", boxes())
def test_equal_boxes_have_one_form(name):
    block = strided_block(canonical(translate(boxes()[name])), 0)
    assert (block.start, block.counts, block.strides) == (0, (100, 13, 47), (1, 256, 256 * 512))
    small = boxes((4, 3, 2), (8, 5, 3))[name]
    assert offsets(small) == [x + 8 * y + 40 * z for z in range(2) for y in range(3) for x in range(4)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_equal_lines_are_dense(n):
    assert {canonical(translate(each)) for each in lines(n).values()} == {Dense(0, n)}


def test_each_pass_by_hand():
    inner = Stream(3, 8, 5, Dense(1, 2))
    assert ir.swap(Stream(0, 1, 4, inner)) == Stream(3, 8, 5, Stream(0, 1, 4, Dense(1, 2)))
    assert ir.swap(Stream(0, 9, 4, inner)) == Stream(0, 9, 4, inner)
    assert ir.fold(Stream(3, 2, 5, Dense(1, 2))) == Dense(4, 10)
    assert ir.fold(inner) == inner
    assert ir.flatten(Stream(7, 40, 3, inner)) == Stream(10, 8, 15, Dense(1, 2))
    assert ir.flatten(Stream(7, 41, 3, inner)) == Stream(7, 41, 3, inner)
    assert ir.elide(Stream(7, 99, 1, inner)) == Stream(10, 8, 5, Dense(1, 2)), "the offset of what is removed stays"
    assert ir.elide(Stream(7, 99, 1, Dense(1, 2))) == Dense(8, 2)


def test_the_swap_changes_the_order_of_bytes():
    """A matrix by columns is the whole matrix to the canonical form, and a transpose to MPI."""
    columns = Vector(4, 1, 1, Vector(3, 1, 4, BYTE))
    assert canonical(translate(columns)) == Dense(0, 12)
    assert _visited(strided_block(ordered(translate(columns)), 0)) == offsets(columns) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


@given(st.permutations([(2, 100), (3, 30), (4, 7), (2, 3)]))
def test_the_canonical_form_does_not_depend_on_the_nesting(loops):
    tree = Dense(0, 2)
    for count, stride in loops:
        tree = Stream(5, stride, count, tree)
    assert strided_block(canonical(tree), 0) == ir.StridedBlock(20, (2, 2, 4, 3, 2), (1, 3, 7, 30, 100), 0)


def test_what_is_not_regular_is_left_alone():
    assert translate(Indexed((1, 2), (0, 8), BYTE)) is None
    assert translate(Indexed((2, 2, 2), (0, 8, 17), BYTE)) is None
    assert translate(Indexed((1,) * 6, (0, 2, 4, 10, 12, 15), BYTE)) is None
    assert translate(Struct((1, 1), (0, 8), (INT, INT))) is None
    assert translate(Contiguous(2, Struct((1,), (0,), (INT,)))) is None
    assert translate(Named("SHORT_INT", 6, 8)) is None, "a pair type has a gap, and nobody says where"
    assert translate(Contiguous(0, INT)) is None and translate(Vector(3, 0, 8, INT)) is None
    with pytest.raises(ValueError, match="gap"):
        offsets(Named("SHORT_INT", 6, 8))


def test_lists_of_displacements_are_recognised():
    assert regular((2,), (7,)) == ([(7, 0, 1)], 2)
    assert regular((3, 3, 3), (5, 3, 1)) == ([(5, 0, 1), (0, -2, 3)], 3)
    assert regular((1, 0, 1), (0, 99, 4)) == ([(0, 0, 1), (0, 4, 2)], 1), "an empty block is nowhere"
    deep = tuple(a + b + c for a in (0, 1000) for b in (0, 100, 200) for c in (0, 7))
    assert regular((4,) * 12, deep) == ([(0, 0, 1), (0, 1000, 2), (0, 100, 3), (0, 7, 2)], 4)


def test_bounds_by_hand():
    assert vector(3, 2, -4, BYTE).bounds == (-8, 2)
    assert Vector(2, 1, 10, Resized(-2, 5, INT)).bounds == (-2, 13)
    assert Subarray((4, 5), (1, 2), (3, 1), INT).bounds == (0, 80)
    assert Indexed((1, 0, 2), (8, -99, 20), INT).bounds == (8, 28)
    assert Struct((1, 2), (0, 8), (INT, DOUBLE)).bounds == (0, 24)
    assert offsets(Subarray((2, 3), (2, 1), (0, 1), BYTE)) == [1, 4]
    assert offsets(Subarray((2, 3), (1, 3), (1, 0), BYTE, fortran=True)) == [1, 3, 5]


def test_pieces_of_a_type_map():
    assert [blocks(each) for each in ([], [4], [0, 1, 2], [0, 1, 3, 4], [2, 1, 0], [0, 0])] == [0, 1, 1, 2, 3, 2]


def test_random_types_are_of_all_kinds():
    kinds = {type(each).__name__ for each in draws(0, 300)}
    assert kinds >= {"Contiguous", "Vector", "Indexed", "Subarray", "Struct", "Resized", "Named"}
    known = [translate(each) is not None for each in draws(0, 300)]
    assert 0.4 < np.mean(known) < 0.95


def test_slabs_are_reused():
    slabs = Slabs()
    for size in (0, 1, 64, 65, 100):
        buffer = slabs.take(size)
        assert buffer.size >= max(size, 1) and buffer.size & (buffer.size - 1) == 0
        slabs.give(buffer)
    assert (slabs.made, slabs.taken) == (2, 5)
    one, other = slabs.take(64), slabs.take(64)
    assert one is not other and slabs.made == 3
    with pytest.raises(RuntimeError), slabs.lend(64) as lent:
        raise RuntimeError
    assert slabs.take(64) is lent


def test_interpolation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    sizes, widths = 4.0 ** np.arange(3, 9), 2.0 ** np.arange(10)
    table = rng.uniform(1, 2, (6, 10))
    size, width = rng.uniform(64, 65536, 200), rng.uniform(1, 512, 200)
    want = RegularGridInterpolator((sizes, widths), table)(np.stack([size, width], 1))
    np.testing.assert_allclose(bilinear(sizes, widths, table, size, width), want, rtol=1e-12)
    np.testing.assert_allclose(linear(sizes, table[:, 0], size), np.interp(size, sizes, table[:, 0]), rtol=1e-12)


def test_interpolation_outside_the_table():
    sizes, widths, table = np.array([64.0, 256.0]), np.array([1.0, 512.0]), np.array([[1.0, 2.0], [3.0, 5.0]])
    at = lambda size, width: float(bilinear(sizes, widths, table, np.array(size), np.array(width)))  # noqa: E731
    assert at(1.0, 1.0) == 1 and at(64.0, 9999.0) == 2, "small objects and long blocks are clamped"
    assert at(1024.0, 512.0) == 20 and at(2560.0, 1.0) == 30, "large objects take longer in proportion"
    assert at(160.0, 1.0) == 2


def _model(**changes):
    sizes, widths, lengths = np.array([64.0, 1024.0, 16384.0]), np.array([1.0, 64.0, 512.0]), 2.0 ** np.arange(15)
    square = lambda scale: np.outer(sizes, 1 / widths) * scale + 1e-6  # noqa: E731
    tables = {
        "pack": square(1e-9), "unpack": square(1e-9), "library_pack": square(3e-9), "library_unpack": square(3e-9),
        "library_send": square(9e-9), "pingpong": 1e-6 + lengths * 1e-10, "d2h": lengths * 1e-10, "h2d": lengths * 1e-10,
    }  # fmt: skip
    return Model(sizes, widths, lengths, {**tables, **changes}, call=2e-6)


def test_the_model_adds_up_and_chooses():
    model = _model()
    parts = [model.surface(name, 1024, 64) for name in ("pack", "unpack")]
    message, copies = model.curve("pingpong", 1024), model.curve("d2h", 1024) + model.curve("h2d", 1024)
    assert np.isclose(model.send("oneshot", 1024, 64), 2e-6 + sum(parts) + message)
    assert np.isclose(model.send("staged", 1024, 64), 2e-6 + sum(parts) + message + copies)
    assert model.send("library", 1024, 64) == model.surface("library_send", 1024, 64)
    for size, block in itertools.product((64, 1000, 16384, 10**6), (1, 24, 512)):
        assert model.best(size, block) == min(("library", "oneshot", "staged"), key=lambda m: model.send(m, size, block))
    assert model.best(64, 512) == "library" and model.best(16384, 1) == "oneshot"
    assert model.packs(1024, 64) and not _model(pack=model.tables["library_pack"] * 2).packs(1024, 64)


def test_perf_json_is_kept_and_foreign_ones_are_refused(tmp_path):
    path = tmp_path / "deep" / "perf.json"
    perf.write(path, _model(), "MPICH 9\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = perf.read(path, "MPICH 9")
    assert found.call == 2e-6 and all(np.array_equal(found.tables[name], table) for name, table in _model().tables.items())
    assert [each.name for each in path.parent.iterdir()] == ["perf.json"]
    whole = json.loads(path.read_text())
    broken = {
        "measured with another": json.dumps(whole),
        "cannot be read": path.read_text()[:-40],
        "not rise": json.dumps({**whole, "sizes": whole["sizes"][::-1]}),
        "no positive numbers": json.dumps({**whole, "tables": {**whole["tables"], "pack": [[0.0] * 3] * 3}}),
        "KeyError": json.dumps({**whole, "tables": {}}),
        "table d2h": json.dumps({**whole, "tables": {**whole["tables"], "d2h": [1.0]}}),
        "cannot be read ": "[]",
    }
    for match, text in broken.items():
        path.write_text(text)
        with pytest.warns(UserWarning, match=match):
            assert perf.read(path, "Open MPI" if "another" in match else "MPICH 9") is None
    with pytest.warns(UserWarning, match="does not exist"):
        assert perf.read(tmp_path / "none.json", "") is None


def test_iid_lets_draws_pass_and_stops_what_has_an_order():
    rng = np.random.default_rng(0)
    passed = sum(iid.is_iid(rng.exponential(size=32), rng, 2000) for _ in range(40))
    assert passed >= 37, "by chance 7 tests of one in 500 each fail"
    noise = lambda: 0.2 * rng.standard_normal(32)  # noqa: E731
    ordered_ = {
        "drift": np.linspace(0, 3, 32), "wave": np.sin(np.arange(32) / 2), "step": np.repeat([0.0, 2.0], 16),
        "alternating": np.tile([0.0, 2.0], 16),
    }  # fmt: skip
    for name, series in ordered_.items():
        assert not iid.is_iid(series + noise(), rng, 2000), name
    assert iid.is_iid(np.ones(9), rng, 100)
    with pytest.raises(ValueError, match="at least 7"):
        iid.is_iid(np.ones(6), rng)


@given(st.lists(st.integers(0, 9), min_size=8, max_size=20))
def test_iid_statistics_by_plain_loops(series):
    values = np.array(series, float)
    found = {name: value[0] for name, value in iid.statistics(values[None]).items()}
    rising = [b >= a for a, b in itertools.pairwise(series)]
    high = [x >= np.median(series) for x in series]
    runs = lambda flags: [len(list(group)) for _, group in itertools.groupby(flags)]  # noqa: E731
    mean, total, worst = np.mean(series), 0.0, 0.0
    for i, value in enumerate(series):
        total += value
        worst = max(worst, abs(total - (i + 1) * mean))
    assert np.isclose(found["excursion"], worst)
    assert found["directional runs"] == len(runs(rising)) and found["longest directional run"] == max(runs(rising))
    assert found["runs about the median"] == len(runs(high)) and found["longest run about the median"] == max(runs(high))
    assert found["increases or decreases"] == max(sum(rising), len(rising) - sum(rising))
    assert np.isclose(found["covariance"], sum((a - mean) * (b - mean) for a, b in itertools.pairwise(series)))


def test_measuring_goes_on_until_the_samples_are_iid():
    rng = np.random.default_rng(1)
    drifting = iter(np.linspace(1, 4, 32))
    steady = iter(2 + rng.standard_normal(1000) / 10)
    found = iid.measure(lambda: next(drifting, None) or next(steady), iid.Sampling(32, 5, 9.0, permutations=2000), rng)
    assert found.iid and found.rounds == 2 and abs(found.seconds - 2) < 0.1
    counter = itertools.count()
    never = iid.measure(lambda: float(next(counter)), iid.Sampling(16, 3, 9.0, permutations=500), rng)
    assert (never.iid, never.rounds) == (False, 3)
    assert iid.trimean(np.array([1.0, 2.0, 3.0, 4.0, 100.0])) == (2 + 2 * 3 + 4) / 4


def test_summit_counts_what_a_rank_sends(monkeypatch):
    monkeypatch.setattr(published, "LOCAL", 5)
    monkeypatch.setattr(published, "RADIUS", 2)
    regions = summit.regions()
    assert len(regions) == 26
    inner = np.zeros((9, 9, 9), np.int64)
    for (z, y, x), block in regions.items():
        sides = [slice(5, 7) if d > 0 else slice(2, 4) if d < 0 else slice(2, 7) for d in (z, y, x)]
        inner[:] = 0
        inner[tuple(sides)] = 1
        want = np.flatnonzero(inner)
        assert sorted({at // 8 for at in _visited(block)}) == want.tolist()
        assert block.size == 8 * len(want)
    assert summit.speedup_of_halo(False) == summit.speedup_of_send(False) == 1


def test_summit_pays_for_whole_sectors():
    narrow, wide = (summit.form(Vector(1000, n, 512, BYTE)) for n in (1, 32))
    assert summit.kernel(wide) - summit.kernel(narrow) < 1000 * 32 / 900e9 * 1.1
    assert summit.blockwise(narrow) == summit.blockwise(wide)


def test_bad_options():
    for options, what in (
        ({"table_samples": 3}, "at least 7"),
        ({"table_bytes": 1000}, "power of two"),
        ({"messages": [100], "pieces": [3]}, "whole number of blocks"),
        ({"halo_size": 1, "halo_radius": 2}, "as wide as the radius"),
    ):
        with pytest.raises(ValueError, match=what):
            Config(**options)
    assert PRESETS["paper"].halo_ranks == published.RANKS and FLOAT.extent == 4
