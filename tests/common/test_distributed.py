"""Real ranks: what collectives compute and count, and that a rank that fails, dies or hangs ends the run and is named."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from common import ROOT, meter
from common.distributed import Group, RankError, launch, on_devices

pytestmark = pytest.mark.xdist_group("distributed")


def collectives(group: Group, base: int) -> dict[str, object]:
    parts = [torch.full((group.rank + to, 2), base + 10 * group.rank + to) for to in range(group.size)]
    received = group.all_to_all(parts)
    x = torch.tensor([1.0, group.rank])
    return {
        "received": [part.tolist() for part in received],
        "sum": group.all_reduce(x).tolist(),
        "all": [each.tolist() for each in group.all_gather(x)],
        "x": x.tolist(),
        "sent": group.sent,
        "reduced": group.reduced,
        "pid": os.getpid(),
    }


def test_collectives_and_their_bytes() -> None:
    results = launch(collectives, 3, 100)
    for rank, each in enumerate(results):
        assert each["received"] == [[[100 + 10 * source + rank] * 2] * (source + rank) for source in range(3)]
        assert (each["sum"], each["x"]) == ([3.0, 3.0], [1.0, float(rank)])
        assert each["all"] == [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
        np.testing.assert_array_equal(each["sent"], [(rank + to) * 2 * 8 for to in range(3)])
        assert each["reduced"] == 8
    assert len({each["pid"] for each in results}) == 3
    assert not any(running(each["pid"]) for each in results)


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


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks is 0"):
        launch(collectives, 0, 1)
    with pytest.raises(ValueError, match="devices is 0"):
        on_devices(devices, 0)


def working(group: Group) -> None:
    until = time.process_time() + 0.4
    while time.process_time() < until:
        pass


def test_time_of_ranks_that_have_ended_is_this_process_own() -> None:
    before = meter._own_seconds()
    launch(working, 2)
    assert meter._own_seconds() - before >= 0.8
