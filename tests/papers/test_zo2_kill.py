"""kill -9 in the middle of a step of a model in files: the step is done again, and the end is that of a run left alone."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from common import ROOT
from common.models.transformer_torch import TransformerLM
from papers.zo2.exact import RULE, shape, streamed

pytestmark = pytest.mark.xdist_group("zo2")

STEPS = 6
SHAPE = {"width": 32, "depth": 6, "context": 16}

CHILD = """
import sys, torch
from pathlib import Path
from common.models.transformer_torch import TransformerLM
from papers.zo2.exact import RULE, shape, streamed
from papers.zo2.stream_torch import Link
sys.path.insert(0, sys.argv[2])
from test_zo2_kill import SHAPE, STEPS, batch
architecture = shape(**SHAPE)
engine = streamed(architecture, RULE, stored=Path(sys.argv[1]), link=Link(latency=0.01))
engine.load_model(TransformerLM(architecture, seed=3))
engine.save()
while engine.steps < STEPS:
    engine.step(batch(engine.steps), 70 + engine.steps)
    engine.save()
    print("step", engine.steps, flush=True)
"""


def batch(step):
    return torch.from_numpy(np.random.default_rng(step).integers(0, 256, (1, 17)))


def test_kill_and_resume_ends_as_if_undisturbed(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(ROOT / "tests" / "papers")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    while (line := child.stdout.readline().strip()) != "step 2":
        assert line or child.poll() is None, "the training ended too early"
    time.sleep(0.05)  # a step takes six copies up and down of 10 ms each: this is in the middle of the third
    child.send_signal(signal.SIGKILL)
    assert "step 3" not in child.stdout.read()
    child.wait()

    engine, alone = streamed(shape(**SHAPE), RULE, stored=tmp_path), streamed(shape(**SHAPE), RULE)
    assert engine.resume() and engine.steps == 2 and engine.pending is not None
    alone.load_model(TransformerLM(shape(**SHAPE), seed=3))
    for each in (alone, engine):
        while each.steps < STEPS:
            each.step(batch(each.steps), 70 + each.steps)
    got, want = engine.weights(), alone.weights()
    assert all(torch.equal(got[name], want[name]) for name in want)
    for each in (alone, engine):
        each.close()
