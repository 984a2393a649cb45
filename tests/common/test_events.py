"""Timelines and schedules: what is added comes back, files round-trip, schedules equal a process simulation."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.events import Span, Task, Timeline, schedule

NAMES = st.sampled_from(["load", "add", "µ-op", 'a/b "quoted"'])
TIMES = st.integers(0, 10**12) | st.floats(0, 1e6, allow_nan=False)
SPANS = st.lists(
    st.builds(
        lambda resource, name, start, length, size: Span(resource, name, start, start + length, {"bytes": size}),
        st.sampled_from(["bank 0", "bus", "chip"]), NAMES, TIMES, TIMES, st.integers(0, 2**60),
    ),
    max_size=20,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(SPANS, st.sampled_from([1.0, 1e-3, 1e-9]))
def test_a_trace_file_comes_back(tmp_path_factory, spans, unit):
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    Timeline(spans, unit).write(path)
    back = Timeline.read(path)
    assert back.spans == spans
    assert back.unit == unit


def test_times_in_the_file_are_microseconds(tmp_path):
    line = Timeline(unit=1e-9)
    line.add("bus", "WRGB", 2000, 2032, bytes=2048)
    line.write(tmp_path / "t.json")
    whole = json.loads((tmp_path / "t.json").read_text())
    names = [event for event in whole["traceEvents"] if event["ph"] == "M"]
    (event,) = (event for event in whole["traceEvents"] if event["ph"] == "X")
    assert event["ts"] == pytest.approx(2.0)
    assert event["dur"] == pytest.approx(0.032)
    assert event["args"]["bytes"] == 2048
    assert names[0]["args"]["name"] == "bus"
    assert names[0]["tid"] == event["tid"]


def test_foreign_traces_are_read(tmp_path):
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps([{"ph": "X", "pid": 3, "tid": 7, "name": "k", "ts": 1.5, "dur": 2.0}, {"ph": "B", "name": "x"}]))
    line = Timeline.read(path)
    assert line.unit == 1e-6
    assert line.spans == [Span("3/7", "k", 1.5, 3.5)]
    path.write_text("{}")
    with pytest.raises(ValueError, match="no trace"):
        Timeline.read(path)
    path.write_text("not JSON")
    with pytest.raises(ValueError, match="no trace"):
        Timeline.read(path)


def test_busy_and_overlaps():
    line = Timeline()
    line.add("a", "x", 0, 4)
    line.add("a", "y", 3, 6)
    line.add("a", "inside", 1, 2)
    line.add("b", "z", 5, 9)
    line.add("b", "touches", 9, 10)
    assert line.busy("a") == 6
    assert line.busy("b") == 5
    assert line.busy("a", "b") == 1
    assert line.busy("absent") == 0
    assert line.finish == 10
    assert line.shares() == {"a": 0.6, "b": 0.5}
    assert [(first.name, second.name) for first, second in line.overlaps()] == [("x", "inside"), ("x", "y")]
    assert line.overlaps("b") == []
    empty = Timeline()
    assert empty.finish == 0
    assert empty.shares() == {}
    assert empty.busy("a") == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=15))
def test_busy_is_the_measure_of_the_union(pairs):
    line = Timeline([Span("a", "x", start, start + length) for start, length in pairs])
    covered = {moment for start, length in pairs for moment in range(start, start + length)}
    assert line.busy("a") == len(covered)
    total = sum(length for _, length in pairs)
    assert bool(line.overlaps("a")) == (total > len(covered))


def test_bad_spans():
    with pytest.raises(ValueError, match="before its start"):
        Span("a", "x", 2, 1)
    with pytest.raises(ValueError, match="unit is 0"):
        Timeline(unit=0.0)


def test_a_picture_has_a_row_for_each_resource():
    import matplotlib.pyplot as plt

    line = Timeline(unit=1e-9)
    line.add("bank", "MAC", 0, 64)
    line.add("bus", "RDMAC", 64, 65)
    figure, axes = plt.subplots()
    line.gantt(axes, unit=1e-9)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bank", "bus"]
    assert axes.get_xlabel() == "time [ns]"
    assert axes.collections[0].get_paths()[0].get_extents().x1 == 64
    plt.close(figure)


def test_a_pipeline():
    """Copies and computations of four blocks: the slower of the two sets the pace."""
    tasks = []
    for i in range(4):
        tasks.append(Task(f"copy {i}", "link", 2, arguments={"bytes": 100}))
        tasks.append(Task(f"compute {i}", "device", 3, after=(f"copy {i}",)))
    line = schedule(tasks)
    assert line.finish == 2 + 4 * 3
    assert line.overlaps() == []
    assert line.busy("link", "device") == 6
    assert {span.arguments["bytes"] for span in line.spans if span.resource == "link"} == {100}
    # Two copies at once: both are there after 2.
    deep = schedule(tasks, capacity={"link": 2})
    assert [span.start for span in deep.spans if span.resource == "link"] == [0, 0, 2, 2]


DRAWN = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(DRAWN, st.integers(1, 3))
def test_schedule_equals_processes_in_simpy(drawn, depth):
    tasks = [
        Task(f"t{i}", resource, duration, tuple({f"t{j % i}" for j in after}) if i else ())
        for i, (resource, duration, after) in enumerate(drawn)
    ]
    simpy = pytest.importorskip("simpy")
    env = simpy.Environment()
    done = {task.name: env.event() for task in tasks}
    times = {}

    def work(task):
        yield env.timeout(task.duration)
        times[task.name] = (env.now - task.duration, env.now)
        done[task.name].succeed()

    def serve(queue, room):
        running = []
        for task in queue:
            yield env.all_of([done[name] for name in task.after])
            running = [each for each in running if each.is_alive]
            if len(running) == room:
                yield env.any_of(running)
            running.append(env.process(work(task)))

    for resource in "abc":
        env.process(serve([task for task in tasks if task.resource == resource], depth if resource == "a" else 1))
    env.run()
    line = schedule(tasks, capacity={"a": depth})
    assert {span.name: (span.start, span.end) for span in line.spans} == times


def test_bad_tasks():
    with pytest.raises(ValueError, match="one name"):
        schedule([Task("x", "a", 1), Task("x", "b", 1)])
    with pytest.raises(ValueError, match="not in the list"):
        schedule([Task("x", "a", 1, after=("y",))])
    with pytest.raises(ValueError, match="wanted 0 or more"):
        schedule([Task("x", "a", -1)])
    with pytest.raises(ValueError, match="for itself"):
        schedule([Task("x", "a", 1, after=("y",)), Task("y", "a", 1)])
    assert schedule([]).spans == []
