"""What this paper's run adds to its operations: its points and errors, its baselines, features, fits and options."""

import math

import numpy as np
import pytest
import torch

from common import UserError
from common.data.text import king_james
from common.ledger import NotRun
from common.runner import Run
from papers.log_bessel import accuracy, baseline, features, fits, speed
from papers.log_bessel.config import PRESETS, Branch, Config, Method
from papers.log_bessel.kernel import BRANCHES, cases, which_branch

pytestmark = pytest.mark.xdist_group("log_bessel")

SMOKE = PRESETS["smoke"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_grids_meet_every_branch(preset):
    config = PRESETS[preset]
    grids = accuracy.box(config.box_side), accuracy.scales(config.scales_side)
    assert [len(grid[0]) for grid in grids] == [config.box_side**2, config.scales_side**2]
    order, x = (np.concatenate(pair) for pair in zip(*grids, strict=True))
    assert np.unique(which_branch(order, x)).tolist() == list(range(len(BRANCHES)))
    assert order.max() >= 1e5 and x.min() <= 1e-6 and x.max() >= 1e6


def test_errors_count_what_is_not_finite_as_one():
    got, want = np.array([2.0, 0.5, np.inf, np.nan, 1e9]), np.array([4.0, 0.25, 1.0, 1.0, 1.0])
    assert accuracy.errors(got, want).tolist() == [0.5, 0.25, 1, 1, 1]


@pytest.mark.parametrize("name", accuracy.LOGS)
def test_baselines_are_right_where_scipy_is(name):
    """So that the comparison is with SciPy, and not with a mistake."""
    order, x = np.meshgrid([0.0, 0.5, 3.0, 20.0], [0.5, 5.0, 50.0, 500.0])
    right = accuracy.log(name, SMOKE, order.ravel(), x.ravel())
    np.testing.assert_allclose(accuracy.naive(name, order.ravel(), x.ravel()), right, rtol=1e-12, atol=1e-12)
    z = torch.from_numpy(x.ravel()).requires_grad_()
    slope = torch.autograd.grad(accuracy.LOGS[name](torch.from_numpy(order.ravel()), z).sum(), z)[0]
    naive = getattr(baseline, name.replace("log", "slope"))(order.ravel(), x.ravel())
    np.testing.assert_allclose(naive, slope.numpy(), rtol=1e-11)
    if name == "log_i":
        np.testing.assert_allclose(baseline.mpmath_log("besseli", order.ravel(), x.ravel()), right, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(cases.GSL is None, reason=str(cases.MISSING))
def test_gsl_is_called_as_it_means_to_be():
    order, x = torch.tensor([0.0, 3.0, 20.0]).double(), torch.tensor([0.5, 5.0, 50.0]).double()
    torch.testing.assert_close(cases.gsl_log_i(order, x), accuracy.LOGS["log_i"](order, x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(cases.gsl_log_k(order, x), accuracy.LOGS["log_k"](order, x), rtol=1e-11, atol=1e-11)


def test_a_missing_gsl_is_said_and_takes_its_claims_alone(monkeypatch):
    monkeypatch.setattr(cases, "GSL", None)
    monkeypatch.setattr(cases, "MISSING", {"GSL": "not installed"})
    values = accuracy.failures(Config(robust_points=200))
    assert values["robust_gsl"] == NotRun("GSL: not installed", busy=True)
    assert values["robust"]["ours log I"] == 0 < values["robust"]["SciPy log I"]
    row = {"SciPy": 60.0, "torch": 10.0, "JAX": 5.0, "torch, one thread": 20.0}
    ratios = speed.ratios({"log I, box, 1,000": row, "log K, box, 1,000": row})
    assert ratios["scipy_cpu"]["median"] == 12 and ratios["scipy_cpu"]["one thread median"] == 3
    assert ratios["cpp_cpu"] == ratios["cpp_each"] == NotRun("GSL: not installed", busy=True)


def test_speed_ups_are_medians_over_sets_and_of_one_path(monkeypatch):
    monkeypatch.setattr(cases, "GSL", object())  # the table below has its times, whether or not it is installed
    table = {
        "log I, box, 1": {"SciPy": 10.0, "GSL": 30.0, "torch": 1.0, "JAX": 10.0, "torch, one thread": 2.0},
        "log I, box, 2": {"SciPy": 30.0, "GSL": 10.0, "torch": 1.0, "JAX": 1.0, "torch, one thread": 2.0},
        "log K, box, 1": {"SciPy": 20.0, "GSL": 90.0, "torch": 1.0, "JAX": 20.0, "torch, one thread": 2.0},
    }
    ratios = speed.ratios(table)
    assert (ratios["scipy_cpu"]["median"], ratios["scipy_cpu"]["maximum"], ratios["scipy_cpu"]["JAX median"]) == (20, 30, 1)
    assert ratios["cpp_each"] == {"log I": 20, "log K": 90}
    assert ratios["cpp_cpu"]["median"] == 30


def test_hashed_sequences_keep_inner_products():
    """A random projection: the cosine of two lines is that of their counts, up to 1 / sqrt(dim)."""
    lines = features.verses(king_james().whole, 20)
    assert all(len(line) > 10 and not line.startswith(b"= ") for line in lines)
    wide = features.hashed_grams(lines, 1 << 19)
    narrow = features.hashed_grams(lines, 4096)
    np.testing.assert_allclose(np.linalg.norm(narrow, axis=1), 1, rtol=1e-12)
    assert np.abs(wide[:1] @ wide.T - narrow[:1] @ narrow.T).max() < 5 / math.sqrt(4096)
    # one line: each of its sequences, counted by hand
    counts = {}
    for i in range(len(lines[0]) - 3):
        counts[lines[0][i : i + 4]] = counts.get(lines[0][i : i + 4], 0) + 1
    found = np.sort(np.abs(wide[0][wide[0] != 0]))
    np.testing.assert_allclose(found, np.sort(list(counts.values())) / math.hypot(*counts.values()), rtol=1e-12)


def test_features_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="verses, 99999 were asked for"):
        features.verses(king_james().whole, 99999)
    with pytest.raises(ValueError, match="no sequence of 4"):
        features.hashed_grams([b"abc"], 16)


def test_embeddings_are_unit_vectors_of_sentences():
    rows, found = features.embeddings()
    assert rows.shape == (400, 384) and found.source.startswith("embedded")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-12)
    # the most alike of all pairs are alike in words, too
    alike = rows @ rows.T - np.eye(len(rows))
    first, second = np.unravel_index(alike.argmax(), alike.shape)
    lines = features.verses(king_james().whole, len(rows))
    shared = set(lines[first].split()) & set(lines[second].split())
    assert len(shared) >= 4


def test_own_image_features(tmp_path, monkeypatch):
    assert features.image_features(2048) is None
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "cifar10_resnet50_2048.npy", np.full((3, 2048), 2, np.float32))
    monkeypatch.setenv("REPRODUCTION_DATA", str(tmp_path))
    rows, found = features.image_features(2048)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    assert found.source.startswith("local")
    np.save(tmp_path / "features" / "cifar10_resnet50_8192.npy", np.ones((3, 5)))
    with pytest.raises(UserError, match=r"shape \(3, 5\); wanted \(images, 8192\)"):
        features.image_features(8192)


def test_a_fit_is_judged_by_the_definition():
    config = Config(rows=500)
    kappa, rows = fits.sample(config, 64)
    fitted = fits.fit(config, rows)
    assert fits.gap(fitted.kappa, kappa) < 0.1
    assert fits.residual(64, fitted) < 1e-14
    assert fits.residual(64, fitted._replace(kappa=1.01 * fitted.kappa)) > 1e-4
    assert fits.residual(64, fitted._replace(kappa=math.nan)) == fits.residual(64, fitted._replace(kappa=-1.0)) == 1
    assert (fits.gap(math.nan, 1.0), fits.gap(100.0, 1.0), fits.gap(1.5, 1.0)) == (1, 1, 0.5)
    # every way agrees where none of them fails
    assert all(fits.gap(other, fitted.kappa) < 1e-7 for other in fits.alternatives(rows, fitted).values())
    assert fits.fit(Config(rows=500, method=Method.naive), rows).kappa == pytest.approx(fitted.kappa, rel=1e-10)
    assert fits.held_out(rows)["held-out gain over uniform [nats]"] > 0


def test_a_sample_too_large_for_the_machine_is_refused():
    with pytest.raises(UserError, match="GiB of free memory; set rows lower"):
        fits.sample(Config(rows=10**9), 32768)


def test_forced_branches_show_at_the_borders():
    gaps = {branch: accuracy.border_gaps(Config(branch=branch)) for branch in (Branch.chosen, Branch.u_4)}
    assert max(gaps[Branch.chosen].values()) < 1e-12 < min(gaps[Branch.u_4].values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"box_side": 3}, "box_side is 3; wanted 8 or more"),
        ({"backend_points": 0}, "backend_points is 0; wanted 1 to"),
        ({"sizes": [10]}, "from 1000 up"),
        ({"sizes": []}, "from 1000 up"),
        ({"rows": 1}, "one vector alone"),
        ({"concentration": 0.0}, "above 0"),
    ],
)
def test_impossible_options_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Config(**change)


def test_paper_preset_is_the_papers_size():
    assert PRESETS["paper"].rows == 50_000


def test_the_oracle_resumes(tmp_path):
    order, x = np.array([0.5, 3.0, 40.0]), np.array([1.0, 2.0, 3.0])
    run = Run("log_bessel", tmp_path, "key", quiet=True)
    whole = accuracy.oracle(order, x, run)
    np.testing.assert_allclose(whole["log_k"][0], 0.5 * np.log(np.pi / 2) - 1, rtol=1e-15)
    rows = np.array(list(whole.values())).T.copy()
    rows[0] = 7  # marks what was not computed anew
    run.checkpoint("oracle").save({"rows": rows[:2]})
    resumed = accuracy.oracle(order, x, run)
    assert resumed["log_i"].tolist() == [7, *whole["log_i"][1:]]
