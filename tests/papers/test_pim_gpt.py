"""The machine's time: the map is one to one, the trace legal, a machine that steps agrees, and single costs can be done by hand."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.pim_gpt import published
from papers.pim_gpt.computing import small_machine, small_model
from papers.pim_gpt.config import PRESETS, Config
from papers.pim_gpt.counting import resnet18, row_visit
from papers.pim_gpt.energy import energy
from papers.pim_gpt.interpreter import interpret
from papers.pim_gpt.layout import Layout, Options
from papers.pim_gpt.legality import violations
from papers.pim_gpt.machine import Machine, Timing
from papers.pim_gpt.mapping import Mapping
from papers.pim_gpt.program import FIELDS, F, Op, Program, token
from papers.pim_gpt.simulator import C, Command, Trace, simulate

pytestmark = pytest.mark.xdist_group("pim_gpt")

QUIET = Timing(refresh_interval=0)
SMALL = published.MODELS["GPT2-small"]


def _program(*rows):
    code = np.zeros((len(rows), len(FIELDS)), np.int64)
    code[:, F["wait"]] = code[:, F["signal"]] = -1
    for i, row in enumerate(rows):
        for name, value in row.items():
            code[i, F[name]] = value
    return Program(code, (), int(code[:, F["signal"]].max()) + 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([32, 64, 128]), st.sampled_from([16, 64]), st.integers(1, 90),
    st.integers(1, 200), st.booleans(), st.booleans(), st.integers(0, 5),
)  # fmt: skip
def test_the_map_is_one_to_one_and_balanced(channels, banks, row, buffer, outputs, inputs, packed, inside, base):
    m = Machine(channels=channels, banks=banks, row=row, buffer=buffer)
    mapping = Mapping(m, outputs, inputs, base, packed, inside)
    output, index = (grid.ravel() for grid in np.meshgrid(np.arange(outputs), np.arange(inputs), indexing="ij"))
    place = mapping.place(output, index)
    assert len(set(zip(*(each.tolist() for each in place), strict=True))) == outputs * inputs
    for each, size in zip(place, (channels, banks, base + mapping.rows, row), strict=True):
        assert each.min() >= 0
        assert each.max() < size
    back = mapping.find(*place)
    assert np.array_equal(back[0], output)
    assert np.array_equal(back[1], index)
    # Everything that is not the matrix's is found to be nobody's.
    everywhere = [each.ravel() for each in np.indices((channels, banks, base + mapping.rows + 1, row))]
    assert (mapping.find(*everywhere)[0] >= 0).sum() == outputs * inputs
    # Balanced: no bank has more than one row of the matrix more than another, nor more than one DRAM row.
    held = np.bincount(place[0] * banks + place[1], minlength=m.units) / inputs
    assert held.max() - held.min() <= 1
    rows = [len(set(place[2][place[0] * banks + place[1] == unit].tolist())) for unit in range(m.units)]
    if outputs >= m.units and packed:
        assert max(rows) - min(rows) <= -(-inputs // row) + 1
    if packed:
        assert mapping.rows <= -(
            -mapping.rounds * sum(-(-min(buffer, inputs - c) // 16) for c in range(0, inputs, buffer)) // m.columns
        )


@settings(max_examples=10, deadline=None)
@given(
    st.booleans(), st.integers(1, 2), st.sampled_from([0, 97, 150, 400]), st.sampled_from([3.0, 16.0]),
    st.sampled_from([{}, {"packed": False}, {"chunks_inside": True}, {"value_rows": True}, {"overlap": False}]), st.integers(0, 63),
)  # fmt: skip
def test_stepping_through_every_ns_ends_at_the_same_ns(gated, channels, refresh, pins, options, position):
    machine = small_machine(channels, refresh, pins)
    program = token(Layout(machine, small_model(gated), Options(tokens=64, **options)), position)
    trace = simulate(program, machine)
    assert interpret(program, machine) == trace.finish
    assert violations(trace) == []


def test_whole_tokens_are_legal_and_refreshed():
    machine = Machine()
    trace = simulate(token(Layout(machine, SMALL), 700), machine)
    assert violations(trace) == []
    refreshes = trace.of(Command.REF)
    assert len(refreshes) == machine.channels * (trace.finish // machine.timing.refresh_interval)
    assert trace.timeline(channels=(0, 5)).overlaps() == []


def test_the_checker_sees_broken_rules():
    machine = Machine()
    trace = simulate(token(Layout(machine, SMALL), 3), machine)

    def broken(command, field, shift, pick=40):
        rows = trace.rows.copy()
        i = np.flatnonzero(rows[:, C["command"]] == command)[pick]
        rows[i, C[field]] += shift
        return " ".join(violations(dataclasses.replace(trace, rows=rows)))

    opened = trace.rows.copy()
    opened[opened[:, C["command"]] == Command.ACT, C["start"]] += 3
    assert "within tRCD" in " ".join(violations(dataclasses.replace(trace, rows=opened)))
    assert "not open" in broken(Command.MAC, "row", 1)
    assert "within tRP" in broken(Command.ACT, "start", -1)
    assert "before MAC has ended" in broken(Command.PRE, "start", -30)
    assert "two transfers" in broken(Command.WRGB, "end", 10**6)
    assert "buffer is filled" in broken(Command.WRGB, "end", 10**6)
    assert "during a refresh" in broken(Command.REF, "end", 500)
    assert "two operators" in broken(Command.ASIC, "end", 10**6)
    assert "before WR has ended" in broken(Command.WR, "end", 5)
    rows = trace.rows[trace.rows[:, C["command"]] != Command.REF]
    assert "left out" in " ".join(violations(dataclasses.replace(trace, rows=rows)))
    assert "not open" in " ".join(
        violations(dataclasses.replace(trace, rows=trace.rows[trace.rows[:, C["command"]] != Command.ACT]))
    )
    leaving = trace.rows.copy()
    leaving[leaving[:, C["command"]] == Command.RDMAC, C["start"]] -= 1
    assert "before they are made" in " ".join(violations(dataclasses.replace(trace, rows=leaving)))


def test_one_row_by_hand():
    assert row_visit(Machine(timing=QUIET)) == (12 + 64 + 12, pytest.approx(64 / 88))
    assert row_visit(Machine(row=512, timing=QUIET))[0] == 12 + 32 + 12


def test_small_programs_by_hand():
    machine = Machine(timing=QUIET)

    def finish(*rows):
        return simulate(_program(*rows), machine).finish

    visit = {"op": Op.MAC, "count": 64, "out": 1}
    # The row stays open for the second visit; then another row: closed, opened, read; sums leave while it goes on.
    assert finish({**visit}, {**visit}) == 12 + 64 + 64 + 1
    assert finish({**visit}, {**visit, "row": 1, "close": 1}) == 12 + 64 + 12 + 12 + 64 + 12
    # 2 KB over 64 GB/s, while the row is opened.
    assert finish({"op": Op.LOAD, "count": 1024, "time": machine.bus(2048)}, {**visit, "close": 1}) == 32 + 64 + 12
    # One written column: tRCD, the column, tWR, tRP; sixteen of them in sixteen banks take turns on the bus alone.
    write = {"op": Op.WRITE, "count": 1, "time": machine.bus(32), "out": 1}
    assert finish(write) == 12 + 1 + 12 + 12
    many = [{**write, "bank": b, "out": int(b == 0)} for b in range(16)]
    assert finish(*many) == 12 + 16 + 12 + 12
    assert finish(*[{**each, "bank": 0} for each in many[:2]]) == 2 * (12 + 1 + 12 + 12)
    # A signal holds back what waits for it; the pipeline's depth counts for the result, not for the unit.
    chip = {"op": Op.ASIC, "time": 10, "buffer": 5, "signal": 0}
    assert finish(chip, {**chip, "signal": -1}, {**visit, "wait": 0, "close": 1}) == 10 + 5 + 88


def test_refresh_closes_rows():
    machine = Machine(timing=Timing(refresh_interval=100, refresh=50))
    visit = {"op": Op.MAC, "count": 64, "out": 0}
    trace = simulate(_program(visit, visit, {**visit, "count": 4, "close": 1}), machine)
    # 12 + 64 + 64 = 140: the refresh due at 100 waits for the running visit; the one due at 200 comes right behind it at 202.
    assert trace.of(Command.REF)[:, C["start"]].tolist() == [140 + 12, 140 + 12 + 50]
    assert trace.finish == 140 + 12 + 50 + 50 + 12 + 4 + 12 + 5
    assert violations(trace) == []
    assert trace.hit_rate == pytest.approx(1 - 2 / 132)


def test_what_the_naive_layout_of_values_costs():
    machine = Machine(timing=QUIET)
    ends = {}
    for rows in (False, True):
        layout = Layout(machine, SMALL, Options(value_rows=rows))
        ends[rows] = [simulate(token(layout, position), machine).finish for position in (0, 1023)]
    assert ends[True][0] < ends[False][0]  # a row is cheaper to write than a column
    assert ends[True][1] > 1.5 * ends[False][1]


def test_full_rows_need_fewer_of_them():
    layouts = {packed: Layout(Machine(timing=QUIET), SMALL, Options(packed=packed)) for packed in (True, False)}
    assert layouts[True].weight_rows < 0.82 * layouts[False].weight_rows
    times = {packed: simulate(token(layout, 0), layout.machine).finish for packed, layout in layouts.items()}
    assert times[True] < times[False]


def test_the_trace_counts_what_is_read():
    machine = Machine(timing=QUIET)
    layout = Layout(machine, SMALL)
    trace = simulate(token(layout, 0), machine)
    matrices = sum(each.outputs * each.inputs for name, each in layout.matrices.items() if name != "positions")
    read = trace.bytes()["inside"] / 2
    attention = 12 * (128 * 768 + 768 * 16)  # one slot of keys; one column of every value, in 16 banks
    assert matrices <= read <= 1.02 * matrices + 2 * attention
    found = energy(trace)
    assert all(value >= 0 for value in found.values())
    assert found["refresh"] == 0
    assert 2 < sum(found.values()) / (trace.finish * 1e-9) < 12
    assert sum(trace.shares().values()) < 3


def test_resnet():
    operations, parameters = resnet18()
    assert parameters == 11_689_512  # torchvision's count
    assert operations / 2 == pytest.approx(1.814e9, rel=1e-3)
    assert resnet18(32, small=True)[1] == 11_173_962


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Mapping(Machine(), 8, 100, strict=True), "no multiple of the 16 lanes"),
        (lambda: Mapping(Machine(), 0, 100), "is empty"),
        (lambda: Layout(Machine(rows=1000), SMALL), r"takes .* GiB .* the memory has 0.24 GiB"),
        (lambda: Layout(Machine(), dataclasses.replace(SMALL, head_dim=96, heads=8, kv_heads=8)), "heads of 96"),
        (lambda: Layout(Machine(), dataclasses.replace(SMALL, head_dim=8, heads=96, kv_heads=96)), "heads of 8"),
        (lambda: Layout(Machine(), SMALL, Options(tokens=2048)), "more than the model's context of 1024"),
        (lambda: Layout(Machine(), dataclasses.replace(SMALL, experts=4)), "experts"),
        (lambda: Timing(cycle=23), r"tRC of 23 ns is less than tRCD \+ tRP = 24"),
        (lambda: Timing(activate=0), "at least 1"),
        (lambda: Machine(row=1000), "multiple of the 16"),
        (lambda: Machine(pin_rate=0.0), "must be positive"),
        (lambda: token(Layout(Machine(), SMALL, Options(tokens=64)), 64), "outside the 64 tokens"),
        (lambda: Config(stride=0), "at least 1"),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_ragged_inputs_are_filled_with_zeros():
    mapping = Mapping(Machine(), 8, 100)
    assert mapping.padding == 12
    assert Mapping(Machine(), 8, 96).padding == 0


def test_a_program_that_never_ends_is_not_waited_for():
    with pytest.raises(RuntimeError, match="has not ended after 50 ns"):
        interpret(_program({"op": Op.MAC, "count": 64, "close": 1}), small_machine(1, 0, 16.0), limit=50)


def test_an_empty_trace():
    trace = simulate(_program({"op": Op.ASIC}), Machine())
    assert isinstance(trace, Trace)
    assert trace.finish == 0
    assert trace.busy(Command.MAC) == 0


def test_presets_are_the_papers_machine():
    for config in PRESETS.values():
        assert config.machine() == Machine()
