"""Images are the known ones in disjoint parts; image models are the same function in both frameworks."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import common.data.photo_patches as photos
from common import UserError
from common.agreement import relative_error
from common.architecture import ResNet, VisionTransformer
from common.data.digits import digits
from common.models import vision_jax, vision_torch, weights

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("images")

VIT = VisionTransformer(image=8, patch=4, channels=2, classes=3, width=12, depth=2, heads=3, hidden=20)
RESNET = ResNet(widths=(4, 6), blocks=1, classes=3, channels=2)


def drawn(architecture) -> weights.Weights:
    rng = np.random.default_rng(5)
    found = weights.initial_weights(architecture, 1)
    return {name: w + 0.2 * rng.random(w.shape) for name, w in found.items()}


def models(architecture, dtype):
    kinds = {VisionTransformer: "ViT", ResNet: "ResidualNet"}
    ours = getattr(vision_torch, kinds[type(architecture)])(architecture, dtype=getattr(torch, dtype))
    theirs = getattr(vision_jax, kinds[type(architecture)])(architecture, param_dtype=jnp.dtype(dtype))
    weights.to_torch(ours, drawn(architecture))
    weights.to_flax(theirs, drawn(architecture))
    return ours, theirs


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_logits_and_gradients_agree(architecture, training):
    rng = np.random.default_rng(0)
    images, cotangent = rng.random((3, 8, 8, 2)), rng.standard_normal((3, 3))
    with jax.enable_x64(True):
        ours, theirs = models(architecture, "float64")
        ours.train(training)
        theirs.train() if training else theirs.eval()
        logits = ours(torch.from_numpy(images))
        (logits * torch.from_numpy(cotangent)).sum().backward()
        graph, state, rest = nnx.split(theirs, nnx.Param, ...)

        @jax.jit
        def both(state):
            def product(state):
                found = nnx.merge(graph, state, rest, copy=True)(jnp.asarray(images))
                return (found * cotangent).sum(), found

            return jax.grad(product, has_aux=True)(state)

        gradients, found = both(state)
        assert found.dtype == np.float64
        assert relative_error(np.asarray(found), logits.detach().numpy()) < 1e-9
        named = weights.from_flax(nnx.merge(graph, gradients, rest))
    largest = max(p.grad.abs().max().item() for p in ours.parameters())
    for name, parameter in ours.named_parameters():
        # The softmax does not see a shift of its inputs, so the gradient of the keys' bias is zero but for rounding.
        scale = largest if name.endswith("key.bias") else parameter.grad.abs().max().item()
        assert np.abs(named[name] - parameter.grad.numpy()).max() < 1e-9 * scale, name


@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_parameters_are_counted(architecture):
    ours, _ = models(architecture, "float32")
    assert sum(p.numel() for p in ours.parameters()) == architecture.parameters()
    again = weights.from_torch(ours)
    assert list(again) and all(np.array_equal(again[name], w.astype(np.float32)) for name, w in drawn(architecture).items())


def test_the_published_network_has_its_published_count():
    """DeiT-Ti and ResNet-20 for CIFAR-10 (0.27 M in He et al. 2016, Table 6; here with 1 x 1 shortcuts)."""
    deit = VisionTransformer(image=224, patch=16, classes=1000, width=192, depth=12, heads=3, hidden=768)
    assert deit.parameters() == 5_717_416
    assert 0.26e6 < ResNet(widths=(16, 32, 64), blocks=3, classes=10).parameters() < 0.28e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: VisionTransformer(image=8, patch=3, classes=2, width=4, depth=1, heads=1, hidden=4), "3 does not divide 8"),
        (lambda: VisionTransformer(image=8, patch=2, classes=2, width=4, depth=1, heads=3, hidden=4), "3 does not divide 4"),
        (lambda: VisionTransformer(image=8, patch=2, classes=2, width=4, depth=0, heads=1, hidden=4), "depth must be"),
        (lambda: ResNet(widths=(), blocks=1, classes=2), "widths must be one or more"),
        (lambda: ResNet(widths=(4,), blocks=0, classes=2), "blocks must be"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def test_digits_are_whole_and_split():
    found = digits()
    assert len(found.train) + len(found.test) == len(found.train_labels) + len(found.test_labels) == 1797
    assert found.train.dtype == np.float32 and found.train.min() == 0 and found.train.max() == 1
    rows = {hashlib.sha256(image.tobytes()).hexdigest() for image in found.train}
    assert not any(hashlib.sha256(image.tobytes()).hexdigest() in rows for image in found.test)
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    assert np.array_equal(np.concatenate([found.train, found.test]).sum((1, 2, 3)).sum() * 16, sklearn.images.sum())


def test_crops_come_from_disjoint_regions(monkeypatch):
    """Pixels that number themselves show where a crop was cut."""

    def numbered(name):
        height, width = photos.PHOTOGRAPHS[name]
        place = np.arange(height * width).reshape(height, width)
        return np.stack([place >> 16, place >> 8 & 255, place & 255], -1).astype(np.uint8)

    monkeypatch.setattr(photos, "_photograph", numbered)
    found = photos.photo_patches(train=300, test=100)
    assert found.train.shape == (2400, 32, 32, 3) and found.test.shape == (800, 32, 32, 3)

    def places(images):
        bytes_ = np.rint(images * 255).astype(np.int64)
        return bytes_[..., 0] << 16 | bytes_[..., 1] << 8 | bytes_[..., 2]

    for label, (height, width) in enumerate(photos.PHOTOGRAPHS.values()):
        seen = {}
        for part in ("train", "test"):
            crops = places(getattr(found, part)[getattr(found, f"{part}_labels") == label])
            assert (np.diff(crops, axis=2) == 1).all() and (np.diff(crops, axis=1) == width).all(), "a crop is one piece"
            seen[part] = set(crops.ravel().tolist())
        assert not seen["train"] & seen["test"]
        assert max(seen["train"]) < height * width


def test_photographs_of_another_wheel_are_refused(monkeypatch):
    monkeypatch.setitem(photos.PHOTOGRAPHS, "rocket", (1, 1))
    with pytest.raises(UserError, match="'rocket' of the installed scikit-image is uint8"):
        photos.photo_patches(1, 1)
    monkeypatch.setitem(photos.PHOTOGRAPHS, "unheard_of", (1, 1))
    with pytest.raises(UserError, match="has no photograph"):
        photos._photograph("unheard_of")


def test_patches_are_the_same_twice():
    one, two = photos.photo_patches(8, 4, seed=3), photos.photo_patches(8, 4, seed=3)
    assert np.array_equal(one.train, two.train) and one.sha256 == two.sha256
    assert not np.array_equal(one.train, photos.photo_patches(8, 4, seed=4).train)
    assert one.train.std(axis=(1, 2, 3)).min() >= photos.FLAT
