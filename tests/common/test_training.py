"""Both loops make the same steps, and a training that was killed ends as if it had not been."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from common.agreement import assert_trees_agree
from common.architecture import Transformer
from common.checkpoint import Checkpoint
from common.data.text import batches, windows
from common.models import transformer_jax, transformer_torch, weights
from common.training import bits_per_byte, jax_loop, torch_loop, warmup_cosine

torch.set_num_threads(1)

TINY = Transformer(width=16, depth=1, heads=2, kv_heads=1, head_dim=8, hidden=24, context=12, vocabulary=16)
TEXT = np.random.default_rng(0).integers(0, 16, 50).astype(np.uint8)
AT = batches(TEXT, 4, 12, seed=0)
SOME = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


def square(model, batch):
    return (model(batch) ** 2).mean()


class Memory:
    """A store without a file."""

    saved = None

    def load(self):
        return self.saved

    def save(self, arrays, meta):
        self.saved = ({name: array.copy() for name, array in arrays.items()}, dict(meta))


class Torch:
    def __init__(self, architecture=TINY, dtype=torch.float32):
        self.model = transformer_torch.TransformerLM(architecture, dtype=dtype)

    def train(self, steps, **options):
        optimizer = torch_loop.adamw(self.model, 1e-2)
        return torch_loop.train(self.model, torch_loop.next_token_loss, AT, optimizer, steps, **options)

    def evaluate(self, some):
        return torch_loop.evaluate(self.model, some)

    def weights(self):
        return weights.from_torch(self.model)


class Jax:
    def __init__(self, architecture=TINY, dtype=jnp.float32):
        self.model = transformer_jax.TransformerLM(architecture, param_dtype=dtype)

    def train(self, steps, **options):
        return jax_loop.train(self.model, jax_loop.next_token_loss, AT, jax_loop.adamw(1e-2), steps, **options)

    def evaluate(self, some):
        return jax_loop.evaluate(self.model, some)

    def weights(self):
        return weights.from_flax(self.model)


BOTH = pytest.mark.parametrize("framework", [Torch, Jax])


def test_the_loops_make_the_same_steps():
    schedule = warmup_cosine(20, 5)
    ours = Torch(dtype=torch.float64)
    losses = ours.train(20, schedule=schedule).losses
    with jax.enable_x64(True):
        theirs = Jax(dtype=jnp.float64)
        found = theirs.train(20, schedule=schedule).losses
        assert_trees_agree(theirs.weights(), ours.weights(), 1e-9)
    assert np.abs(found - losses).max() < 1e-9
    assert not np.allclose(losses, Torch(dtype=torch.float64).train(20).losses), "the schedule does nothing"


class Killed(Exception):
    pass


def killed_at(last):
    def track(steps, label):
        for step in steps:
            if step == last:
                raise Killed
            yield step

    return track


@BOTH
def test_a_killed_training_ends_as_if_it_had_not_been(framework, tmp_path):
    options = {"schedule": warmup_cosine(9, 2), "every": 3}
    whole = framework()
    wanted = whole.train(9, **options).losses
    options["checkpoint"] = Checkpoint(tmp_path / "training.safetensors")
    with pytest.raises(Killed):
        framework().train(9, track=killed_at(7), **options)
    resumed, steps = framework(), []
    history = resumed.train(9, track=lambda left, label: steps.extend(left) or left, **options)
    assert steps == [6, 7, 8]
    assert np.array_equal(history.losses, wanted)
    assert_trees_agree(resumed.weights(), whole.weights(), 0.0)

    done, steps = framework(), []
    history = done.train(9, track=lambda left, label: steps.extend(left) or left, **options)
    assert steps == [] and np.array_equal(history.losses, wanted)
    assert_trees_agree(done.weights(), whole.weights(), 0.0)


class Slowing(torch.optim.Optimizer):
    """Gradient descent at rate / (steps taken + 1); what it keeps is a number, or else something that cannot be saved."""

    def __init__(self, parameters, keep=None):
        self.keep = keep
        super().__init__(parameters, {"lr": 0.5})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            taken = self.state[parameter].get("taken", 0)
            parameter -= self.param_groups[0]["lr"] / (taken + 1) * parameter.grad
            self.state[parameter]["taken"] = self.keep or taken + 1


def test_optimizers_that_keep_numbers_resume_and_others_are_refused():
    def train(steps, checkpoint=None, keep=None):
        model = transformer_torch.TransformerLM(TINY)
        optimizer = Slowing(model.parameters(), keep)
        return torch_loop.train(model, torch_loop.next_token_loss, AT, optimizer, steps, checkpoint=checkpoint).losses

    checkpoint = Memory()
    train(4, checkpoint)
    assert np.array_equal(train(8, checkpoint), train(8))
    with pytest.raises(TypeError, match="the optimizer keeps 'taken' as str"):
        train(1, Memory(), keep="a word")


@BOTH
def test_training_learns(framework):
    some = framework()
    before = some.evaluate(windows(TEXT, 2, 12))
    assert abs(before - math.log(16)) < 0.1 and abs(bits_per_byte(before) - 4) < 0.15
    assert len(some.train(60).losses) == 60
    assert some.evaluate(windows(TEXT, 2, 12)) < before / 2


@BOTH
def test_evaluation_is_the_mean_over_all_rows(framework):
    some = framework()
    ragged = some.evaluate(windows(TEXT, 3, 12))
    assert ragged == pytest.approx(some.evaluate(windows(TEXT, 4, 12)), rel=1e-6)


def noisy_torch(steps, checkpoint):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5)).eval()
    sgd = torch.optim.SGD(model.parameters(), 0.0)
    return torch_loop.train(model, square, lambda step: SOME, sgd, steps, checkpoint=checkpoint).losses


def noisy_jax(steps, checkpoint):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    model.eval()
    return jax_loop.train(model, square, lambda step: SOME, optax.sgd(0.0), steps, checkpoint=checkpoint).losses


@pytest.mark.parametrize("train", [noisy_torch, noisy_jax])
def test_random_numbers_go_on_after_a_resumption(train, tmp_path):
    """At rate 0 the steps differ by their dropout alone; training switches it on."""
    whole = train(4, None)
    checkpoint = Checkpoint(tmp_path / "noisy.safetensors")
    train(2, checkpoint)
    assert np.array_equal(train(4, checkpoint), whole) and len(set(whole)) == 4


def test_evaluation_of_flax_is_without_noise_and_leaves_the_mode_as_it_was():
    model = nnx.Sequential(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    assert jax_loop.evaluate(model, [SOME], square) == pytest.approx((SOME**2).mean())
    assert not model.layers[0].deterministic


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode_as_it_was(training):
    some = Torch()
    some.model.train(training)
    some.evaluate(windows(TEXT, 4, 12))
    assert some.model.training is training


def test_any_optimizer_and_a_tuple_of_arrays():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)).astype(np.float32), rng.standard_normal((8, 2)).astype(np.float32)
    ours = torch.nn.Linear(3, 2)
    sgd = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9)
    theirs = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    weights.to_flax(theirs, weights.from_torch(ours))

    def loss(model, batch):
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    losses = torch_loop.train(ours, loss, lambda step: (x, y), sgd, 5, checkpoint=Memory()).losses
    found = jax_loop.train(theirs, loss, lambda step: (x, y), optax.sgd(0.1, 0.9), 5, checkpoint=Memory()).losses
    assert np.allclose(found, losses, rtol=1e-5)
    assert torch_loop.evaluate(ours, [(x, y)], loss) == pytest.approx(jax_loop.evaluate(theirs, [(x, y)], loss), rel=1e-4)


def test_statistics_of_a_forward_pass_are_carried_on():
    class Normed(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(x)

    model = Normed()
    jax_loop.train(model, square, lambda step: 5 + SOME, optax.sgd(0.1), 3)
    assert (np.asarray(model.norm.mean[...]) > 0.1).all()


def test_warmup_cosine():
    factor = warmup_cosine(10, 4, final=0.2)
    rates = [factor(step) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[-1] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    with pytest.raises(ValueError, match="a warm-up of 10 steps does not fit into 10 steps"):
        warmup_cosine(10, 10)
