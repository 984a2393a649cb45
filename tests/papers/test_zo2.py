"""The method: MeZO is a gradient estimate, streaming equals it in every mode, the models of memory and time are right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.command_line import main
from common.models.transformer_torch import TransformerLM
from common.models.weights import initial_weights
from common.offload import Arena, FileTier, OutOfBudget, Pool
from papers.zo2 import memory_model, published, simulate
from papers.zo2.config import PRESETS, Schedule
from papers.zo2.exact import shape, streamed
from papers.zo2.mezo_torch import MeZO, next_token_loss
from papers.zo2.noise_torch import Counted, Threaded
from papers.zo2.reproduce import throughput
from papers.zo2.rule import Rule
from papers.zo2.tiers import HostTier, StoredTier
from papers.zo2.units import units
from papers.zo2.zo2_torch import ZO2

pytestmark = pytest.mark.xdist_group("zo2")

SHAPE = shape(32, 4, 16)
RULE = Rule(1e-3, 1e-3, 0.1)
BATCHES = [torch.from_numpy(np.random.default_rng(i).integers(0, 256, (2, 17))) for i in range(3)]


def _plain(architecture=SHAPE, noise=None, dtype=torch.float32):
    mezo = MeZO(TransformerLM(architecture, seed=1, dtype=dtype), RULE, noise)
    return [mezo.step(batch, 50 + i) for i, batch in enumerate(BATCHES)], mezo.weights()


def _streamed(architecture=SHAPE, dtype=torch.float32, **options):
    engine = streamed(architecture, RULE, dtype=dtype, **options)
    engine.load_model(TransformerLM(architecture, seed=1, dtype=dtype))
    losses = [engine.step(batch, 50 + i) for i, batch in enumerate(BATCHES)]
    weights = engine.weights()
    engine.close()
    return losses, weights


def _assert_same(got, want):
    assert got[0] == want[0]
    assert all(torch.equal(got[1][name], want[1][name]) for name in want[1])


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": False},
        {"bucket": False},
        {"bucket": False, "overlap": False},
        {"schedule": Schedule.eager},
        {"schedule": Schedule.two},
        {"schedule": Schedule.three},
        {"offloaded": [1, 3]},
        {"offloaded": [2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("noise", [Counted, Threaded])
def test_every_mode_equals_mezo_bit_by_bit(noise, options):
    _assert_same(_streamed(noise=noise(), **options), _plain(noise=noise()))


@pytest.mark.parametrize(
    "change",
    [{"tied": False}, {"positions": "learned", "norm": "layer", "feed_forward": "gelu"}, {"depth": 1}, {"depth": 2}],
    ids=str,
)
def test_other_decoders(change):
    architecture = dataclasses.replace(SHAPE, **change)
    _assert_same(_streamed(architecture, noise=Threaded()), _plain(architecture, Threaded()))


def test_files_equal_memory(tmp_path):
    _assert_same(_streamed(stored=tmp_path), _plain())


def test_numbers_of_the_units_are_those_of_the_model():
    for change in ({}, {"tied": False, "positions": "learned", "norm": "layer"}):
        architecture = dataclasses.replace(SHAPE, **change)
        cut = [each for unit in units(architecture) for each in unit.parameters]
        named = list(TransformerLM(architecture).named_parameters())
        assert [each.name for each in cut] == [name for name, _ in named]
        assert [each.index for each in cut] == list(range(len(named)))
        assert [each.shape for each in cut] == [tuple(p.shape) for _, p in named]
    assert [each.name for each in units(SHAPE).tail.parameters if not each.decays] == ["norm.weight"]


def test_the_mean_of_g_z_is_the_gradient():
    """200 weights: the cosine of the mean over many seeds with autograd's gradient."""
    torch.manual_seed(0)
    x, y, weight = torch.randn(40, 20), torch.randn(40, 10), torch.randn(10, 20, requires_grad=True)

    def loss(w):
        return ((x @ w.T - y) ** 2).mean()

    (want,) = torch.autograd.grad(loss(weight), weight)
    rule, total = Rule(epsilon=1e-3), torch.zeros(10, 20)
    from papers.zo2.kernel import gaussian

    for seed in range(3000):
        z = gaussian(weight, seed=seed)
        plus, minus = (loss(weight.detach() + sign * rule.epsilon * z).item() for sign in (1, -1))
        total += rule.gradient(plus, minus) * z
    assert torch.cosine_similarity(total.flatten(), want.flatten(), dim=0) > 0.9


def test_jax_plain_and_streamed_agree():
    from papers.zo2 import mezo_jax, zo2_jax

    with jax.enable_x64(True):
        weights, data = initial_weights(SHAPE, 1), [batch.numpy() for batch in BATCHES]
        plain, engine = mezo_jax.MeZO(SHAPE, weights, RULE, jnp.float64), zo2_jax.ZO2(SHAPE, weights, RULE, dtype=jnp.float64)
        for i, batch in enumerate(data):
            assert plain.step(batch, i) == pytest.approx(engine.step(batch, i), rel=1e-10)
        assert {block.sharding.memory_kind for block in engine.blocks} == {"pinned_host"}
        assert engine.trace.counts() == {"upload": 12, "offload": 12}
        want, got = plain.weights(), engine.weights()
        assert all(np.abs(want[name] - got[name]).max() < 1e-9 for name in want)
        held_out = engine.evaluate(data[0])
        model = TransformerLM(SHAPE, dtype=torch.float64)
        model.load_state_dict({name: torch.from_numpy(np.array(each)) for name, each in got.items()}, strict=False)
        with torch.no_grad():
            assert held_out == pytest.approx(next_token_loss(model(BATCHES[0][:, :-1]), BATCHES[0][:, 1:]).item(), rel=1e-10)


def test_amp_stays_close():
    plain = _plain()[0]
    for wire, allowed in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        for bucket in (True, False):
            np.testing.assert_allclose(_streamed(wire=wire, bucket=bucket)[0], plain, rtol=allowed)


def test_evaluation_flushes_first():
    engine = streamed(SHAPE, RULE)
    engine.load_model(TransformerLM(SHAPE, seed=1))
    engine.step(BATCHES[0], 50)
    lagging = engine.weights(flush=False)
    loss = engine.evaluate(BATCHES[1])
    assert engine.pending is None
    model = TransformerLM(SHAPE)
    model.load_state_dict(engine.weights(), strict=False)
    with torch.no_grad():
        assert loss == next_token_loss(model(BATCHES[1][:, :-1]), BATCHES[1][:, 1:]).item()
    assert not torch.equal(lagging["norm.weight"], engine.weights()["norm.weight"])
    engine.close()


def test_a_small_arena_is_refused_with_what_it_needs():
    size = units(SHAPE).blocks[0].count * 4
    tier = HostTier(Pool(SHAPE.depth * (size + 64)), SHAPE.depth, size)
    with pytest.raises(OutOfBudget, match=r"'the resident weights and 3 blocks' needs [\d,]+ bytes; 100,000 of its 100,000"):
        ZO2(SHAPE, tier, Arena(100_000), RULE)
    with pytest.raises(OutOfBudget, match="pool"):
        HostTier(Pool(size * 2), SHAPE.depth, size)
    with pytest.raises(ValueError, match="offloaded blocks are"):
        ZO2(SHAPE, tier, Arena(10**6), RULE, offloaded=[4])


@pytest.mark.parametrize("numbers", [{"epsilon": 0.0}, {"rate": float("nan")}, {"rate": -1.0}, {"decay": float("inf")}])
def test_bad_rules(numbers):
    with pytest.raises(ValueError, match="wanted a"):
        Rule(**numbers)


@pytest.mark.parametrize("option", ["epsilon=0", "rate=-1", "copy_share=2", "check_depth=2", "check_width=50"])
def test_bad_options_are_one_sentence(option, capfd):
    assert main("zo2", ["preset=smoke", option]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_shared_blocks_are_refused():
    model = TransformerLM(SHAPE)
    model.blocks[2].feed_forward.down = model.blocks[0].feed_forward.down
    engine = streamed(SHAPE, RULE)
    with pytest.raises(
        ValueError, match=r"blocks.0.feed_forward.down.weight and blocks.2.feed_forward.down.weight are one tensor"
    ):
        engine.load_model(model)
    engine.close()


@pytest.mark.parametrize("schedule", [Schedule.zo2, Schedule.two, Schedule.three])
def test_a_loss_that_is_not_finite_stops_without_an_update(schedule, monkeypatch):
    engine = streamed(SHAPE, RULE, schedule=schedule)
    engine.load_model(TransformerLM(SHAPE, seed=1))
    engine.step(BATCHES[0], 50)
    engine.flush()
    before = engine.weights()
    import papers.zo2.zo2_torch as module

    monkeypatch.setattr(module, "next_token_loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="as before the step"):
        engine.step(BATCHES[1], 51)
    after = engine.weights()
    assert all((after[name] - before[name]).abs().max() < 1e-6 for name in before), "restored up to the rounding of the shifts"
    engine.close()


def test_saving_needs_files():
    engine = streamed(SHAPE, RULE)
    with pytest.raises(TypeError, match="StoredTier"):
        engine.save()
    engine.close()


def test_staging_is_all_the_memory_that_files_take(tmp_path):
    size = units(SHAPE).blocks[0].count * 4
    with pytest.raises(OutOfBudget, match="4 x staging"):
        StoredTier(Pool(3 * size), FileTier(tmp_path), SHAPE.depth, size)


def test_opt_shapes():
    assert memory_model.opt_parameters("175B") == 174_604_468_224
    assert memory_model.opt_parameters("1.3B") == 1_315_758_080  # as the model card's checkpoint counts
    by_parts = memory_model.opt_gigabytes("13B")
    assert by_parts["blocks"] == pytest.approx(3 * 24 * 5120**2 / 1e9, rel=1e-3)
    assert sum(memory_model.opt_gigabytes("175B", offload=False).values()) > 350


@pytest.mark.parametrize("seed", range(3))
def test_recurrence_is_the_event_simulation(seed):
    simpy = pytest.importorskip("simpy")
    rng = np.random.default_rng(seed)
    blocks = int(rng.integers(1, 12))
    step = simulate.Step(*rng.uniform(0.1, 2.0, 5))
    environment = simpy.Environment()
    link_up, link_down, gpu = (simpy.Resource(environment) for _ in range(3))
    slots, arrived = simpy.Resource(environment, memory_model.SLOTS), [environment.event() for _ in range(blocks)]
    computed, held = [environment.event() for _ in range(blocks)], {}

    def upload():
        for i in range(blocks):
            held[i] = slots.request()
            yield held[i]
            with link_up.request() as link:
                yield link
                yield environment.timeout(step.up)
            arrived[i].succeed()

    def compute():
        with gpu.request() as core:
            yield core
            yield environment.timeout(step.first)
            for i in range(blocks):
                yield arrived[i]
                yield environment.timeout(step.compute)
                computed[i].succeed()
            yield environment.timeout(step.tail)

    def offload():
        for i in range(blocks):
            yield computed[i]
            with link_down.request() as link:
                yield link
                yield environment.timeout(step.down)
            slots.release(held[i])

    for process in (upload, compute, offload):
        environment.process(process())
    environment.run()
    assert environment.now == pytest.approx(simulate.pipelined(step, blocks))


def test_recurrence_in_both_frameworks_and_its_law():
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0.1, 2, (5, 20))
    want = simulate.pipelined(simulate.Step(*drawn), 9)
    torch_step = simulate.Step(*torch.from_numpy(drawn))
    np.testing.assert_allclose(simulate.pipelined(torch_step, 9, torch.maximum), want)
    np.testing.assert_allclose(simulate.pipelined_scan(simulate.Step(*jnp.asarray(drawn)), 9), want, rtol=1e-5)
    # Steady state: the slowest of the three sets the pace.
    long, longer = (simulate.pipelined(simulate.Step(*drawn), n) for n in (50, 51))
    np.testing.assert_allclose(longer - long, drawn[1:4].max(0))
    assert (simulate.serial(simulate.Step(*drawn), 9) >= want - 1e-12).all()


def test_the_paper_preset_is_an_opt_model():
    assert PRESETS["paper"].opt in published.OPT
    assert throughput(dataclasses.replace(SHAPE, feed_forward="gelu", norm="layer"), "cpu", "float32") > 0
