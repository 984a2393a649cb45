"""Tables of latencies, the search and its resumption after a kill, samples, the comparison with random nets."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from common import ROOT, hardware, ilp
from common.checkpoint import Checkpoint
from common.nas import InvertedResidual, LatencyTable
from common.nas.counting import count_torch
from papers.fbnet import compare, data, latency
from papers.fbnet.config import PRESETS, Data
from papers.fbnet.latency import Costs, costs, key, permuted, roofline
from papers.fbnet.model_torch import StochasticSuperNet, gumbel_softmax, latency_of
from papers.fbnet.sample import entropy, log_probability, probabilities, sample, uniform
from papers.fbnet.search import Search
from papers.fbnet.space import CODES
from papers.fbnet.train import train

pytestmark = pytest.mark.xdist_group("fbnet")

CHANGES = {
    "size": 16, "widths": [4, 6], "layers": [1, 1], "strides": [1, 2], "stem": 4, "last": 8, "epochs": 4, "weight_steps": 2,
    "theta_steps": 2, "batch": 8, "child_steps": 3,
}  # fmt: skip
CONFIG = dataclasses.replace(PRESETS["smoke"], **CHANGES)
SPACE = CONFIG.space()


def table():
    rng = np.random.default_rng(5)
    return Costs("made up", rng.uniform(0.5, 4, (2, 9)), 2.0)


@pytest.fixture(scope="module")
def parts():
    return data.load(CONFIG)


# Tables


def test_latency_of_a_net_is_the_sum_over_its_blocks():
    found = roofline(SPACE, "orin_nano_8", "fp16", 2, 512)
    whole = costs(SPACE, found, "there")
    codes = ("3_6", "s")
    keys = [key(each, place.size) for each, place in zip(SPACE.net(codes).layers[1:3], SPACE.places, strict=True)]
    rest = [name for name in found if name.startswith(("conv 1-", "conv 6-8", "classifier"))]
    assert len(rest) == 3 and whole.of(codes) == pytest.approx(found.total([*keys, *rest]))
    assert whole.blocks[0, CODES.index("s")] == 0 and whole.blocks[1, CODES.index("s")] > 0


def test_expected_latency_is_the_mean_over_all_architectures():
    theta = np.random.default_rng(0).normal(size=(2, 9))
    every = list(itertools.product(CODES, repeat=2))
    chances = np.exp([log_probability(theta, codes) for codes in every])
    assert chances.sum() == pytest.approx(1)
    mean = (chances * [table().of(codes) for codes in every]).sum()
    assert table().expected(probabilities(theta)) == pytest.approx(mean)


def test_roofline_by_hand():
    """A block on 8 x 8 images: 4 -> 24 -> 24 -> 4 channels, 3 x 3, stride 1; numbers of 2 bytes, 512 images."""
    found = roofline(SPACE, "orin_nano_8", "fp16", 2, 512)
    chip, want = hardware.device("orin_nano_8"), 0.0
    for inputs, outputs, weights in ((4, 24, 4 * 24), (24, 24, 9 * 24), (24, 4, 24 * 4)):
        moved = 2 * (512 * 64 * (inputs + outputs) + weights + 2 * outputs)
        want += max(moved / chip.bandwidth, 2 * 512 * 64 * weights / chip.peak("fp16"))
    assert found["block 4-4 k3 s1 g1 e6 at 8"] == pytest.approx(1e3 * want)


def test_a_missing_block_is_named():
    whole = dict(roofline(SPACE, "orin_nano_8", "fp16", 2, 512))
    del whole["block 4-4 k3 s1 g1 e6 at 8"]
    with pytest.raises(KeyError, match="block 4-4 k3 s1 g1 e6 at 8"):
        costs(SPACE, LatencyTable(whole, "a test"), "there")


def test_a_table_in_seconds_is_refused(parts):
    seconds = Costs("in seconds", table().blocks / 1e3, 0.002)
    with pytest.raises(ValueError, match=r"'in seconds' is .* wanted milliseconds above 1"):
        Search(SPACE, seconds, parts, CONFIG, 0)


def test_this_cpus_table_has_a_key_for_every_block_and_a_larger_block_takes_longer(tmp_path):
    found = latency.measured(SPACE, 4, tmp_path / "table.yaml", repeats=3)
    whole = costs(SPACE, found, "here")
    assert whole.blocks.shape == (2, 9) and (np.delete(whole.blocks, 8, 1) > 0).all() and whole.rest > 0
    assert sorted(permuted(found, 0).values()) == sorted(found.values()) and dict(permuted(found, 0)) != dict(found)
    again = latency.measured(SPACE, 4, tmp_path / "table.yaml", repeats=3)
    assert dict(again) == dict(found)


# Samples


def test_samples_are_drawn_with_their_probability():
    theta = np.random.default_rng(1).normal(size=(1, 9))
    rng = np.random.default_rng(2)
    seen = [sample(theta, 1, rng)[0].codes[0] for _ in range(4000)]
    shares = np.array([seen.count(code) for code in CODES]) / 4000
    np.testing.assert_allclose(shares, probabilities(theta)[0], atol=0.03)


def test_samples_differ_and_pass_the_filter():
    theta = np.zeros((2, 9))
    theta[:, 0] = 3.0
    found = sample(theta, 6, np.random.default_rng(0), keep=lambda codes: "s" not in codes)
    assert len({each.codes for each in found}) == 6 and all("s" not in each.codes for each in found)
    assert all(each.log_probability == pytest.approx(log_probability(theta, each.codes)) for each in found)
    assert len(sample(np.full((1, 9), 0.0), 20, np.random.default_rng(0))) == 9
    with pytest.raises(ValueError, match="none of 50 architectures drawn passed"):
        sample(theta, 2, np.random.default_rng(0), keep=lambda codes: False, tries=50)


def test_entropy_is_a_share_of_its_largest_value():
    assert entropy(uniform(3)) == pytest.approx(1)
    assert entropy(1e3 * np.eye(9)[:2]) == pytest.approx(0)


# Data


def test_parts_are_disjoint_and_a_fifth_is_for_the_architecture():
    for config in (CONFIG, dataclasses.replace(PRESETS["laptop"], train_crops=20, test_crops=5)):
        found = data.load(config)
        held = {each.tobytes() for each in found.architecture.images}
        assert held.isdisjoint({each.tobytes() for each in found.weights.images})
        assert held.isdisjoint({each.tobytes() for each in found.test.images})
        assert len(found.architecture) == round(0.2 * (len(found.architecture) + len(found.weights)))
        assert found.weights.images.shape[1:] == (config.size, config.size, config.channels) and found.classes == config.classes
    assert config.data is Data.photo_patches


# The search


def test_logits_find_the_best_architecture_of_a_linear_loss():
    """Scores that add up over layers, and a table: where the logits end is the optimum of the multiple-choice knapsack."""
    rng = np.random.default_rng(0)
    scores, times, price = rng.uniform(0, 1, (6, 9)), rng.uniform(1, 5, (6, 9)), 0.15
    theta = torch.zeros(6, 9, dtype=torch.float64, requires_grad=True)
    optimizer, noise = torch.optim.Adam([theta], 0.1), np.random.default_rng(1)
    for step in range(400):
        masks = gumbel_softmax(theta, 5 * np.exp(-0.01 * step), noise=torch.from_numpy(noise.gumbel(size=(6, 9))))
        loss = (masks * torch.from_numpy(scores)).sum() + price * latency_of(masks, torch.from_numpy(times), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = theta.detach().numpy().argmax(-1)[:, None]
    time, score = (float(np.take_along_axis(each, chosen, 1).sum()) for each in (times, scores))
    model = ilp.Model()
    pick = model.binaries("block", scores.shape)
    model.require("one block in each layer", pick.sum(axis=1) == 1)
    model.require("no slower", (pick * times).sum() <= time + 1e-9)
    model.minimise((pick * scores).sum())
    assert model.solve().objective == pytest.approx(score, abs=1e-6)


def test_expected_latency_falls_and_the_control_changes_no_logits(parts):
    cheap = Costs("made up", table().blocks * 10, 2.0)
    config = dataclasses.replace(CONFIG, epochs=6, theta_steps=4, theta_rate=0.4)
    done = Search(SPACE, cheap, parts, config, 0)
    done.run()
    assert done.history["latency"][0] == pytest.approx(cheap.expected(np.full((2, 9), 1 / 9)))
    assert done.history["latency"][-1] < 0.9 * done.history["latency"][0]
    control = Search(SPACE, cheap, parts, dataclasses.replace(config, searched=False, epochs=3), 0)
    control.run()
    assert not control.theta.any()


def test_weights_wait_while_logits_are_trained_and_the_other_way_round(parts):
    search = Search(SPACE, table(), parts, CONFIG, 0)
    search.net.train()
    before = [each.detach().clone() for each in search.net.parameters()]
    search._step(parts.architecture, search.theta_optimizer)
    after = list(search.net.parameters())
    assert not torch.equal(after[0], before[0]) and all(map(torch.equal, after[1:], before[1:]))
    assert after[0] is search.net.theta
    held = search.net.theta.detach().clone()
    search._step(parts.weights, search.weights_optimizer)
    assert torch.equal(search.net.theta, held) and not torch.equal(after[-2], before[-2])


def everything(search):
    found = {name: each.numpy() for name, each in search.net.state_dict().items()}
    return found | {name: np.array(values) for name, values in search.history.items()} | {"thetas": np.array(search.thetas)}


CHILD = """
import dataclasses, json, sys, torch
import numpy as np
from pathlib import Path
from common.checkpoint import Checkpoint
from papers.fbnet import data
from papers.fbnet.config import PRESETS
from papers.fbnet.latency import Costs
from papers.fbnet.search import Search
torch.set_num_threads(1)
path, changes, blocks = sys.argv[1:]
config = dataclasses.replace(PRESETS["smoke"], **json.loads(changes))
search = Search(config.space(), Costs("made up", np.array(json.loads(blocks)), 2.0), data.load(config), config, 3)
step = search._step
def told(*given):
    print("step of epoch", search.epoch, flush=True)
    return step(*given)
search._step = told
search.run(Checkpoint(Path(path)))
"""


def test_a_search_that_was_killed_ends_with_the_same_bits(tmp_path, parts):
    path = tmp_path / "search.safetensors"
    command = [sys.executable, "-c", CHILD, str(path), json.dumps(CHANGES), json.dumps(table().blocks.tolist())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as child:
        while (line := child.stdout.readline().strip()) != "step of epoch 2":
            assert line or child.poll() is None, "the search ended too early"
        child.send_signal(signal.SIGKILL)
    killed, alone = (Search(SPACE, table(), parts, CONFIG, 3) for _ in range(2))
    assert killed.restore(Checkpoint(path)) and killed.epoch == 2 and killed.history["tau"][-1] > killed.tau
    killed.run()
    alone.run()
    got, want = everything(killed), everything(alone)
    assert set(got) == set(want) and killed.epoch == alone.epoch == CONFIG.epochs
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name
    for mine, theirs in zip(killed._optimizers().values(), alone._optimizers().values(), strict=True):
        for index, state in theirs.state_dict()["state"].items():
            for each, value in state.items():
                assert torch.equal(torch.as_tensor(mine.state_dict()["state"][index][each]), torch.as_tensor(value)), each
    assert killed.rng.bit_generator.state == alone.rng.bit_generator.state


# The comparison


def test_a_searchs_cost_is_what_the_super_net_computes():
    net = StochasticSuperNet(SPACE, None, device="meta").eval()
    batch = torch.empty(1, SPACE.size, SPACE.size, SPACE.channels, device="meta")
    seen = count_torch(net, batch, torch.empty(2, 9, device="meta")).macs
    # The counter sees modules that are called; shuffled and depthwise convolutions are functions.
    seen += sum(
        part.count(place.size, place.size).macs
        for place, row in zip(SPACE.places, SPACE.candidates(), strict=True)
        for block in row
        if isinstance(block, InvertedResidual)
        for name, part in block.parts()
        if name == "depthwise" or (name == "expand" and block.groups == 2)
    )
    steps = CONFIG.epochs * (CONFIG.weight_steps + CONFIG.theta_steps)
    assert compare.search_macs(SPACE, CONFIG, [1000, 3000]) == CONFIG.batch * (steps * seen + CONFIG.child_steps * 4000)


def test_random_nets_spend_the_budget_and_no_more_than_one_net_above():
    budget = 5 * 10**6
    nets = [SPACE.net(codes).count(SPACE.size, SPACE.size) for codes in compare.at_random(SPACE, CONFIG, 0, budget)]
    spent = [CONFIG.batch * CONFIG.child_steps * each.macs for each in nets]
    assert sum(spent) >= budget > sum(spent[:-1])


def test_a_trained_net_beats_chance(parts):
    space, codes = PRESETS["smoke"].space(), ("3_6", "5_6", "3_3", "5_1g")
    flat = Costs("made up", np.full((4, 9), 2.0), 2.0)
    found = train(space, codes, parts, flat, dataclasses.replace(PRESETS["smoke"], child_steps=60), 0)
    assert found.accuracy > 0.3 and found.latency == 10
