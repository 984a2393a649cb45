"""The offload engine: a budget that holds, views that share memory, queues that keep order, byte counters, traces."""

import contextlib
import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.offload import Arena, OutOfBudget, Pool, Slots, ThreadQueue, Trace, copy_queue, here


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3000), st.integers(0, 30)), max_size=60),
    st.sampled_from([1, 64, 512]),
)
def test_blocks_never_overlap_nor_exceed_the_budget(actions, alignment):
    arena, live, peak = Arena(8192, alignment=alignment), [], 0
    for allocate, size, which in actions:
        if allocate:
            used = arena.used
            try:
                live.append(arena.allocate(size))
            except OutOfBudget as error:
                assert error.needed > error.largest and error.budget == 8192 and error.free == 8192 - used == arena.free
        elif live:
            live.pop(which % len(live)).free()
        spans = sorted((b.offset, b.offset + arena.rounded(b.size)) for b in live)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert all(start % alignment == 0 and end <= arena.budget for start, end in spans)
        peak = max(peak, arena.used)
        assert arena.used == sum(end - start for start, end in spans) <= arena.budget and arena.peak == peak
    for block in live:
        block.free()
    assert arena.used == 0
    arena.allocate(8192)  # all holes are joined again


def test_over_the_budget_names_needed_free_and_budget():
    arena = Arena(1024)
    arena.allocate(640, "embedding")
    with pytest.raises(OutOfBudget, match=r"arena: 'block 3' needs 448 bytes; 384 of its 1,024 bytes are free"):
        arena.allocate(400, "block 3")
    assert (arena.used, arena.peak) == (640, 640)


def test_fragmented_memory_says_so():
    arena = Arena(1024)
    blocks = [arena.allocate(256) for _ in range(4)]
    blocks[0].free()
    blocks[2].free()
    with pytest.raises(OutOfBudget, match="the largest hole has 256"):
        arena.allocate(512)


def test_views_share_memory_in_every_framework():
    import jax.numpy as jnp

    with Arena(4096).allocate(24 * 4, "weights") as block:
        array = block.numpy(np.float32, (4, 6))
        array[:] = np.arange(24).reshape(4, 6)
        tensor, jaxed = block.torch(torch.float32, (4, 6)), block.jax("float32", (4, 6))
        assert tensor.data_ptr() == array.ctypes.data == jaxed.unsafe_buffer_pointer()
        tensor[0, 0] = 7
        assert array[0, 0] == 7 and float(jaxed[0, 0]) == 7
        assert block.torch(torch.float32, (6,), start=6 * 4).tolist() == [6, 7, 8, 9, 10, 11]
        block.torch(torch.bfloat16, (24,))[:] = 1.5
        assert block.jax(jnp.bfloat16, (24,)).tolist() == [1.5] * 24


def test_views_are_checked():
    arena = Arena(4096, poison=True)
    block = arena.allocate(40, "small")
    view = block.numpy(np.float32)
    with pytest.raises(ValueError, match=r"has 40 bytes; a view of \(11,\) at 0 needs 44"):
        block.numpy(np.float32, (11,))
    block.free()
    assert np.isnan(view).all(), "poison shows a use after the release"
    with pytest.raises(ValueError, match="'small' was freed"):
        block.numpy()
    with pytest.raises(ValueError, match="freed already"):
        block.free()


@pytest.mark.parametrize("arguments", [{"budget": 0}, {"budget": 10}, {"budget": 4096, "alignment": 48}])
def test_bad_budgets(arguments):
    with pytest.raises(ValueError, match="wanted"):
        Arena(**arguments)


def test_pool_is_pinned_only_with_cuda():
    assert Pool(4096).pinned == torch.cuda.is_available()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            Pool(4096, pinned=True)


def test_slots():
    arena = Arena(1024)
    slots = Slots(arena, 3, 256)
    first, second = slots.acquire(), slots.acquire()
    slots.acquire()
    with pytest.raises(TimeoutError, match="all 3 are held"):
        slots.acquire(timeout=0.01)
    threading.Timer(0.02, slots.release, [second]).start()
    assert slots.acquire(timeout=5) is second
    slots.release(first)
    with pytest.raises(ValueError, match="not held"):
        slots.release(first)
    slots.close()
    assert arena.used == 0
    with pytest.raises(OutOfBudget, match="3 x slot"):
        Slots(arena, 3, 512)
    assert arena.used == 0, "nothing stays of what did not fit"


def test_queue_moves_in_order_and_counts():
    trace, target = Trace(), np.zeros(4, np.int32)
    with copy_queue("upload", trace=trace) as queue:
        for i in range(20):
            queue.copy(target, np.full(4, i, np.int32), name=str(i))
        here().wait()
        queue.copy(torch.zeros(8), torch.ones(8), name="tensor").wait()
        assert target.tolist() == [19] * 4
    assert trace.bytes() == {"upload": 20 * 16 + 32} and trace.counts() == {"upload": 21}
    assert [m.name for m in trace.moves] == [*map(str, range(20)), "tensor"]
    assert all(a.end <= b.start for a, b in itertools.pairwise(trace.moves))


def test_queues_wait_for_each_other():
    trace, a, b, c = Trace(), np.ones(1000), np.zeros(1000), np.zeros(1000)
    with ThreadQueue("slow", trace=trace, latency=0.05) as slow, ThreadQueue("fast", trace=trace) as fast:
        first = slow.copy(b, a)
        second = fast.copy(c, b, after=[first])
        assert not first.done
        second.wait(5)
    assert c[0] == 1 and trace.moves[1].start >= trace.moves[0].end
    assert trace.busy("slow", "fast") == 0


def test_throttle_is_a_speed_and_overlaps():
    trace, a = Trace(), np.ones(2**18, np.uint8)
    start = time.perf_counter()
    with (
        ThreadQueue("up", trace=trace, bytes_per_second=2**21) as up,
        ThreadQueue("down", trace=trace, bytes_per_second=2**21) as down,
    ):
        up.copy(np.empty_like(a), a)
        down.copy(np.empty_like(a), a)
    assert 0.125 <= time.perf_counter() - start < 0.24, "two links work at once"
    assert 0.125 <= trace.busy("up") < 0.24
    assert trace.busy("up", "down") > 0.06


def test_an_error_reaches_who_waits_and_what_depends():
    def fail():
        raise RuntimeError("link down")

    with ThreadQueue("up") as queue, ThreadQueue("down") as other:
        broken = queue.run(fail, 0, name="broken")
        dependent = other.run(lambda: None, 0, name="dependent", after=[broken])
        for handle in (broken, dependent):
            with pytest.raises(RuntimeError, match="link down"):
                handle.wait(5)
        assert queue.run(lambda: 5, 0, name="later").wait(5) == 5, "the queue goes on"
    with pytest.raises(ValueError, match="closed"):
        queue.run(fail, 0, name="late")


def test_queue_checks_its_door():
    with ThreadQueue("up") as queue:
        with pytest.raises(ValueError, match="cannot copy float64"):
            queue.copy(np.zeros(3, np.float32), np.zeros(3))
        with pytest.raises(ValueError, match="cannot copy"):
            queue.copy(np.zeros(3), np.zeros(4))
    for options in ({"bytes_per_second": 0}, {"latency": -1.0}, {"bytes_per_second": float("nan")}):
        with pytest.raises(ValueError, match="wanted"):
            ThreadQueue("up", **options)
    with pytest.raises(ValueError, match="its own speed"):
        copy_queue("up", device="cuda", latency=1.0)


def test_trace_draws_and_adds_up():
    import matplotlib.pyplot as plt

    trace = Trace()
    for lane, start, end in (("upload", 0.0, 2.0), ("compute", 1.0, 3.0), ("upload", 2.5, 4.0)):
        trace.add("x", lane, 10, start, end)
    with contextlib.suppress(ZeroDivisionError), trace.span("failing"):
        raise ZeroDivisionError
    assert trace.moves[-1].name == "failing"
    del trace.moves[-1]
    assert trace.busy("upload") == 3.5 and trace.busy("upload", "compute") == 1.5
    figure, axes = plt.subplots()
    trace.gantt(axes)
    assert len(axes.collections) == 2 and trace.rows()[0]["bytes"] == 10
    plt.close(figure)


def test_no_framework_is_imported():
    code = (
        "import sys, common.offload as o; o.Arena(4096).allocate(8).numpy(); print(sorted({'torch', 'jax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
