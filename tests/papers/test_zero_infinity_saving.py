"""A training that goes on: from files and memory, with other numbers of ranks, after damage, a full disk and kill -9."""

import dataclasses
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from common import UserError
from common.agreement import relative_error
from common.distributed import RankError, alone, launch
from common.offload import DamagedFile, OutOfSpace
from common.training.torch_loop import next_token_loss
from papers.zero_infinity import exact, trainings
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.store import found, place
from papers.zero_infinity.trainings import Training
from papers.zero_infinity.zero3 import Offload

pytestmark = pytest.mark.xdist_group("zero_infinity")

SHAPE = exact.shape(32, 1, 16)
BATCHES = tuple(np.random.default_rng(i).integers(0, 256, (4, 17)) for i in range(3))
TRAINING = Training(SHAPE, BATCHES, Adam(1e-3, decay=0.1), "float64", chunk=4096)


@pytest.fixture(scope="module")
def want():
    """One rank, everything in memory, undisturbed."""
    return trainings.train(alone(), TRAINING)


def _apart(got, want):
    return max(relative_error(got["weights"][name], each) for name, each in want["weights"].items())


def test_a_training_goes_on_with_other_numbers_of_ranks(want, tmp_path):
    for ranks, steps in ((2, 1), (1, 2), (3, 3)):
        got = launch(_resumed, ranks, str(tmp_path), steps, timeout=60.0)
        assert found(tmp_path) == ranks
    assert _apart(got[0], want) < 1e-9


def _resumed(group, folder, steps):
    """All ranks take the same rows, so that any number of them has the same gradient."""
    training = dataclasses.replace(TRAINING, folder=folder, resume=True)
    engine = training.engine(group)
    while engine.steps < steps:
        engine.step(next_token_loss, torch.from_numpy(BATCHES[engine.steps]))
    weights = {name: each.numpy() for name, each in engine.tensors()}
    engine.close()
    return {"weights": weights}


@pytest.mark.slow
def test_save_from_memory_and_go_on_elsewhere(want, tmp_path):
    engine = TRAINING.engine(alone())
    for batch in BATCHES[:1]:
        engine.step(next_token_loss, torch.from_numpy(batch))
    engine.save(tmp_path / "saved")
    engine.close()
    engine = TRAINING.engine(alone(), resume=tmp_path / "saved", chunk=256, offload=Offload(tmp_path / "other", parameters=False))
    assert engine.steps == 1
    losses = [engine.step(next_token_loss, torch.from_numpy(batch)) for batch in BATCHES[1:]]
    assert losses == want["losses"][1:]
    assert all(np.array_equal(each.numpy(), want["weights"][name]) for name, each in engine.tensors())
    engine.close()


def test_weights_in_memory_are_rebuilt_from_the_states(want, tmp_path):
    training = dataclasses.replace(TRAINING, folder=str(tmp_path), parameters=False, resume=True)
    trainings.train(alone(), dataclasses.replace(training, batches=BATCHES[:2]))
    got = trainings.train(alone(), training)
    assert got["losses"] == want["losses"][2:]


@pytest.fixture
def stored(tmp_path):
    trainings.train(alone(), dataclasses.replace(TRAINING, folder=str(tmp_path), batches=BATCHES[:1]))
    return tmp_path


def test_a_truncated_file_is_named(stored):
    victim = next(place(stored, 0, 1).glob("*state*.1.tier"))
    with victim.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DamagedFile, match=victim.name.split("%")[0][:10]):
        trainings.train(alone(), dataclasses.replace(TRAINING, folder=str(stored), resume=True))


def test_a_flipped_bit_is_named(stored):
    victim = next(place(stored, 0, 1).glob("*weight*.1.tier"))
    content = bytearray(victim.read_bytes())
    content[4096 + 7] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DamagedFile, match="checksum"):
        trainings.train(alone(), dataclasses.replace(TRAINING, folder=str(stored), resume=True))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"resume": False}, "resume=True"),
        ({"resume": True, "architecture": exact.shape(64, 1, 16)}, "another model"),
        ({"resume": True, "dtype": "float32"}, "another dtype"),
        ({"resume": True, "chunk": 2048}, "chunks of 4096"),
    ],
)
def test_a_folder_that_does_not_fit(stored, change, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(TRAINING, folder=str(stored), **change).engine(alone())


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_too_small_from_the_start(small_disk):
    with pytest.raises(OutOfSpace, match=r"bytes are needed, .* are free"):
        dataclasses.replace(TRAINING, architecture=exact.shape(64, 4, 16), folder=str(small_disk)).engine(alone())
    assert not list(small_disk.rglob("*.part")) and found(small_disk) is None


def test_a_disk_that_fills_up_leaves_the_last_step_whole(small_disk):
    training = dataclasses.replace(TRAINING, folder=str(small_disk), chunk=2**14)
    plain = trainings.plain(training)
    engine = training.engine(alone())
    engine.step(next_token_loss, torch.from_numpy(BATCHES[0]))
    # Everything has its two files now; what is written whole before it replaces the old needs more room. There is enough for
    # gradients and small states, and not for those of the embedding.
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free - 120 * 1024))
    with pytest.raises(OutOfSpace, match=r"bytes are needed, .* are free"):
        engine.step(next_token_loss, torch.from_numpy(BATCHES[1]))
    assert not list(small_disk.rglob("*.part"))
    (small_disk / "ballast").unlink()
    got = trainings.train(alone(), dataclasses.replace(training, resume=True))
    np.testing.assert_allclose(got["losses"], plain["losses"][1:], rtol=1e-13)


# A rank that is killed


def _doomed(group, folder, victim, step, moment):
    (Path(folder) / f"pid-{group.rank}").write_text(str(os.getpid()))
    engine = dataclasses.replace(TRAINING, folder=folder, resume=True).engine(group)

    def die():
        (Path(folder) / "time of death").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    while engine.steps < len(BATCHES):
        if group.rank == victim and engine.steps == step:
            threading.Timer(moment, die).start()  # some way into the step, or into the next
        engine.step(next_token_loss, torch.from_numpy(BATCHES[engine.steps][group.rank :: group.size].copy()))
    time.sleep(60)


def _killed_and_resumed(folder, ranks, victim, step, moment, want):
    with pytest.raises(RankError, match=f"rank {victim} of {ranks} was killed by SIGKILL"):
        launch(_doomed, ranks, str(folder), victim, step, moment, timeout=100.0)
    assert time.time() - float((folder / "time of death").read_text()) < 15
    assert not any(psutil.pid_exists(int(each.read_text())) for each in folder.glob("pid-*"))
    got = launch(trainings.train, ranks, dataclasses.replace(TRAINING, folder=str(folder), resume=True), timeout=100.0)
    assert _apart(got[0], want) < 1e-9
    count = len(got[0]["losses"])
    assert len(BATCHES) - step - 3 <= count <= len(BATCHES) - step
    np.testing.assert_allclose(got[0]["losses"], want["losses"][len(want["losses"]) - count :], rtol=1e-12)
    assert not list(folder.rglob("*.part"))


def test_kill_and_resume(want, tmp_path):
    _killed_and_resumed(tmp_path, 2, victim=1, step=1, moment=0.02, want=want)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_kill_at_random_moments(seed, want, tmp_path):
    rng = np.random.default_rng(seed)
    ranks = int(rng.choice([2, 4]))
    _killed_and_resumed(tmp_path, ranks, int(rng.integers(ranks)), int(rng.integers(3)), float(rng.uniform(0, 0.3)), want)
