"""Real ranks: what collectives compute and count, and that a rank that fails, dies or hangs ends the run and is named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from common import ROOT, meter
from common.distributed import Crew, Group, RankError, Ranks, launch, on_devices
from common.distributed.differentiable import copy_to, reduce_from

pytestmark = pytest.mark.xdist_group("distributed")


def collectives(group: Group, base: int) -> dict[str, object]:
    parts = [torch.full((group.rank + to, 2), base + 10 * group.rank + to) for to in range(group.size)]
    received = group.all_to_all(parts)
    x = torch.tensor([1.0, group.rank])
    whole, part = torch.empty(2 * group.size), torch.empty(2)
    pending = group.gather_into(whole, x), group.reduce_scatter_into(part, torch.arange(6.0) * group.rank)
    for each in pending:
        each.wait()
    right, left = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    first, second = torch.empty(3), torch.empty(1, dtype=torch.int64)
    sent = [(torch.full((3,), float(group.rank)), right), (torch.tensor([group.rank]), right)]
    group.exchange(sent, [(first, left), (second, left)]).wait()
    return {
        "received": [part.tolist() for part in received],
        "sum": group.all_reduce(x).tolist(),
        "max": group.all_reduce(x, "max").tolist(),
        "all": [each.tolist() for each in group.all_gather(x.reshape(2, 1))],
        "whole": whole.tolist(),
        "part": part.tolist(),
        "ring": [first.tolist(), second.tolist()],
        "source": group.broadcast(x, 1).tolist(),
        "x": x.tolist(),
        "traffic": group.traffic,
        "pid": os.getpid(),
    }


def test_collectives_and_their_bytes() -> None:
    results = launch(collectives, 3, 100)
    for rank, each in enumerate(results):
        assert each["received"] == [[[100 + 10 * source + rank] * 2] * (source + rank) for source in range(3)]
        assert (each["sum"], each["max"], each["x"]) == ([3.0, 3.0], [1.0, 2.0], [1.0, float(rank)])
        assert each["all"] == [[[1.0], [0.0]], [[1.0], [1.0]], [[1.0], [2.0]]]
        assert each["whole"] == [1.0, 0.0, 1.0, 1.0, 1.0, 2.0]
        assert each["part"] == [3.0 * (2 * rank), 3.0 * (2 * rank + 1)]
        left, right = (rank - 1) % 3, (rank + 1) % 3
        assert each["ring"] == [[float(left)] * 3, [left]]
        assert each["source"] == [1.0, 1.0]
        kinds = {row["kind"]: row["bytes"] for row in each["traffic"].rows()}
        others = sum((rank + to) * 2 * 8 for to in range(3) if to != rank)
        assert kinds == {
            "all_to_all": others,
            "all_gather": 2 * (2 * 2 * 4),
            "reduce_scatter": 2 * 2 * 4,
            "exchange": 3 * 4 + 8,
            "all_reduce": 64 / 3,  # two of 8 bytes, each 2 * 2 / 3 of them
            "broadcast": 16 if rank == 1 else 0,
        }
        assert each["traffic"].bytes() == pytest.approx(sum(kinds.values()))
        to = [0 if to == rank else (rank + to) * 16 + 20 * (to == right) + 8 * (rank == 1) for to in range(3)]
        np.testing.assert_array_equal(each["traffic"].to, to)
        assert each["traffic"].calls["world", "all_reduce"] == 2
    assert len({each["pid"] for each in results}) == 3
    assert not any(running(each["pid"]) for each in results)


def gridded(group: Group) -> dict[str, object]:
    grid = group.grid(pp=2, dp=1, tp=2)
    again = group.grid(pp=2, dp=1, tp=2)
    number = torch.tensor([float(group.rank)])
    found: dict[str, object] = {name: (each.rank, each.ranks) for name, each in grid.items()}
    found["sums"] = {name: each.all_reduce(number).item() for name, each in (*again.items(), *grid.items())}
    found["bytes"] = {name: group.traffic.bytes(name) for name in grid}
    other = torch.empty(1)
    grid["pp"].exchange([(number, 1 - grid["pp"].rank)], [(other, 1 - grid["pp"].rank)]).wait()
    found["across"], found["to"] = other.item(), group.traffic.to.tolist()
    return found


def test_a_grid_of_groups() -> None:
    for rank, each in enumerate(launch(gridded, 4)):
        pp, tp = divmod(rank, 2)
        assert each["pp"] == (pp, (tp, tp + 2)) and each["tp"] == (tp, (2 * pp, 2 * pp + 1)) and each["dp"] == (0, (rank,))
        assert each["sums"] == {"pp": 2.0 * tp + 2, "dp": float(rank), "tp": 4.0 * pp + 1}
        assert each["bytes"] == {"pp": 8, "dp": 0, "tp": 8}
        assert each["across"] == (rank + 2) % 4 and each["to"] == [4 * (to == (rank + 2) % 4) for to in range(4)]


def bad_calls(group: Group) -> list[str]:
    said = []
    for call in (
        lambda: group.grid(pp=2, tp=2),
        lambda: group.agree("the length", 10 + group.rank // 2),
        lambda: group.gather_into(torch.empty(5), torch.empty(2)),
        lambda: group.exchange([(torch.empty(1), group.rank)]),
        lambda: group.exchange(receive=[(torch.empty(2, 3).T, (group.rank + 1) % 3)]),
        lambda: group.all_to_all([torch.empty(1)]),
        lambda: group.all_reduce(torch.empty(1), "mean"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        said.append(str(error.value))
    group.agree("the length", 10)
    return said


def test_bad_calls_are_refused_before_anything_is_sent() -> None:
    grid, agree, flat, own, order, parts, op = launch(bad_calls, 3)[0]
    assert "pp=2 x tp=2 has 4 ranks, this group has 3" in grid
    assert agree == "the length must be the same on all ranks: rank 0 has 10, rank 1 has 10, rank 2 has 11"
    assert "wanted flat tensors" in flat and "rank 0 cannot reach rank 0" in own and "contiguous" in order
    assert "1 parts for 3 ranks" in parts and "'mean'" in op


def conjugates(group: Group, x: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x, a, b = (
        each.clone().requires_grad_() for each in (x, left.chunk(group.size, 1)[group.rank], right.chunk(group.size)[group.rank])
    )
    y = reduce_from(torch.tanh(copy_to(x, group) @ a) @ b, group)
    y.pow(2).sum().backward()
    assert x.grad is not None and a.grad is not None and b.grad is not None
    return y.detach(), x.grad, a.grad, b.grad


def test_the_conjugate_pair_of_tensor_parallelism() -> None:
    draw = torch.Generator().manual_seed(0)
    x, left, right = (torch.randn(shape, dtype=torch.float64, generator=draw) for shape in ((3, 4), (4, 6), (6, 4)))
    results = launch(conjugates, 2, x, left, right)
    whole = [each.clone().requires_grad_() for each in (x, left, right)]
    y = torch.tanh(whole[0] @ whole[1]) @ whole[2]
    y.pow(2).sum().backward()
    for got in results:
        torch.testing.assert_close(got[0], y.detach())
        torch.testing.assert_close(got[1], whole[0].grad)
    torch.testing.assert_close(torch.cat([got[2] for got in results], 1), whole[1].grad)
    torch.testing.assert_close(torch.cat([got[3] for got in results]), whole[2].grad)


def counted(group: Group, fail: bool) -> tuple[int, float]:
    if fail and group.rank == 0:
        raise KeyError("on purpose")
    return os.getpid(), group.all_reduce(torch.ones(2)).sum().item() + group.traffic.bytes()


def test_ranks_are_kept_between_calls_and_begun_anew_after_an_error() -> None:
    with Ranks(2) as ranks:
        first, second = ranks.run(counted, False), ranks.run(counted, False)
        assert first == second and [value for _, value in first] == [4.0 + 8, 4.0 + 8]
        with pytest.raises(RankError, match="rank 0 of 2 failed: KeyError: 'on purpose'"):
            ranks.run(counted, True)
        assert not any(running(pid) for pid, _ in first)
        third = ranks.run(counted, False)
        assert {pid for pid, _ in third}.isdisjoint(pid for pid, _ in first)
    assert not any(running(pid) for pid, _ in third)


def unpicklable(group: Group) -> object:
    return lambda: group


def test_a_result_that_cannot_travel_is_named() -> None:
    with pytest.raises(RankError, match=r"rank 0 of 1 failed: .*pickle"):
        launch(unpicklable, 1)


def failing(group: Group) -> None:
    if group.rank == 1:
        raise ZeroDivisionError("of all things")
    group.all_reduce(torch.zeros(1))


def dying(group: Group) -> None:
    if group.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    group.all_reduce(torch.zeros(1))


def hanging(group: Group) -> None:
    if group.rank == 0:
        time.sleep(60)


@pytest.mark.parametrize(
    ("function", "says"),
    [(failing, "rank 1 of 3 failed: ZeroDivisionError: of all things"), (dying, "rank 2 of 3 was killed by SIGKILL")],
)
def test_a_rank_that_ends_badly_ends_all_and_is_named(function: object, says: str) -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match=says):
        launch(function, 3)
    assert time.monotonic() - start < 15


def test_a_rank_that_hangs_is_ended() -> None:
    with pytest.raises(RankError, match="did not end within 3 s"):
        launch(hanging, 2, timeout=3.0)


def waiting(group: Group, kind: str) -> float:
    """Rank 1 never comes; rank 0 says how long it waited."""
    start = time.monotonic()
    if group.rank == 1:
        time.sleep(6)
        return 0.0
    x = torch.zeros(2)
    with pytest.raises(RuntimeError):
        group.exchange(receive=[(x, 1)]).wait() if kind == "exchange" else group.all_reduce(x)
    os._exit(int(10 * (time.monotonic() - start)))


@pytest.mark.parametrize("kind", ["exchange", "all_reduce"])
def test_every_wait_has_a_time_out(kind: str) -> None:
    with Ranks(2, timeout=2.0) as ranks, pytest.raises(RankError, match=r"rank 0 of 2 ended with exit status (1\d|2\d|3\d) "):
        ranks.run(waiting, kind, timeout=30.0)


def stepping(group: Group, folder: str) -> None:
    Path(folder, str(group.rank)).write_text(str(os.getpid()))
    for _ in range(10_000):
        group.all_reduce(torch.zeros(1000))
        time.sleep(0.001)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_rank_killed_at_any_moment_ends_all_and_leaves_nothing(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fork server's socket lies where it was first started, and that must be a short path.
    launch(counted, 2, False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    draw = np.random.default_rng(times)
    for attempt in range(times):
        folder, victim = tmp_path / str(attempt), int(draw.integers(3))
        folder.mkdir()
        pause = float(draw.random())

        def kill(folder: Path = folder, victim: int = victim, pause: float = pause) -> None:
            while sum(path.stat().st_size > 0 for path in folder.iterdir()) < 3:
                time.sleep(0.01)
            time.sleep(pause)
            os.kill(int((folder / str(victim)).read_text()), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        start = time.monotonic()
        with pytest.raises(RankError, match=f"rank {victim} of 3 was killed by SIGKILL"):
            launch(stepping, 3, str(folder))
        killer.join()
        assert time.monotonic() - start < 15
        assert not any(running(int(path.read_text())) for path in folder.iterdir())
        assert not list((tmp_path / "temporary").iterdir())


SLEEPER = """
import os, time
from common import ROOT, meter
from common.distributed import launch

def sleeper(group):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(100)

if __name__ == "__main__":
    import sleeper
    launch(sleeper.sleeper, 2)
"""


def test_ranks_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    parent = subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(running(pid) for pid in pids)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while any(running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(running(pid) for pid in pids)


def test_a_long_name_of_temporary_files_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    code = "from common.distributed.processes import Workers; Workers(1, ())"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and str(folder) in last and "set TMPDIR" in last, done.stderr


def running(pid: int) -> bool:
    """Whether the process lives; one that has ended may wait to be reaped by whatever stands for init."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def devices(scale: int) -> tuple[int, list[int]]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((len(jax.devices()),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    double = jax.shard_map(lambda x: jax.lax.psum(x, "x") * scale, mesh=mesh, in_specs=P("x"), out_specs=P())
    return len(jax.devices()), double(jnp.arange(len(jax.devices()))).tolist()


def test_a_mesh_of_cpu_devices() -> None:
    assert on_devices(devices, 4, 2) == (4, [12])


def several_hosts() -> tuple[int, int, float]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((len(jax.devices()),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    own = np.arange(2.0) + 2 * jax.process_index()
    x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("x")), own)
    total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()))(x)
    return jax.process_count(), len(jax.devices()), float(jnp.sum(total.addressable_data(0)))


def test_a_mesh_of_several_processes() -> None:
    assert on_devices(several_hosts, 2, processes=2) == (2, 4, 6.0)


TORCHRUN = """
import json, sys
import torch
from common import UserError
from common.distributed import launch, started

def work(group, base):
    return group.all_reduce(torch.tensor([base + group.rank])).item()

def across(group):
    return [each.all_reduce(torch.tensor([group.rank])).item() for each in group.grid(down=2, across=2).values()]

if __name__ == "__main__":
    import joined
    # Ranks 2 and 3 have made fewer groups than the others when they meet them in the grid.
    found = [launch(joined.work, 3, 10), launch(joined.work, 2, 20), launch(joined.work, 3, 30), launch(joined.across, 4)]
    try:
        launch(joined.work, 5, 0)
    except UserError as error:
        found.append(str(error))
    from pathlib import Path
    Path(sys.argv[1], f"{started().rank}.json").write_text(json.dumps(found))
"""


def test_ranks_that_torchrun_has_started_are_joined(tmp_path: Path) -> None:
    (tmp_path / "joined.py").write_text(TORCHRUN)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = ["--standalone", "--nproc-per-node", "4", str(tmp_path / "joined.py"), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for rank in range(4):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found[:3] == [[33, 33, 33], [41, 41], [93, 93, 93]]
        assert found[3] == [[2, 1], [4, 1], [2, 5], [4, 5]]
        assert found[4] == "5 ranks are wanted and 4 were started; start 5, or ask for fewer"


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks is 0"):
        launch(collectives, 0, 1)
    with pytest.raises(ValueError, match="devices is 0"):
        on_devices(devices, 0)
    with pytest.raises(ValueError, match="processes 0"):
        on_devices(devices, 1, processes=0)


def working(group: Group) -> None:
    until = time.process_time() + 0.4
    while time.process_time() < until:
        pass


def test_time_of_ranks_that_have_ended_is_this_process_own() -> None:
    before = meter._own_seconds()
    launch(working, 2)
    assert meter._own_seconds() - before >= 0.8


def test_a_crew_keeps_ranks_of_several_numbers() -> None:
    with Crew() as crew:
        found = [crew.run(size, counted, False) for size in (1, 2, 1, 2)]
    assert found[0] == found[2] and found[1] == found[3] and len(found[0]) == 1 and len(found[1]) == 2
    assert not any(running(pid) for pid, _ in found[0] + found[1])
