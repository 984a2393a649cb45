"""Counts against other counters and what is built, scaling and its rounding, the closed form, fits, the roofline, bad input."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import hardware, ledger
from common.command_line import main
from papers.fast_model_scaling import checks, counts, runtime, study, training
from papers.fast_model_scaling.block import Bottleneck, MaxPool
from papers.fast_model_scaling.complexity import breakdown, complexity, operators, traffic
from papers.fast_model_scaling.config import BASES, PRESETS
from papers.fast_model_scaling.counting import built_jax, built_torch
from papers.fast_model_scaling.model_torch import Network
from papers.fast_model_scaling.scaling import RULES, UNGROUPED, compatible, family, scale, scaling_factors
from papers.fast_model_scaling.specs import AnyNet, EfficientNet, named, regnet, tiny
from papers.fast_model_scaling.sweep import scaled, theory

pytestmark = pytest.mark.xdist_group("fast_model_scaling")

RESNEXT = AnyNet(
    depths=(1, 2), widths=(32, 64), strides=(1, 2), bottlenecks=(0.5, 2.0), group_widths=(4, 16), stem=16, stem_kernel=7,
    pool=True, squeeze=0.25, resolution=45, classes=5,
)  # fmt: skip


@pytest.mark.parametrize("spec", [RESNEXT, tiny("EN-tiny"), tiny("RegNet-tiny"), scale(tiny("RegNet-tiny"), "d1_w2_g1_r1", 3)])
def test_counts_are_those_of_other_counters(spec) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    model = Network(spec.network()).eval()
    images = torch.zeros(1, spec.resolution, spec.resolution, 3)
    want = complexity(spec)
    by_operator = fvcore.FlopCountAnalysis(model, images).unsupported_ops_warnings(False).by_operator()
    biases = sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias") and "norm" not in n)
    assert by_operator["conv"] + by_operator["linear"] + biases == want.flops
    outputs = fvcore.ActivationCountAnalysis(model, images).unsupported_ops_warnings(False).by_operator()
    pooled = sum(cost.activations for layer, cost in breakdown(spec) if isinstance(layer, MaxPool))
    assert outputs["conv"] + outputs["linear"] + pooled == want.activations
    assert sum(p.numel() for p in model.parameters()) == want.parameters
    assert built_torch(spec) == want


def test_modules_in_jax_count_the_same() -> None:
    assert built_jax(RESNEXT) == complexity(RESNEXT)


def test_published_networks() -> None:
    y = named("RegNetY-4.0GF")
    assert (y.depths, y.widths, set(y.group_widths)) == ((2, 6, 12, 2), (128, 192, 512, 1088), {64})
    small = named("RegNetY-400MF")
    assert (small.depths, small.widths, set(small.group_widths)) == ((1, 3, 6, 6), (48, 104, 208, 440), {8})
    assert named("EfficientNet-B3").depths == (2, 3, 3, 5, 5, 6, 2) and named("EfficientNet-B3").head == 1536
    assert complexity(named("ResNet-50")).parameters == 25_557_032
    # By hand: u = 24, 60.44, 96.88 are nearest to powers 0, 1, 2 of w_m; widths 24, 59.8, 148.8 to multiples of 8.
    net = regnet(3, 24, 36.44, 2.49, 8, resolution=64, stem=8)
    assert (net.widths, net.depths) == ((24, 56, 152), (1, 1, 1))


def test_blocks_are_what_they_say() -> None:
    """A channel of the first group reaches no output of the 3 x 3 convolution's second group."""
    net = Network(tiny("RegNet-tiny").network(), dtype=torch.float64).eval()
    block = net.layers[1]
    x = torch.zeros(1, 24, 4, 4, dtype=torch.float64)
    still = block.grouped.convolution(x)
    x[0, 3, 2, 2] = 1.0
    moved = (block.grouped.convolution(x) - still).abs().amax((0, 2, 3))
    assert (moved[:8] > 0).all() and (moved[8:] == 0).all()
    same, other = Bottleneck(inputs=8, outputs=8, hidden=8), Bottleneck(inputs=8, outputs=8, hidden=8, stride=2)
    assert "shortcut" not in dict(same.parts()) and "shortcut" in dict(other.parts())


def test_own_kernel_in_the_network() -> None:
    from papers.fast_model_scaling.kernel import group_conv

    net = checks.every_kind()
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 16, 16, 3)))
    library = Network(net, 2, dtype=torch.float64).eval()
    own = Network(net, 2, lambda x, w, stride: group_conv(x, w, stride=stride), dtype=torch.float64).eval()
    torch.testing.assert_close(own(images), library(images), rtol=1e-12, atol=1e-12)


@given(st.sampled_from([*RULES.values(), *UNGROUPED.values(), "dw", "d2_r1"]), st.floats(0.1, 64))
def test_factors_multiply_to_s(rule, s) -> None:
    factor = scaling_factors(rule, s)
    assert factor.depth * factor.width**2 * factor.resolution**2 == pytest.approx(s)
    assert min(factor) > 0 and scaling_factors(rule, 1) == (1, 1, 1, 1)


def test_fast_scaling_by_hand() -> None:
    factor = scaling_factors("d1_w8_g8_r1", 4)
    assert factor == pytest.approx((4**0.1, 4**0.4, 4**0.4, 4**0.05))
    assert scaling_factors(family(0.8), 4) == pytest.approx(factor)
    assert scaling_factors(family(1 / 3), 8)[:2] == pytest.approx((8 ** (1 / 3), 8 ** (1 / 6)))
    assert scaling_factors("dwr", 8) == pytest.approx((2, math.sqrt(2), 1, math.sqrt(2)))
    assert scaling_factors("g", 1) == (1, 1, 1, 1)


def test_ties_go_to_the_even_number() -> None:
    base = tiny("RegNet-tiny")
    half = dataclasses.replace(base, widths=(24, 56, 72), group_widths=(8, 8, 8))
    assert scale(half, "w", 0.25).widths == (16, 32, 32)  # 12 -> 1.5 eighths -> 2; 28 -> 3.5 -> 4; 36 -> 4.5 -> 4
    assert scale(dataclasses.replace(base, resolution=36), "r", 0.8**2 * 4).resolution == 56  # 57.6 / 4 = 14.4


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), st.integers(1, 200)), min_size=1, max_size=4
    )
)
def test_compatible_widths_fit(stages) -> None:
    widths, groups = compatible([8 * w for w, _, _ in stages], [b for _, b, _ in stages], [g for _, _, g in stages])
    for (asked, ratio, _), width, group in zip(stages, widths, groups, strict=True):
        inner = int(width * ratio)
        assert inner >= group and (ratio < 1 or inner % group == 0)
        assert abs(inner - 8 * asked * ratio) <= max(group, math.lcm(group, int(ratio)) if ratio > 1 else group)


@settings(max_examples=15)
@given(st.sampled_from(["RegNetX-400MF", "RegNetY-1.6GF", "ResNet-50", "EfficientNet-B0"]), st.floats(0, 1), st.floats(1, 24))
def test_closed_form_is_the_count(name, alpha, s) -> None:
    base = named(name)
    want = complexity(scale(base, family(alpha), s))
    got = scaled(base, np.array([alpha]), np.array([s]))
    assert tuple(int(each[0]) for each in got) == tuple(want)


def test_slopes_are_those_of_the_theory() -> None:
    alphas = torch.tensor([0.0, 1 / 3, 0.8, 1.0], dtype=torch.float64)
    from papers.fast_model_scaling import sweep_torch

    found = sweep_torch.slopes(checks.equal_stages(), alphas, torch.tensor([2.0, 8.0], dtype=torch.float64), stem=False)
    for row, want in zip(found, theory(alphas), strict=True):
        torch.testing.assert_close(row, want[:, None].expand(4, 2), rtol=0, atol=1e-3)
    # Against a difference quotient, with stem and rounding off.
    base, step = named("EfficientNet-B0"), 1e-5
    a, s = np.array([0.8, 0.8]), np.array([math.exp(-step), math.exp(step)]) * 3
    low, high = np.log(np.array(scaled(base, a, s, rounded=False))).T
    slopes = sweep_torch.slopes(base, alphas[2:3], torch.tensor([3.0], dtype=torch.float64))
    np.testing.assert_allclose(slopes[:, 0, 0], (high - low) / (2 * step), rtol=1e-6)


def test_slopes_agree_in_jax() -> None:
    import jax
    import jax.numpy as jnp

    from papers.fast_model_scaling import sweep_jax, sweep_torch

    alphas, s = np.array([0.2, 0.8]), np.array([2.0, 5.0, 9.0])
    with jax.enable_x64(True):
        got = np.asarray(sweep_jax.slopes(named("RegNetY-400MF"), jnp.asarray(alphas), jnp.asarray(s)))
    want = sweep_torch.slopes(named("RegNetY-400MF"), torch.from_numpy(alphas), torch.from_numpy(s))
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert got.shape == (3, 2, 3)


def test_activations_order_the_rules() -> None:
    """At equal multiply-adds: width fewest, then fast, uniform, depth, resolution."""
    for name in counts.BASES:
        base = named(name)
        slopes = {rule: counts.exponent(base, scale(base, RULES[rule], 16)) for rule in RULES}
        assert sorted(slopes, key=slopes.__getitem__) == ["w", "fast", "dwr", "d", "r"]


def test_groups_that_do_not_scale_save_multiply_adds() -> None:
    found = counts.group_scale()
    assert found["groups as they were"] < 3.2 < 3.9 < found["groups scaled"]


def test_operators_add_up_to_the_counts() -> None:
    for spec in (RESNEXT, tiny("EN-tiny")):
        work = operators(spec)
        assert sum(each.macs for each in work) == spec.network().count(spec.resolution, spec.resolution).macs
        gates = sum(each.written for each in work if each.name.endswith("squeeze"))
        inner = sum(layer.squeeze + layer.hidden for layer, _ in breakdown(spec) if getattr(layer, "squeeze", 0))
        assert sum(each.written for each in work) - gates == complexity(spec).activations - inner
        assert traffic(spec) > complexity(spec).activations


def test_saved_bytes_by_hand() -> None:
    """A 1 x 1 convolution network without gates: autograd keeps the input and output of each norm and the classifier's input."""
    spec = AnyNet(depths=(1,), widths=(8,), strides=(2,), bottlenecks=(1.0,), group_widths=(0,), stem=8, resolution=32, classes=2)
    kept = [study.saved_bytes(spec, batch) for batch in (1, 2, 3)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 4 * complexity(spec).activations


def test_fits_against_numpy_and_known_planes() -> None:
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 12))
    y = 2 * x - z + 3
    assert runtime.r_squared([x, z], y) == pytest.approx(1) == runtime.r_squared([x, z], y, crossed=True)
    noisy = y + rng.normal(size=12)
    assert runtime.r_squared([x], noisy) == pytest.approx(runtime.pearson(x, noisy) ** 2)
    assert runtime.r_squared([x], noisy, crossed=True) < runtime.r_squared([x], noisy)
    held = np.arange(12) == 4
    slope, offset = np.polyfit(x[~held], noisy[~held], 1)
    found = runtime.predictions([x], noisy, [held])
    assert found[4] == pytest.approx(slope * x[4] + offset) and np.isnan(found[~held]).all()


def test_roofline_by_hand() -> None:
    spec, chip = tiny("EN-tiny"), hardware.device("v100_sxm2")
    work = operators(spec)
    want = sum(
        max(2 * 64 * w.macs / chip.peak("fp16"), 2 * (64 * (w.read + w.written) + w.weights) / chip.bandwidth) for w in work
    )
    assert runtime.modelled_seconds(spec) == pytest.approx(want)
    assert runtime.modelled_seconds(spec, memory=False) == pytest.approx(2 * 64 * sum(w.macs for w in work) / chip.peak("fp16"))
    assert 0 < runtime.memory_share(spec) <= 1


def test_resizing_keeps_lines() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32)[None, :, None, None], (1, 32, 32, 3))
    larger = training.resized(ramp, 64)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(ramp.transpose(0, 3, 1, 2).copy()), size=(64, 64), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(larger.transpose(0, 3, 1, 2), (want - 0.5) * 4, atol=1e-5)
    np.testing.assert_allclose(training.resized(ramp, 32), (ramp - 0.5) * 4)


def test_tiny_networks_stay_near_their_target() -> None:
    for name in BASES:
        base = complexity(tiny(name)).flops
        for rule in RULES.values():
            for s in (2, 4, 8):
                assert 0.6 < complexity(scale(tiny(name), rule, s)).flops / base / s < 1.5, (name, rule, s)


def test_bad_rules_and_scales_are_refused() -> None:
    for rule in ("x", "dx", "d1_q2", "", "d1w2", "d-1_w2", "dd", "d1_d2"):
        with pytest.raises(ValueError, match="rule"):
            scaling_factors(rule, 2)
    for rule in ("g", "d0_w0_g1_r0"):
        with pytest.raises(ValueError, match="neither depth nor width nor resolution"):
            scaling_factors(rule, 2)
    for s in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="wanted a factor above 0"):
            scaling_factors("d", s)
    for alpha in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            family(alpha)


def test_bad_networks_are_refused() -> None:
    spec = named("RegNetY-400MF")
    with pytest.raises(ValueError, match="resolution is 28 pixels; wanted 32 or more"):
        scale(spec, "r", 1 / 64)
    with pytest.raises(ValueError, match=r"width 48, bottleneck 1\.0 and group width 10 do not fit"):
        dataclasses.replace(spec, group_widths=(10, 8, 8, 8))
    with pytest.raises(ValueError, match=r"a bottleneck of 1\.5 is above 1 and no whole number"):
        dataclasses.replace(spec, bottlenecks=(1.0, 1.0, 1.5, 1.0))
    with pytest.raises(ValueError, match="widths is"):
        dataclasses.replace(spec, widths=(48, 104))
    with pytest.raises(ValueError, match="depths is"):
        dataclasses.replace(tiny("EN-tiny"), depths=(1, 0, 2))
    with pytest.raises(ValueError, match="wanted one of each stage, 0 or more"):
        dataclasses.replace(spec, group_widths=(8, 8, 8, -8))
    with pytest.raises(ValueError, match="no network 'B9'"):
        named("B9")
    with pytest.raises(ValueError, match="no tiny network"):
        tiny("VGG-tiny")
    with pytest.raises(ValueError, match="squeeze of 0 or more"):
        Bottleneck(inputs=8, outputs=8, hidden=8, squeeze=-1)
    with pytest.raises(ValueError, match="closed form takes those up to 1"):
        scaled(RESNEXT, np.array([0.5]), np.array([2.0]))
    assert isinstance(scale(RESNEXT, "w", 3), AnyNet) and isinstance(tiny("EN-tiny"), EfficientNet)


def test_bad_options_are_refused(capsys) -> None:
    with pytest.raises(ValueError, match="no rule 'q'"):
        dataclasses.replace(PRESETS["smoke"], trained_rules=["q"])
    with pytest.raises(ValueError, match="compared_s is 3"):
        dataclasses.replace(PRESETS["smoke"], compared_s=3.0)
    with pytest.raises(ValueError, match="steps is 5"):
        dataclasses.replace(PRESETS["smoke"], steps=5)
    assert main("fast_model_scaling", ["preset=smoke", "seeds=0"]) == 2
    assert "seeds is 0; wanted at least 1" in capsys.readouterr().err
    assert main("fast_model_scaling", ["preset=paper"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_ledger_names_what_is_measured() -> None:
    book = ledger.load("fast_model_scaling")
    assert set(book.by_id["table_counts"].figure) == {"flops", "parameters", "activations"}
    assert len(study.networks(PRESETS["laptop"])) == 24 and len(study.networks(PRESETS["smoke"])) == 6
    assert len(runtime.table()) == 30


@pytest.mark.slow
def test_training_in_jax() -> None:
    from papers.fast_model_scaling.config import Framework

    config = dataclasses.replace(PRESETS["smoke"], framework=Framework.jax, steps=12)
    accuracy = training.train(config, "EN-tiny", "fast", 2.0, 0)
    assert 0.1 < accuracy <= 1
