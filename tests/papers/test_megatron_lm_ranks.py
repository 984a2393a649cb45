"""Real processes: every layout equals one process, layers equal a library's, and what fails is named."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from common.distributed import Group, RankError, Ranks
from papers.megatron_lm import peers, ranks, reference
from papers.megatron_lm.config import Fault
from papers.megatron_lm.engine import Pipeline
from papers.megatron_lm.layers_torch import cross_entropy, embed
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.schedule import Kind, Op, generate, needs, validate
from papers.megatron_lm.shape import Shape, cut, initial_weights
from papers.megatron_lm.sleeping import sleep
from papers.megatron_lm.trainer import Options, Trainer, assemble

pytestmark = pytest.mark.xdist_group("megatron_lm")

SHAPE = Shape(vocabulary=130, width=16, depth=4, heads=4, context=12)
BATCHES = [np.random.default_rng(i).integers(0, SHAPE.vocabulary, (8, 10)) for i in range(2)]
DOUBLE = Options(dtype=torch.float64, clip=0.3, bucket=3000)

# (t, p, d, v, b); a vocabulary of 130 leaves the second of two ranks padding and two tokens
LAYOUTS = {
    2: [(2, 1, 1, 1, 4), (1, 2, 1, 1, 2), (1, 2, 1, 2, 4), (1, 1, 2, 1, 4)],
    4: [(2, 2, 1, 1, 4), (2, 2, 1, 2, 2), (2, 1, 2, 1, 4), (1, 2, 2, 1, 2), (1, 2, 2, 2, 2), (1, 4, 1, 1, 2), (4, 1, 1, 1, 8)],
    8: [(2, 2, 2, 1, 2), (2, 2, 2, 2, 2)],
}


@pytest.fixture(scope="module")
def pools():
    """Ranks by their number, kept for all tests."""
    with Ranks(2) as two, Ranks(4) as four, Ranks(8) as eight:
        yield {2: two, 4: four, 8: eight}


@pytest.fixture(scope="module")
def alone():
    """Losses and weights of two steps of the definition."""
    weights = {name: torch.from_numpy(each).requires_grad_() for name, each in initial_weights(SHAPE, 0).items()}
    losses = reference.train(weights, SHAPE, [torch.from_numpy(each) for each in BATCHES], 1e-3, clip=0.3)
    return losses, {name: each.detach().numpy() for name, each in weights.items()}


def layout(t, p, d, v, b):
    return Layout(tensor=t, pipeline=p, data=d, chunks=v, microbatch=b)


def same(found, wanted, tolerance=1e-9):
    losses, weights = found
    assert losses == pytest.approx(wanted[0], rel=tolerance)
    assert weights.keys() == wanted[1].keys()
    for name, want in wanted[1].items():
        assert np.abs(weights[name] - want).max() <= tolerance * np.abs(want).max(), name


def train(pool, *arguments, options=DOUBLE, shape=SHAPE):
    found = pool.run(ranks.losses, shape, layout(*arguments), 0, BATCHES, options)
    return found[-1][0], assemble([each for _, each in found], shape)


@pytest.mark.parametrize("size", LAYOUTS)
def test_every_layout_trains_as_one_process_does(size, pools, alone):
    """Losses and weights behind two clipped steps: every gradient, its norm over the grid, and what is tied."""
    for each in LAYOUTS[size]:
        same(train(pools[size], *each), alone)


@pytest.mark.parametrize(
    "options",
    [{"recompute": True}, {"scatter": False}, {"schedule": Kind.gpipe}, {"bucket": 1}],
    ids=str,
)
def test_options_change_nothing(options, pools, alone):
    same(train(pools[4], 2, 2, 1, 1, 4, options=dataclasses.replace(DOUBLE, **options)), alone)


def test_dropout_is_the_same_in_every_layout(pools):
    options = dataclasses.replace(DOUBLE, dropout=0.3)
    want = train(pools[2], 1, 1, 2, 1, 4, options=options)
    same(train(pools[4], 2, 2, 1, 2, 2, options=options), want)
    recomputed = dataclasses.replace(options, recompute=True)
    same(train(pools[2], 2, 1, 1, 1, 4, options=recomputed), want)
    assert want[0] != pytest.approx(train(pools[2], 1, 1, 2, 1, 4)[0], rel=1e-3)


@pytest.mark.parametrize("fault", [Fault.tied, Fault.replicas])
def test_a_sum_that_is_left_out_is_seen(fault, pools, alone):
    with pytest.raises(AssertionError):
        same(train(pools[4], 1, 2, 2, 1, 2, options=dataclasses.replace(DOUBLE, fault=fault)), alone)


def vocabulary(group: Group, table, tokens, logits, weight):
    """Embedding and loss that are split by the vocabulary, with their gradients by shard."""
    shard = torch.from_numpy(cut("embedding.weight", table, group.size, group.rank).copy()).requires_grad_()
    found = embed(tokens, shard, group)
    (by_shard,) = torch.autograd.grad(found.square().sum(), shard)
    mine = torch.from_numpy(np.split(logits, group.size, -1)[group.rank].copy()).requires_grad_()
    losses = cross_entropy(mine, tokens, len(table), group)
    (by_logit,) = torch.autograd.grad((losses * weight).sum(), mine)
    calls = {kind: count for (_, kind), count in group.traffic.calls.items()}
    return [each.detach().numpy() for each in (found, by_shard, losses, by_logit)], calls


@pytest.mark.parametrize("size", [2, 4])
def test_the_split_vocabulary(size, pools):
    rng = np.random.default_rng(0)
    table, tokens = rng.normal(size=(130, 6)), torch.from_numpy(rng.integers(0, 130, (2, 5)))
    padded = 128 * size * -(-130 // (128 * size))
    logits, weight = rng.normal(0, 50, (2, 5, padded)), torch.from_numpy(rng.normal(size=(2, 5)))
    found = pools[size].run(vocabulary, table, tokens, logits, weight)
    whole, z = torch.from_numpy(table).requires_grad_(), torch.from_numpy(logits).requires_grad_()
    want = torch.nn.functional.embedding(tokens, whole)
    want.square().sum().backward()
    losses = torch.nn.functional.cross_entropy(z[..., :130].flatten(0, 1), tokens.flatten(), reduction="none").view(2, 5)
    (losses * weight).sum().backward()
    for (embedded, _, loss, _), calls in found:
        np.testing.assert_allclose(embedded, want.detach(), rtol=0)
        np.testing.assert_allclose(loss, losses.detach(), rtol=1e-12)
        assert calls == {"all_reduce": 3}  # embedding, maximum, and the sum with the target: logits are never gathered
    np.testing.assert_allclose(np.concatenate([each[1] for each, _ in found])[:130], whole.grad, rtol=0)
    np.testing.assert_allclose(np.concatenate([each[3] for each, _ in found], -1), z.grad, atol=1e-14)


def test_bytes_of_the_first_stage_too(pools):
    """All of what t = 2 sends, embedding and loss included, against the closed forms."""
    b, s, h, l = 2, 9, SHAPE.width, SHAPE.depth
    found = pools[2].run(ranks.traffic, SHAPE, layout(2, 1, 1, 1, b), BATCHES[0], Options())
    ring = 2 * (2 - 1) / 2
    each = 4 * l * b * s * h + 2 * b * s * h + 3 * b * s  # layers; embedding and the logits' input; the loss
    for rank in found:
        assert rank["bytes"] == {("tp", "all_reduce"): ring * each * 4 * len(BATCHES[0]) / b}


def test_messages_are_gathered_within_the_node(pools):
    b, s, h, m = 2, 9, SHAPE.width, 4
    for scatter, share in ((True, 2), (False, 1)):
        found = pools[4].run(ranks.traffic, SHAPE, layout(2, 2, 1, 2, b), BATCHES[0], Options(scatter=scatter))
        for rank in found:
            # The first rank sends both its chunks' results and the gradient of its second; the last the mirror image.
            assert rank["bytes"]["pp", "exchange"] == 3 * m * b * s * h * 4 / share
            gathered = rank["bytes"].get(("tp", "all_gather"), 0)
            assert gathered == (3 * m * b * s * h * 4 / 2 if scatter else 0)


def test_the_trace_keeps_the_order_of_the_schedule(pools):
    found = pools[4].run(sleep, Kind.interleaved, 4, 2, 2e-3, 4e-3, 1)
    want = generate(Kind.interleaved, 4, 4, 2)
    ends = {}
    for rank, (_, trace) in enumerate(found):
        assert [passed.op for passed in trace] == want[rank]
        assert all(before.end <= after.start for before, after in pairwise(trace))
        ends |= {(passed.op.forward, passed.op.microbatch, passed.op.chunk * 4 + rank): passed for passed in trace}
    for (forward, microbatch, stage), passed in ends.items():
        before = ends.get((forward, microbatch, stage - 1 if forward else stage + 1))
        assert before is None or before.end <= passed.start


def random_schedule(rng, p, m, v):
    """Any order that respects what passes need: a random pass of those that could run, again and again."""
    ops = [[Op(forward, i, chunk) for forward in (True, False) for i in range(m) for chunk in range(v)] for _ in range(p)]
    found, done = [[] for _ in range(p)], set()
    while any(ops):
        ready = [(r, op) for r in range(p) for op in ops[r] if done.issuperset(needs(r, op, p, v))]
        rank, op = ready[rng.integers(len(ready))]
        ops[rank].remove(op)
        found[rank].append(op)
        done.add((rank, op))
    return found


def run_schedules(group: Group, schedules, m, v):
    """The gradients of this rank's chunks under each schedule."""
    x, target, found = torch.linspace(-1, 1, m * 64 * 64).view(m, 64, 64), torch.ones(m, 64, 64), []
    for schedule in schedules:
        modules = []
        for chunk in range(v):
            torch.manual_seed(chunk * group.size + group.rank)
            modules.append(peers.computing(64))
        last = group.rank == group.size - 1
        stages = [
            peers.Wrapped(module, list(x.split(1)), list(target.split(1)) if last and chunk == v - 1 else None)
            for chunk, module in enumerate(modules)
        ]
        losses = Pipeline(group, schedule, stages, ((1, 64, 64), torch.float32)).run()
        assert len(losses) == (m if last else 0)
        found.append([weight.grad for module in modules for weight in module.parameters()])
    return found


@pytest.mark.parametrize(("size", "m", "v"), [(2, 3, 1), (2, 4, 3), (4, 4, 2)])
def test_any_valid_schedule_runs(size, m, v, pools):
    rng = np.random.default_rng(0)
    schedules = [generate(Kind.interleaved if v > 1 else Kind.one_f_one_b, size, m, v)]
    schedules += [random_schedule(rng, size, m, v) for _ in range(6)]
    assert {validate(each, v) for each in schedules} == {m}
    for want, *others in pools[size].run(run_schedules, schedules, m, v):
        for found in others:
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(found, want, strict=True))


def wrong_grid(group: Group, tensor):
    Trainer(group, SHAPE, Layout(tensor=tensor, data=2), initial_weights(SHAPE, 0), Options())


def test_another_number_of_ranks_is_refused(pools):
    with Ranks(2) as two, pytest.raises(RankError, match="2 ranks for tensor=2 x pipeline=1 x data=2 = 4"):
        two.run(wrong_grid, 2)


@pytest.mark.slow
def test_fifty_steps_in_float32_follow_one_process(pools):
    shape = dataclasses.replace(SHAPE, depth=4)
    batches = [np.random.default_rng(i).integers(0, 130, (8, 10)) for i in range(50)]
    options = Options(clip=1.0)
    found = pools[8].run(ranks.losses, shape, layout(2, 2, 2, 2, 2), 0, batches, options)[0][0]
    weights = {name: torch.from_numpy(each).float().requires_grad_() for name, each in initial_weights(shape, 0).items()}
    want = reference.train(weights, shape, [torch.from_numpy(each) for each in batches], 1e-3)
    np.testing.assert_allclose(found, want, rtol=1e-4)
