"""Schedules, shards, the door and the models of time, in one process; the processes are in the other files."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from common import UserError
from common.command_line import main
from common.distributed import Group, Traffic, alone
from common.events import Task, schedule
from papers.megatron_lm import cost, cost_jax, cost_torch, plan, published, reference
from papers.megatron_lm.checkpoint import load, save
from papers.megatron_lm.config import PRESETS, Config
from papers.megatron_lm.engine import Pipeline
from papers.megatron_lm.layers_torch import cross_entropy
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.model_torch import Masks, Stage
from papers.megatron_lm.modelled import draw, loop
from papers.megatron_lm.schedule import Kind, Op, generate, most_in_flight, needs, validate
from papers.megatron_lm.shape import Shape, axis_of, cut, initial_weights, join
from papers.megatron_lm.simulator import bubble, simulate
from papers.megatron_lm.trainer import Options, Trainer

pytestmark = pytest.mark.xdist_group("megatron_lm")

SMALL = Shape(vocabulary=130, width=16, depth=4, heads=4, context=12)
TOKENS = np.random.default_rng(0).integers(0, SMALL.vocabulary, (4, 13))


def world():
    return Group("world", 0, range(1), None, Traffic(1))


def words(ops):
    return " ".join(map(str, ops))


# Schedules


def test_orders_that_can_be_checked_by_hand():
    assert [words(ops) for ops in generate(Kind.one_f_one_b, 2, 3)] == [
        "F0.0 F1.0 B0.0 F2.0 B1.0 B2.0",
        "F0.0 B0.0 F1.0 B1.0 F2.0 B2.0",
    ]
    assert words(generate(Kind.gpipe, 2, 2)[1]) == "F0.0 F1.0 B0.0 B1.0"
    first, last = generate(Kind.interleaved, 2, 2, 2)
    assert words(first) == "F0.0 F1.0 F0.1 F1.1 B0.1 B1.1 B0.0 B1.0"
    assert words(last) == "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 B0.0 B1.0"


cases = st.tuples(st.sampled_from(list(Kind)), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)).map(
    lambda x: (x[0], x[1], x[1] * x[2], x[3] if x[0] is Kind.interleaved and x[1] > 1 else 1)
)


@given(cases, st.floats(0.1, 3), st.floats(0.1, 3), st.sampled_from([0.0, 0.3]))
def test_every_schedule_is_whole_and_runs_as_list_scheduling_says(case, forward, backward, latency):
    """The oracle knows tasks and resources only; messages are tasks on links without end."""
    kind, p, m, v = case
    found = generate(kind, p, m, v)
    assert validate(found, v) == m
    tasks = []
    for rank, ops in enumerate(found):
        for op in ops:
            after = []
            for other, which in needs(rank, op, p, v):
                source = f"{other} {which}"
                if other != rank:
                    tasks.append(Task(f"{source} to {rank}", f"link {source} {rank}", latency, (source,)))
                    source = f"{source} to {rank}"
                after.append(source)
            tasks.append(Task(f"{rank} {op}", f"rank {rank}", (forward if op.forward else backward) / v, tuple(after)))
    want = schedule(tasks)
    got = simulate(found, v, forward, backward, latency)
    assert got.finish == pytest.approx(want.finish, rel=1e-12)
    starts = sorted(span.start for span in want.spans if span.resource.startswith("rank"))
    np.testing.assert_allclose(sorted(span.start for span in got.spans), starts, atol=1e-9)
    if not latency:
        assert bubble(got) == pytest.approx((p - 1) / (v * m), abs=1e-9)


@given(cases)
def test_activations_in_flight(case):
    kind, p, m, v = case
    found = [most_in_flight(generate(kind, p, m, v), rank) for rank in range(p)]
    if kind is Kind.gpipe:
        assert found == [m] * p
    elif v == 1:
        assert found == [min(p - rank, m) for rank in range(p)]
    else:
        assert found == [min(2 * (p - rank - 1) + (v - 1) * p + 1, m * v) for rank in range(p)]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda s: s[0].remove(Op(False, 1, 0)), "rank 0: B1.0 is missing"),
        (lambda s: s[1].append(s[1][-1]), "stands twice"),
        (lambda s: s[1].reverse(), "comes after its own backward"),
        (
            lambda s: s[0].sort(key=lambda op: (op.microbatch, not op.forward)) or s[1].sort(key=lambda op: -op.microbatch),
            "circle",
        ),
        (lambda s: s[0].append(Op(True, 9, 0)), "differ"),
    ],
)
def test_broken_schedules_are_refused(spoil, match):
    broken = generate(Kind.one_f_one_b, 2, 3)
    spoil(broken)
    with pytest.raises(ValueError, match=match):
        validate(broken)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((Kind.interleaved, 4, 6, 2), "multiples of the ranks, got 6 for 4"),
        ((Kind.interleaved, 1, 4, 2), "2 chunks on one rank"),
        ((Kind.gpipe, 4, 4, 2), "gpipe has one chunk on a rank, got 2"),
        ((Kind.gpipe, 0, 4, 1), "0 ranks, 4 microbatches"),
    ],
)
def test_impossible_schedules_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        generate(*arguments)


# Layouts and shards


@pytest.mark.parametrize(
    ("layout", "world", "match"),
    [
        ({"pipeline": 3}, 3, "4 layers cannot be split into pipeline=3 x chunks=1"),
        ({"pipeline": 2, "chunks": 3}, 2, "pipeline=2 x chunks=3"),
        ({"tensor": 3}, 3, "4 heads cannot be split over tensor=3"),
        ({"tensor": 2, "data": 2}, 2, "2 ranks for tensor=2 x pipeline=1 x data=2 = 4"),
    ],
)
def test_models_that_do_not_divide_are_refused(layout, world, match):
    with pytest.raises(ValueError, match=match):
        Layout(**layout).check(SMALL, world)


def test_impossible_layouts_and_batches_are_refused():
    with pytest.raises(ValueError, match="2 chunks with pipeline=1"):
        Layout(chunks=2)
    with pytest.raises(ValueError, match="data is 0"):
        Layout(data=0)
    with pytest.raises(ValueError, match=r"batch of 6 .* data=2 .* multiple of 4"):
        Layout(data=2, microbatch=2).microbatches(6)
    with pytest.raises(ValueError, match="3 microbatches on 2 pipeline ranks with 2 chunks"):
        Layout(pipeline=2, chunks=2).microbatches(3)
    with pytest.raises(ValueError, match="3 does not divide 16"):
        dataclasses.replace(SMALL, heads=3)
    with pytest.raises(ValueError, match="depth is 0"):
        dataclasses.replace(SMALL, depth=0)


@given(st.integers(1, 4), st.integers(1, 300))
def test_shards_make_up_the_whole(tensor, vocabulary):
    shape = Shape(vocabulary=vocabulary, width=12, depth=1, heads=12, context=3)
    for name, whole in initial_weights(shape, 0).items():
        shards = [cut(name, whole, tensor, rank) for rank in range(tensor)]
        assert len({shard.shape for shard in shards}) == 1
        np.testing.assert_array_equal(join(name, shards, vocabulary), whole)
        if name == "embedding.weight":
            assert shards[0].shape[0] * tensor == shape.padded(tensor) and shape.padded(tensor) % (128 * tensor) == 0


@pytest.mark.parametrize(("tensor", "pipeline", "chunks"), [(1, 1, 1), (4, 1, 1), (2, 2, 2), (1, 4, 1)])
def test_stages_hold_the_model_once(tensor, pipeline, chunks):
    """Numbers of all ranks' shards, what is held twice counted once, are those of the model; built without memory."""
    layout = Layout(tensor=tensor, pipeline=pipeline, chunks=chunks)
    found = {}
    for stage in range(layout.stages):
        for name, weight in Stage(SMALL, layout, stage, alone(tensor), device="meta").named_parameters():
            found[name] = weight.numel() * (tensor if axis_of(name) is not None else 1)
    whole = {name: int(np.prod(size)) for name, size in SMALL.parts().items()}
    whole["embedding.weight"] = SMALL.padded(tensor) * SMALL.width
    assert found == whole


# One process


def test_one_rank_equals_the_definition(tmp_path):
    weights = initial_weights(SMALL, 0)
    trainer = Trainer(world(), SMALL, Layout(), weights, Options(dtype=torch.float64, clip=0.3))
    tensors = {name: torch.from_numpy(each.copy()).requires_grad_() for name, each in weights.items()}
    want = reference.train(tensors, SMALL, [torch.from_numpy(TOKENS)] * 3, 1e-3, clip=0.3)
    assert [trainer.step(TOKENS, i) for i in range(3)] == pytest.approx(want, rel=1e-12)
    for name, weight in trainer.parameters():
        assert torch.allclose(weight[: len(tensors[name])], tensors[name], rtol=0, atol=1e-10), name


@pytest.mark.slow  # torch.optim loads the compiler
def test_the_definition_trains_as_torch_does():
    """AdamW and clipping of the definition against torch's classes."""
    weights = {name: torch.from_numpy(each).requires_grad_() for name, each in initial_weights(SMALL, 0).items()}
    copies = {name: each.detach().clone().requires_grad_() for name, each in weights.items()}
    batches = [torch.from_numpy(np.roll(TOKENS, i, 1)) for i in range(3)]
    got = reference.train(weights, SMALL, batches, 1e-3, 0.1, 0.3)
    decayed = [each for name, each in copies.items() if each.dim() > 1 and "bias" not in name]
    rest = [each for name, each in copies.items() if each.dim() == 1 or "bias" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    want = []
    for tokens in batches:
        optimizer.zero_grad()
        loss = reference.loss(copies, SMALL, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(copies.values()), 0.3)
        optimizer.step()
        want.append(loss.item())
    assert got == pytest.approx(want, rel=1e-12)
    assert all(torch.allclose(weights[name], copies[name], rtol=0, atol=1e-12) for name in weights)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_cross_entropy_without_padding_is_torchs(scale):
    logits = (torch.randn(2, 5, 16, dtype=torch.float64) * scale).requires_grad_()
    targets = torch.randint(0, 11, (2, 5))
    got = cross_entropy(logits, targets, 11, alone())
    want = F.cross_entropy(logits[..., :11].flatten(0, 1), targets.flatten(), reduction="none").view(2, 5)
    assert torch.allclose(got, want, rtol=1e-12)
    weight = torch.randn(2, 5, dtype=torch.float64)
    (a,), (b,) = (torch.autograd.grad((each * weight).sum(), logits) for each in (got, want))
    assert torch.allclose(a, b, atol=1e-14) and (a[..., 11:] == 0).all()


def test_dropout_masks_follow_from_what_is_dropped_alone():
    device = torch.device("cpu")
    x = torch.ones(3, 8, 16)
    both = Masks(0.5, 1, 4, 3, device).drop(x, "0 attention")
    assert torch.equal(both[1:], Masks(0.5, 1, 5, 2, device).drop(x[1:], "0 attention"))
    assert not torch.equal(both, Masks(0.5, 2, 4, 3, device).drop(x, "0 attention"))
    assert set(both.unique().tolist()) == {0.0, 2.0}
    heads = torch.ones(1, 4, 8, 8)
    whole = Masks(0.5, 1, 0, 1, device).drop_heads(heads, 2, 0)
    second = Masks(0.5, 1, 0, 1, device).drop_heads(heads[:, :2], 2, 2)
    assert torch.equal(whole[:, 2:], second) and not torch.equal(whole[:, :2], second)


@pytest.mark.parametrize("damage", ["flip", "missing", "model", "manifest"])
def test_damaged_checkpoints_are_refused(tmp_path, damage):
    trainer = Trainer(world(), SMALL, Layout(), initial_weights(SMALL, 0), Options())
    assert load(tmp_path, trainer) == 0
    trainer.step(TOKENS[:2])
    save(tmp_path, trainer, 1)
    (file,) = tmp_path.glob("step-*/*")
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (tmp_path / "latest.json").write_text("{")
    shape = dataclasses.replace(SMALL, context=13) if damage == "model" else SMALL
    with pytest.raises(UserError, match=r"damaged|is of the model"):
        load(tmp_path, Trainer(world(), shape, Layout(), None, Options()))


def test_a_message_that_cannot_be_scattered_is_refused():
    with pytest.raises(ValueError, match="15 numbers cannot be scattered over 2"):
        Pipeline(world(), generate(Kind.gpipe, 1, 1), [], ((3, 5), torch.float32), alone(2))


def test_sequences_beyond_the_positions_are_refused():
    trainer = Trainer(world(), SMALL, Layout(), initial_weights(SMALL, 0), Options())
    with pytest.raises(ValueError, match="sequences of 29 tokens; the model has 12"):
        inspect.unwrap(trainer.passes.__func__)(trainer, np.zeros((2, 30), np.int64))


# Models of time


def test_the_closed_form_on_a_case_by_hand():
    """One layer, h = s = V = 1, everything 1: 2 microbatches on t = p = 1, d = 2."""
    shape = Shape(vocabulary=1, width=1, depth=1, heads=1, context=1)
    machine = cost.Machine(rate=10.0, nvlink=4.0, network=1.0, node=8, memory=100.0)
    found = cost.predict(cost.Plain, shape, 4, cost.Plan(1, 1, 2, 1, 1), machine)
    assert found.compute == pytest.approx(2 * (96 + 16 + 6) / 10)
    assert (found.tensor, found.pipeline, found.bubble) == (0, 0, 0)
    assert found.data == pytest.approx(2 * 0.5 * 2 * shape.parameters() / 4)
    assert found.seconds == found.compute + found.data
    split = cost.predict(cost.Plain, shape, 4, cost.Plan(2, 2, 1, 1, 1), machine)
    assert split.tensor == pytest.approx(4 * 0.5 * 12 * 2 * 0.5 / 4)
    assert split.pipeline == pytest.approx(4 * 2 * 2 / 2 / 4)
    assert split.bubble == pytest.approx((split.compute + split.tensor + split.pipeline) / 4)


def test_all_backends_of_the_closed_form_agree():
    row, machine = published.TABLE["76.1B"], cost.a100()
    plans = draw(64, 1)
    want = [np.array(each) for each in zip(*loop(row.shape, row.batch, plans, machine), strict=True)]
    with jax.enable_x64(True):
        for found in (
            cost.predict(np, row.shape, row.batch, plans, machine),
            cost_torch.predict(row.shape, row.batch, plans, machine),
            cost_jax.predict(row.shape, row.batch, plans, machine),
        ):
            for got, each in zip(found, want, strict=True):
                np.testing.assert_allclose(np.asarray(got), each, rtol=1e-12)


def test_the_share_is_what_the_first_row_says():
    assert pytest.approx(cost.fitted_share(), abs=1e-4) == published.SHARE


def test_search_finds_what_brute_force_finds():
    shape, machine = published.TABLE["7.5B"].shape, cost.a100()
    found = plan.search(shape, 16, 64, machine, most=3)
    every = []
    for t in range(1, 17):
        for p in range(1, 17):
            for v in (1, 2, 3, 4):
                for b in (1, 2, 4, 8):
                    try:
                        layout = Layout(tensor=t, pipeline=p, data=max(1, 16 // (t * p)), chunks=v, microbatch=b)
                        layout.check(shape, 16)
                        layout.microbatches(64)
                    except ValueError:
                        continue
                    each = cost.predict(cost.Plain, shape, 64, cost.Plan(t, p, layout.data, v, b), machine)
                    if each.memory <= machine.memory:
                        every.append((each.seconds, layout))
    every.sort(key=lambda each: each[0])
    assert [choice.layout for choice in found] == [layout for _, layout in every[:3]]
    assert [choice.seconds for choice in found] == pytest.approx([seconds for seconds, _ in every[:3]])


def test_search_refuses_what_cannot_be():
    machine = cost.a100()
    with pytest.raises(UserError, match="the leanest needs"):
        plan.search(published.TABLE["1008.0B"].shape, 64, 64, machine)
    with pytest.raises(UserError, match="no layout on 7 GPUs"):
        plan.search(published.TABLE["1.7B"].shape, 7, 512, machine)
    with pytest.raises(ValueError, match="0 GPUs"):
        plan.search(published.TABLE["1.7B"].shape, 0, 512, machine)


# The command line


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"heads": 3}, "3 does not divide"),
        ({"depth": 6}, "pipeline=2 x chunks=2"),
        ({"pipeline": 1}, "wanted 2 or more"),
        ({"forward_ms": 0.0}, "positive times"),
        ({"batch": 10}, "5 microbatches on 2 pipeline ranks"),
        ({"steps": 0}, "1 or more"),
    ],
)
def test_impossible_options_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        Config(**change)


@pytest.mark.parametrize("words", [["preset=paper"], ["preset=smoke", "row=2B"]])
def test_the_papers_scale_is_refused_in_one_sentence(words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRODUCTION_OUTPUTS", str(tmp_path))
    assert main("megatron_lm", words) == 2
    assert ("torchrun" if words[0] == "preset=paper" else "table 1 has") in capsys.readouterr().err


def test_presets_are_valid():
    assert all(dataclasses.replace(preset) == preset for preset in PRESETS.values())
