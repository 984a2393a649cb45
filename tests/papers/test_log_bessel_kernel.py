"""log-Bessel: point by point against 40 digits, identities, branches, gradients, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from papers.log_bessel import atlas
from papers.log_bessel.kernel import BRANCHES, bessel_ratio, cases, log_bessel_i, log_bessel_k, which_branch

pytestmark = pytest.mark.xdist_group("log_bessel")

WAYS = ("masked", "compacted", "compiled")
LOGS = {"log_i": log_bessel_i, "log_k": log_bessel_k}


@functools.cache
def values():
    return atlas.load()


def tensors(*names):
    return [torch.from_numpy(values()[name]) for name in names]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# Values.


@pytest.mark.parametrize("way", [*({"variant": variant} for variant in WAYS), {"backend": "triton"}], ids=str)
@pytest.mark.parametrize("name", LOGS)
def test_logarithms_are_right_to_rounding_at_every_point(name, way):
    got = LOGS[name](*tensors("order", "x"), **way).numpy()
    found = atlas.errors(got, values()[name])
    assert np.median(found) <= 5e-16
    assert np.quantile(found, 0.999) <= 1e-12
    assert found.max() <= 3e-12


@pytest.mark.parametrize("name", LOGS)
def test_each_branch_alone_is_right_where_it_is_taken(name):
    chosen = which_branch(values()["order"], values()["x"])
    assert np.bincount(chosen, minlength=len(BRANCHES)).min() >= 50
    for index, branch in enumerate(BRANCHES):
        mine = chosen == index
        order, x = (each[torch.from_numpy(mine)] for each in tensors("order", "x"))
        found = atlas.errors(LOGS[name](order, x, branch=branch).numpy(), values()[name][mine])
        assert np.median(found) <= 5e-16
        assert found.max() <= 1e-12, branch


@pytest.mark.parametrize("variant", WAYS)
def test_ratio_keeps_the_digits_that_a_difference_of_logarithms_loses(variant):
    order, x = tensors("order", "x")
    want = values()["ratio_i"]
    got = bessel_ratio(order, x, variant=variant).numpy()
    assert (np.abs(got - want) / want).max() <= 4e-15
    naive = torch.exp(log_bessel_i(order + 1, x) - log_bessel_i(order, x)).numpy()
    assert (np.abs(naive - want) / want).max() > 1e-11


def test_values_of_known_places():
    assert log_bessel_i(16383.0, torch.tensor(100.0, dtype=torch.float64)).item() == pytest.approx(-78512.56911636411, rel=1e-15)
    assert log_bessel_i(torch.tensor(0.0), 0.0).item() == 0
    assert log_bessel_i(torch.tensor(2.0), 0.0).item() == -np.inf
    assert log_bessel_k(torch.tensor(0.0), 0.0).item() == np.inf
    assert log_bessel_i(torch.tensor(3.0), float("inf")).item() == np.inf
    assert bessel_ratio(torch.tensor(3.0), 0.0).item() == 0


@pytest.mark.parametrize("variant", WAYS)
def test_nothing_leaves_the_range_of_floating_point(variant):
    rng = np.random.default_rng(5)
    order, x = torch.from_numpy(10 ** rng.uniform(-8, 5, 5000)), torch.from_numpy(10 ** rng.uniform(-6, 6, 5000))
    for function in (log_bessel_i, log_bessel_k, bessel_ratio):
        assert torch.isfinite(function(order, x, variant=variant)).all()
    order = torch.tensor([1e3, 0.2, 1e300, 1e160, 1e-300], dtype=torch.float64)
    far = torch.tensor([1e200, 1e307, 1e-3, 1e160, 1e-300], dtype=torch.float64)
    for function in (log_bessel_i, log_bessel_k):
        assert torch.isfinite(function(order, far, variant=variant)).all()


# Identities.


def test_half_integer_orders_are_elementary():
    # Temme's series for K cancels up to 60-fold just below x = 2: the loosest place of all.
    x, near = torch.from_numpy(np.geomspace(1e-2, 1e5, 400)), {"rtol": 2e-14, "atol": 2e-14}
    log_x = 0.5 * torch.log(np.pi / (2 * x))
    torch.testing.assert_close(log_bessel_k(0.5, x), log_x - x, **near)
    torch.testing.assert_close(log_bessel_k(1.5, x), log_x - x + torch.log1p(1 / x), **near)
    torch.testing.assert_close(
        log_bessel_i(0.5, x), x + torch.log(-torch.expm1(-2 * x)) - 0.5 * torch.log(2 * np.pi * x), rtol=3e-15, atol=3e-15
    )
    # I_(3/2) / I_(1/2) = coth x - 1 / x, which cancels for small x
    far = x[x > 1]
    torch.testing.assert_close(bessel_ratio(0.5, far), 1 / torch.tanh(far) - 1 / far, rtol=2e-15, atol=0)


def test_wronskian_and_recurrences():
    order, x = tensors("order", "x")
    size = torch.maximum(order, x) * torch.clamp(torch.log(order + 1) - torch.log(x), min=1) + 10
    wronskian = torch.logaddexp(
        log_bessel_i(order, x) + log_bessel_k(order + 1, x), log_bessel_i(order + 1, x) + log_bessel_k(order, x)
    )
    assert ((wronskian + torch.log(x)).abs() / size).max() <= 1e-14
    upwards = torch.logaddexp(log_bessel_k(order, x), torch.log(2 * (order + 1) / x) + log_bessel_k(order + 1, x))
    assert ((upwards - log_bessel_k(order + 2, x)).abs() / size).max() <= 1e-14
    # 1 / R_v = 2 (v + 1) / x + R_(v+1)
    torch.testing.assert_close(1 / bessel_ratio(order, x), 2 * (order + 1) / x + bessel_ratio(order + 1, x), rtol=5e-15, atol=0)


# Branches.


def taken(v, x):
    """The thresholds, as one reads them."""
    if x > 1400 and v < 3.05:
        return "mu_3"
    if x > 30 and v < 15.3919:
        return "mu_20"
    if (x > 274.2377 and v > 0.3) or v > 163.6993:
        return "u_4"
    if (x > 84.4153 and v > 0.46) or v > 56.9971:
        return "u_6"
    if (x > 35.9074 and v > 0.6) or v > 20.1534:
        return "u_9"
    if (x > 19.6931 and v > 0.7) or v > 12.6964:
        return "u_13"
    return "fallback"


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, jnp.asarray])
def test_which_branch_is_the_thresholds(convert, double):
    order, x = values()["order"], values()["x"]
    got = np.asarray(which_branch(convert(order), convert(x)))
    assert [BRANCHES[index] for index in got] == [taken(*pair) for pair in zip(order.tolist(), x.tolist(), strict=True)]


@pytest.mark.parametrize("name", LOGS)
def test_branches_agree_across_each_border(name):
    order, x = cases.borders()
    chosen = which_branch(order, x)
    crossed = set()
    for below, above in zip(range(0, len(order), 2), range(1, len(order), 2), strict=True):
        sides = {BRANCHES[chosen[below]], BRANCHES[chosen[above]]}
        if len(sides) == 2:
            crossed.add(frozenset(sides))
            point = torch.tensor(order[below]), torch.tensor(x[below])
            first, second = (LOGS[name](*point, branch=side).item() for side in sides)
            assert abs(first - second) <= 1e-12 * max(1, abs(first)), (sides, point)
    assert set().union(*crossed) == set(BRANCHES)
    assert len(crossed) >= 8


# Gradients.


@pytest.mark.parametrize("name", LOGS)
def test_torch_gradients_at_every_point(name):
    order, x = tensors("order", "x")
    x.requires_grad_()
    want = values()[name.replace("log", "slope")]
    for variant in WAYS:
        (got,) = torch.autograd.grad(LOGS[name](order, x, variant=variant).sum(), x)
        assert (np.abs(got.numpy() - want) / np.abs(want)).max() <= 1e-10


@pytest.mark.parametrize("name", LOGS)
def test_jax_values_and_gradients_at_every_point_without_a_nan_on_the_way(name, double):
    order, x = jnp.asarray(values()["order"]), jnp.asarray(values()["x"])

    @jax.jit
    def both(x):
        value, pull = jax.vjp(lambda x: LOGS[name](order, x), x)
        return value, pull(jnp.ones_like(value))[0]

    with jax.debug_nans(True):
        value, slope = map(np.asarray, both(x))
    assert atlas.errors(value, values()[name]).max() <= 3e-12
    want = values()[name.replace("log", "slope")]
    assert (np.abs(slope - want) / np.abs(want)).max() <= 1e-10


def test_gradients_at_zero_are_the_limits():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.autograd.grad(log_bessel_i(order, x).sum(), x)[0].tolist() == [0, np.inf]
    assert torch.autograd.grad(log_bessel_k(order, x).sum(), x)[0].tolist() == [-np.inf, -np.inf]
    assert torch.autograd.grad(bessel_ratio(order, x).sum(), x)[0].tolist() == [0.5, 0.25]


def test_second_derivatives_at_every_point():
    order, x = tensors("order", "x")
    x.requires_grad_()
    for name, function in LOGS.items():
        (slope,) = torch.autograd.grad(function(order, x).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x)
        want = values()[name.replace("log", "bend")]
        assert (np.abs(bend.numpy() - want) / np.abs(want)).max() <= 1e-9
    points = torch.tensor([0.0, 1.5, 40.0, 12.0]), torch.tensor([0.5, 3.0, 20.0, 40.0], dtype=torch.float64, requires_grad=True)
    for function in (*LOGS.values(), bessel_ratio):
        assert torch.autograd.gradgradcheck(lambda x, f=function: f(points[0].double(), x), (points[1],))


def test_jax_transformations_compose(double):
    x = jnp.asarray([0.5, 3.0, 40.0])
    second = jax.jit(jax.vmap(jax.grad(jax.grad(lambda x: bessel_ratio(2.0, x)))))(x)
    ratio, step = (lambda x: np.asarray(bessel_ratio(np.full(3, 2.0), x))), 1e-4
    numeric = (ratio(np.asarray(x) + step) - 2 * ratio(np.asarray(x)) + ratio(np.asarray(x) - step)) / step**2
    np.testing.assert_allclose(second, numeric, rtol=1e-4, atol=1e-7)


# What comes in and what comes out.


def test_dtypes_and_shapes(double):
    single, whole = torch.tensor([1.0, 300.0]), torch.tensor([1, 300])
    assert log_bessel_i(2.5, single).dtype == torch.float32
    assert log_bessel_i(whole, single).dtype == torch.float32
    assert log_bessel_k(whole, whole).dtype == torch.float64
    assert log_bessel_k(single.double(), single).dtype == torch.float64
    assert log_bessel_i(jnp.float32(2), jnp.arange(1, 3)).dtype == jnp.float32
    # computed in float64, rounded once
    exact = log_bessel_i(1e5, single.double())
    assert torch.equal(log_bessel_i(1e5, single), exact.float())
    assert log_bessel_i(torch.ones(3, 1), torch.ones(0)).shape == (3, 0)
    assert bessel_ratio(torch.ones(3, 1), torch.ones(4)).shape == (3, 4)
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(log_bessel_k(torch.ones(3, 1).double(), x).sum(), x)[0].shape == (4,)


@pytest.mark.parametrize("variant", WAYS)
def test_nan_goes_through(variant):
    got = log_bessel_i(torch.tensor([np.nan, 1, 1]), torch.tensor([1, np.nan, 1]), variant=variant)
    assert got.isnan().tolist() == [True, True, False]
    negative = log_bessel_k(torch.tensor([-1.0, 1, np.inf]), torch.tensor([1, -1.0, 2]), invalid="nan", variant=variant)
    assert negative.isnan().all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: log_bessel_i(torch.tensor([[0.0, 1], [2, -3]]), torch.ones(2)), ValueError, r"order at index \(1, 1\) is -3"),
        (lambda: log_bessel_k(torch.ones(2), torch.tensor([1.0, -2])), ValueError, "x at index 1 is -2.*x >= 0"),
        (lambda: log_bessel_i(jnp.asarray([1.0, -4]), jnp.ones(2)), ValueError, "order at index 1 is -4"),
        (lambda: bessel_ratio(torch.tensor(np.inf), torch.ones(2)), ValueError, "order is inf; wanted 0 <= order < inf"),
        (lambda: log_bessel_i(torch.ones(2).half(), torch.ones(2)), TypeError, "float16; wanted float32, float64"),
        (lambda: log_bessel_i(jnp.ones(2, jnp.bfloat16), jnp.ones(2)), TypeError, "bfloat16; wanted"),
        (lambda: log_bessel_i(torch.ones(2, dtype=torch.complex64), 1.0), TypeError, "complex64; wanted"),
        (lambda: log_bessel_i(torch.ones(2), jnp.ones(2)), TypeError, "one framework"),
        (lambda: log_bessel_i(1.0, 2.0), TypeError, "wanted torch tensors, jax arrays or NumPy arrays"),
        (lambda: log_bessel_i(torch.ones(2), torch.ones(3)), ValueError, r"shape \(2,\) and x \(3,\)"),
        (lambda: log_bessel_i(torch.ones(2), torch.ones(2), branch="u_5"), ValueError, "branch is 'u_5'; wanted one of mu_3"),
        (
            lambda: log_bessel_i(torch.ones(2), torch.ones(2), variant="fast"),
            ValueError,
            "variant is 'fast'; wanted one of masked",
        ),
        (lambda: log_bessel_i(jnp.ones(2), jnp.ones(2), variant="compiled"), ValueError, "'compiled' is of the torch backend"),
        (lambda: log_bessel_i(torch.ones(2), torch.ones(2), invalid="skip"), ValueError, "wanted 'raise' or 'nan'"),
        (lambda: log_bessel_i(torch.ones(2, requires_grad=True), torch.ones(2)), ValueError, "order.detach"),
        (lambda: jax.grad(lambda v: log_bessel_i(v, jnp.float32(2)))(jnp.float32(1)), ValueError, "stop_gradient"),
    ],
)
def test_what_is_refused_and_how_it_is_said(call, error, words):
    with pytest.raises(error, match=words):
        call()
