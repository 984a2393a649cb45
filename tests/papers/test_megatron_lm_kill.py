"""kill -9 of one rank in the middle of a training: it is named, the others end, and the training goes on from its checkpoint."""

import os
import shutil
import signal
import time

import numpy as np
import psutil
import pytest
import torch

from common.distributed import Group, RankError, Ranks, launch
from papers.megatron_lm import ranks
from papers.megatron_lm.checkpoint import load, save
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.shape import Shape, initial_weights
from papers.megatron_lm.trainer import Options, Trainer, assemble

pytestmark = pytest.mark.xdist_group("megatron_lm")

SHAPE = Shape(vocabulary=130, width=16, depth=4, heads=4, context=12)
STEPS = 5
BATCHES = [np.random.default_rng(i).integers(0, SHAPE.vocabulary, (4, 10)) for i in range(STEPS)]
OPTIONS = Options(dtype=torch.float64, dropout=0.2)


def die(pids):
    (pids / "moment").write_text(str(time.monotonic()))  # one clock for all processes
    os.kill(os.getpid(), signal.SIGKILL)


def dies(group: Group, layout, folder, victim, step, moment, pids):
    """A training whose rank ``victim`` is killed in a step: before it, in its second forward pass, or before it is saved."""
    (pids / f"{os.getpid()}").touch()
    trainer = Trainer(group, SHAPE, layout, initial_weights(SHAPE, 0), OPTIONS)
    whole = trainer.stages[0].forward
    for number in range(load(folder, trainer), STEPS):
        if group.rank == victim and number == step:
            left = {"start": 0, "middle": 1, "save": STEPS * len(BATCHES[0])}[moment]

            def forward(*arguments, calls=iter(range(left))):  # noqa: B008 - one count for the step
                if next(calls, None) is None:
                    die(pids)
                return whole(*arguments)

            trainer.stages[0].forward = forward
        trainer.step(BATCHES[number], number)
        if group.rank == victim and number == step:
            die(pids)
        save(folder, trainer, number + 1)


def weights(ranks_kept, layout, folder=None):
    found = ranks_kept.run(ranks.losses, SHAPE, layout, 0, BATCHES, OPTIONS, folder)
    return assemble([each for _, each in found], SHAPE)


def killed(layout, folder, victim, step, moment):
    """Kill, and look at what is left."""
    pids = folder.with_name(folder.name + "-pids")
    pids.mkdir()
    with pytest.raises(RankError, match=f"rank {victim} of {layout.ranks} was killed by SIGKILL"):
        launch(dies, layout.ranks, layout, folder, victim, step, moment, pids)
    assert time.monotonic() - float((pids / "moment").read_text()) < 15
    left = [int(path.name) for path in pids.iterdir() if path.name != "moment"]
    assert len(left) == layout.ranks and not any(psutil.pid_exists(pid) for pid in left)


def clean(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["latest.json", f"step-{STEPS:09d}"]
    assert not list(folder.rglob(".*"))


def exact(found, want):
    assert all(np.array_equal(found[name], want[name]) for name in want)


def close(found, want):
    for name, each in want.items():
        assert np.abs(found[name] - each).max() <= 1e-9 * np.abs(each).max(), name


def test_a_killed_training_ends_as_if_undisturbed(tmp_path):
    """In the middle of a step, and as if files had been half written; then under the same layout, and under another."""
    pipelined, split = Layout(pipeline=2, chunks=2), Layout(tensor=2)
    folder, other = tmp_path / "run", tmp_path / "other"
    killed(pipelined, folder, victim=1, step=2, moment="middle")
    (folder / ".half.part").touch()
    (folder / "step-000000003").mkdir()
    (folder / "step-000000003" / "pp0-tp0.safetensors").write_bytes(b"half")
    shutil.copytree(folder, other)
    with Ranks(2) as two:
        want = weights(two, pipelined)
        exact(weights(two, pipelined, folder), want)
        close(weights(two, split, other), want)
    clean(folder)
    clean(other)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_any_rank_at_any_step(seed, tmp_path):
    rng = np.random.default_rng(seed)
    layouts = [Layout(tensor=2, pipeline=2), Layout(pipeline=2, data=2, chunks=2), Layout(tensor=2, data=2), Layout(pipeline=4)]
    first, second = layouts[seed % 4], layouts[int(rng.integers(4))]
    folder = tmp_path / "run"
    killed(first, folder, int(rng.integers(4)), int(rng.integers(STEPS)), ("start", "middle", "save")[seed % 3])
    with Ranks(4) as four:
        (exact if second == first else close)(weights(four, second, folder), weights(four, first))
    clean(folder)
