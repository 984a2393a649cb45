"""Sizes and operations against other people's networks, both frameworks against each other, and the losses by hand."""

import contextlib

import jax
import numpy as np
import pytest
import torch

from common import zoo
from common.agreement import assert_trees_agree, relative_error
from common.architecture import VisionTransformer
from common.data.digits import digits
from common.hardware import device
from common.models.vision_torch import ViT
from common.models.weights import initial_weights
from papers.gpusq_vit import compress, flops, model_jax, model_torch, sizes
from papers.gpusq_vit.shapes import DEIT, SWIN, shapes, vision_transformer

pytestmark = pytest.mark.xdist_group("gpusq_vit")
SMALL = VisionTransformer(image=8, patch=2, channels=2, classes=5, width=16, depth=2, heads=2, hidden=40)
METHODS = {"torch": model_torch, "jax": model_jax}


def drawn(seed=4, width=0.3):
    """Weights that are not all small: blocks matter, and pruning changes the class of some images but not of all."""
    rng = np.random.default_rng(seed)
    first = initial_weights(SMALL, seed)
    return {name: array + width * rng.standard_normal(array.shape) * (array.ndim > 1) for name, array in first.items()}


def images(count=12, seed=1):
    return np.random.default_rng(seed).random((count, 8, 8, 2))


def test_parameters_are_those_of_the_published_weights():
    """As their authors' and torchvision's checkpoints have them."""
    known = {"DeiT-T": 5_717_416, "DeiT-S": 22_050_664, "DeiT-B": 86_567_656, "Swin-T": 28_288_354, "Swin-B": 87_768_224}
    assert {name: shapes(name).parameters for name in known} == known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeiT-T", "DeiT-B", "Swin-T", "Swin-B"])
def test_parameters_are_those_of_the_published_networks(name):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        if name in DEIT:
            a = DEIT[name]
            config = transformers.ViTConfig(
                hidden_size=a.width,
                num_hidden_layers=a.depth,
                num_attention_heads=a.heads,
                intermediate_size=a.hidden,
                num_labels=1000,
            )
            model = transformers.ViTForImageClassification(config)
        else:
            width, depths, heads = SWIN[name]
            config = transformers.SwinConfig(embed_dim=width, depths=list(depths), num_heads=list(heads), num_labels=1000)
            model = transformers.SwinForImageClassification(config)
    assert shapes(name).parameters == sum(each.numel() for each in model.parameters())


def test_operations_are_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    a = VisionTransformer(image=32, patch=4, classes=8, width=96, depth=2, heads=4, hidden=384)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        # The mechanism as two products: the fused one is not counted on every device.
        ViT(a, attention=lambda q, k, v, layer: (q @ k.transpose(-1, -2)).softmax(-1) @ v)(torch.empty(1, 32, 32, 3))
    found = vision_transformer(a)
    assert counter.get_total_flops() == 2 * (sum(each.macs for each in found.matrices) + found.attention)


def test_the_whole_numbers_of_the_rule():
    for name in (*DEIT, *SWIN):
        eight, four = (flops.ratio(shapes(name), kind) for kind in ("int8", "int4"))
        assert 16 < eight < 32 and four == pytest.approx(2 * eight)
    assert flops.ratio(shapes("DeiT-B"), "int8", sparse=False) == 16


def test_a_roofline_without_memory_is_the_ratio_of_peaks():
    card, small = device("a100_40_sxm"), shapes("DeiT-T")
    one, many = (flops.seconds(small, "int4", batch, card, memory=False) for batch in (1, 8))
    assert many == pytest.approx(8 * one)
    assert flops.seconds(small, "int4", 1, card) > one
    with pytest.raises(ValueError, match="no network 'ViT-X'"):
        shapes("ViT-X")


def test_bytes_are_five_and_two_and_a_half_bits():
    for bits, each in ((16, 9.0), (8, 5.0), (4, 2.5)):
        packed = sizes.pack_float(np.random.default_rng(0).standard_normal((48, 64), np.float32), bits)
        scales = 0 if packed.scale is None else packed.scale.nbytes
        assert 8 * (packed.nbytes - scales) == each * 48 * 64


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_are_the_fake_quantised_ones(bits):
    """For whole and ragged groups; a row of zeros and a row of one huge number."""
    weights = np.random.default_rng(1).standard_normal((9, 20)).astype(np.float32)
    weights[3], weights[4, 7] = 0, 6e4
    tensor = torch.from_numpy(weights)
    mask = compress.layer_mask("some", tensor, bits)
    assert mask.shape == (9, compress.filled(20, bits))
    pruned = tensor * mask[:, :20]
    want = compress.fake_quantize(pruned, compress.weight_scale(pruned, bits), bits=bits, axis=0)
    assert np.array_equal(compress.pack_layer(tensor, mask, bits).weights(), want.numpy())


def test_losses_by_hand():
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), [torch.zeros(2, 3, 4), torch.ones(2, 3, 4)]
    teacher = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), [torch.zeros(2, 3, 4), 3 * torch.ones(2, 3, 4)]
    hard, soft, feature = model_torch.distillation(student, teacher, torch.tensor([0, 1]), critical=2, temperature=2.0)
    log = torch.log_softmax
    want = -(log(student[0], 1)[0, 0] + log(student[0], 1)[1, 1]) / 2
    assert hard.item() == pytest.approx(want.item())
    p, q = log(teacher[0] / 2, 1), log(student[0] / 2, 1)
    assert soft.item() == pytest.approx(4 * ((p.exp() * (p - q)).sum() / 2).item())
    assert feature.tolist() == [0, 2]  # 4 for the first sample; the second one is told another class by the teacher
    unlabelled = model_torch.distillation(student, teacher, None, critical=1, temperature=2.0)
    assert unlabelled[0].item() == pytest.approx(-(log(student[0], 1)[:, 0].sum() / 2).item())
    assert unlabelled[2].tolist() == [2]


def test_block_weights():
    losses = np.array([0.1, 0.2, 0.4])
    inverse = compress.block_weights(losses, "inverse")
    assert inverse.mean() == pytest.approx(1) and np.allclose(inverse * losses, inverse[0] * losses[0])
    assert compress.block_weights(losses, "uniform").tolist() == [1, 1, 1]
    assert np.allclose(compress.block_weights(losses, "proportional"), losses / losses.mean())


def test_the_range_of_inputs_is_the_best_of_its_candidates():
    values = np.random.default_rng(2).standard_normal(5000)
    values[0] = 40.0
    wide, narrow = compress.input_scale(np.clip(values, -2, 2), 4), compress.input_scale(values, 4)
    assert wide == pytest.approx(2 / 7, rel=0.3)
    assert narrow < 40 / 7 / 4  # one outlier is cut instead of widening all steps
    assert compress.input_scale(np.zeros(5), 8) > 0


def trained(method, framework, bits, steps=3):
    """Both stages in float64, a few steps each: (losses, weights, input scales, packed layers)."""
    double = jax.enable_x64(True) if framework == "jax" else contextlib.nullcontext()
    with double:
        teacher = method.build(SMALL, drawn(), double=True)
        student = method.copied(teacher)
        method.prune(student, bits)
        labels = np.random.default_rng(3).integers(0, 5, 12)

        def stage(model, teacher, blocks, labelled):
            objective = method.loss(teacher, (1.0, 10.0, 5.0), blocks, 2.0, labelled)
            return method.train(model, objective, lambda step: (images(seed=step), labels), 1e-3, 0.0, steps).losses

        first = stage(student, teacher, np.ones(2), True)
        losses = method.feature_losses(student, teacher, images(), 2)
        model = method.copied(student)
        method.quantize(model, bits, images())
        second = stage(model, student, compress.block_weights(losses, "inverse"), False)
        return np.concatenate([first, losses, second]), method.weights_of(model), method.export(model, bits)


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_both_frameworks_make_the_same_steps(bits):
    mine, theirs = (trained(METHODS[framework], framework, bits) for framework in ("torch", "jax"))
    assert (mine[0] > 0).all() and relative_error(theirs[0], mine[0]) < 1e-9
    # The bias of keys shifts all scores of a query alike: its gradient is rounding alone, of which Adam makes whole steps.
    moved = [{n: w for n, w in each[1].items() if not n.endswith("key.bias")} for each in (theirs, mine)]
    assert_trees_agree(*moved, 1e-9)
    for name, layer in mine[2].layers.items():
        other = theirs[2].layers[name]
        assert layer.values.tobytes() == other.values.tobytes() and layer.meta.tobytes() == other.meta.tobytes()
        assert np.array_equal(layer.scale, other.scale)
        assert mine[2].input_scales[name] == pytest.approx(theirs[2].input_scales[name], rel=1e-6)


def test_masked_weights_stay_where_they_were():
    model = model_torch.build(SMALL, drawn())
    before = {name: layer.weight.clone() for name, layer in model_torch.layers(model).items()}
    model_torch.prune(model, 8)
    labels = np.zeros(12, np.int64)
    objective = model_torch.loss(model_torch.build(SMALL, drawn()), (1.0, 10.0, 5.0), np.ones(2), 1.0, True)
    model_torch.train(model, objective, lambda step: (images().astype(np.float32), labels), 1e-3, 0.0, 2)
    for name, layer in model_torch.layers(model).items():
        mask = layer.on_weight["pruned"].mask[:, : layer.weight.shape[1]]
        assert torch.equal(layer.weight[~mask], before[name][~mask])
        assert not torch.equal(layer.weight[mask], before[name][mask])


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_model_tells_what_the_quantised_one_tells(bits):
    zoo_model, data = zoo.load("digits_vit.v1"), digits()
    model = model_torch.build(zoo_model.architecture, zoo_model.weights)
    model_torch.prune(model, bits)
    if bits < 16:
        model_torch.quantize(model, bits, data.train[:64])
    packed = model_torch.load(model_torch.export(model, bits))
    some = torch.from_numpy(data.test[:100])
    with torch.no_grad():
        got, want = packed(some), model(some)
        few = torch.cat([packed(each[None]) for each in some[:3]])
    # What is not packed is stored in float16, which moves a few activations to the next step of their grid.
    assert (got.argmax(1) != want.argmax(1)).sum() <= 1
    assert (got - want).abs().mean() < (0.01 if bits == 16 else 0.1) * want.abs().mean()
    # The compiled loop adds in another order, so that an activation may be rounded to the next step.
    assert (few - got[:3]).abs().max() < 0.1 * got.abs().max()
    kept = {name: type(each).__name__ for name, each in packed.named_modules()}
    assert kept["blocks.0.attention.query"] == kept["head"] == kept["patches"] == "PackedLinear"


def test_what_is_not_pruned():
    model = model_torch.build(SMALL, drawn())
    model_torch.prune(model, 8, classifier=False)
    assert [n for n, layer in model_torch.layers(model).items() if "pruned" not in layer.on_weight] == ["head"]
    ragged = VisionTransformer(image=6, patch=3, channels=1, classes=4, width=16, depth=1, heads=2, hidden=32)
    model = model_torch.build(ragged, initial_weights(ragged, 0))
    model_torch.prune(model, 8, ragged="dense")
    assert [n for n, layer in model_torch.layers(model).items() if "pruned" not in layer.on_weight] == ["patches"]
    with pytest.raises(ValueError, match="the layer 'patches' has 9 inputs, no multiple of 4; take ragged=pad or ragged=dense"):
        model_torch.prune(model_torch.build(ragged, initial_weights(ragged, 0)), 8, ragged="refuse")
    broken = initial_weights(ragged, 0)
    broken["blocks.0.feed_forward.up.weight"][2, 3] = np.nan
    with pytest.raises(ValueError, match=r"the layer 'blocks\.0\.feed_forward\.up' has a weight that is NaN"):
        model_torch.prune(model_torch.build(ragged, broken), 8)
