"""The von Mises-Fisher distribution in both frameworks: known kappa, closed forms, moments, agreement, bad input."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

from papers.log_bessel import vmf_jax, vmf_torch

pytestmark = pytest.mark.xdist_group("log_bessel")


def _points(dim, kappa, n, seed=0):
    direction = torch.zeros(dim, dtype=torch.float64)
    direction[1] = 1
    return direction, vmf_torch.vmf_sample(direction, kappa, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dim", "kappa", "n"), [(2, 3.0, 20_000), (3, 50.0, 20_000), (64, 40.0, 4000), (2048, 2000.0, 400)])
def test_a_fit_finds_the_kappa_of_the_sample(dim, kappa, n):
    direction, x = _points(dim, kappa, n)
    torch.testing.assert_close(torch.linalg.vector_norm(x, dim=1), torch.ones(n, dtype=torch.float64), rtol=1e-12, atol=0)
    fit = vmf_torch.vmf_fit(x)
    assert float(fit.kappa) == pytest.approx(kappa, rel=0.04)
    assert float(fit.residual) < 1e-14
    assert float(fit.direction @ direction) > 0.97


@pytest.mark.parametrize("dim", [2, 3, 10, 384, 2048, 32768])
@pytest.mark.parametrize("resultant", [1e-6, 0.01, 0.3, 0.9, 0.999, 1 - 1e-7])
def test_newton_solves_the_score_equation(dim, resultant):
    """Two points at an angle have this resultant exactly."""
    x = torch.zeros(2, dim, dtype=torch.float64)
    x[:, 0], x[0, 1], x[1, 1] = resultant, math.sqrt(1 - resultant**2), -math.sqrt(1 - resultant**2)
    fit = vmf_torch.vmf_fit(x)
    assert float(fit.residual) < 4e-16 and float(fit.kappa) > 0


def test_the_density_of_three_dimensions_is_elementary():
    kappa = torch.tensor([1e-3, 0.5, 20.0, 1e4], dtype=torch.float64)
    # kappa / (4 pi sinh kappa)
    log_sinh = kappa + torch.log1p(-torch.exp(-2 * kappa)) - math.log(2)
    torch.testing.assert_close(
        vmf_torch.vmf_log_normalizer(3, kappa), kappa.log() - math.log(4 * math.pi) - log_sinh, rtol=1e-13, atol=1e-13
    )
    zero = torch.zeros((), dtype=torch.float64)
    assert float(vmf_torch.vmf_log_normalizer(3, zero)) == pytest.approx(-math.log(4 * math.pi))


def test_the_gradient_of_the_normaliser_does_not_cancel():
    kappa = torch.tensor([0.0, 1e-3, 1.0, 1e5], dtype=torch.float64, requires_grad=True)
    vmf_torch.vmf_log_normalizer(32768, kappa).sum().backward()
    order = mpmath.mpf(32768) / 2 - 1
    # A_p(kappa) = kappa / p (1 - kappa^2 / (p (p + 2)) + ...)
    assert kappa.grad[1].item() == pytest.approx(-1e-3 / 32768 * (1 - 1e-6 / (32768 * 32770)), rel=1e-14)
    assert kappa.grad[0].item() == 0
    with jax.enable_x64(True):
        slopes = jax.grad(lambda k: vmf_jax.vmf_log_normalizer(2 * int(order) + 2, k).sum())(jnp.asarray(kappa.detach().numpy()))
        np.testing.assert_allclose(slopes, kappa.grad.numpy(), rtol=1e-14)


def test_samples_of_both_frameworks_have_the_right_moments():
    dim, kappa, n = 10, 8.0, 20_000
    direction, x = _points(dim, kappa, n)
    with jax.enable_x64(True):
        y = np.asarray(vmf_jax.vmf_sample(jax.random.key(0), jnp.asarray(direction.numpy()), kappa, n))
    mean = float(mpmath.besseli(dim / 2, kappa) / mpmath.besseli(dim / 2 - 1, kappa))
    variance = 1 - mean**2 - (dim - 1) / kappa * mean
    for z in (x.numpy(), y):
        along = z[:, 1]
        assert along.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
        assert along.var() == pytest.approx(variance, rel=0.06)
        np.testing.assert_allclose(np.delete(z, 1, axis=1).mean(0), 0, atol=5 / math.sqrt(n))


def test_the_two_frameworks_fit_the_same():
    _, x = _points(64, 40.0, 100)
    theirs = vmf_torch.vmf_fit(x)
    with jax.enable_x64(True):
        a = jnp.asarray(x.numpy())
        mine = vmf_jax.vmf_fit(a)
        np.testing.assert_allclose(mine.kappa, theirs.kappa, rtol=1e-12)
        np.testing.assert_allclose(mine.direction, theirs.direction, atol=1e-15)
        assert mine.residual < 1e-14
        densities = vmf_jax.vmf_logpdf(a, mine.direction, mine.kappa)
        np.testing.assert_allclose(densities, vmf_torch.vmf_logpdf(x, theirs.direction, theirs.kappa), rtol=1e-12)


def test_the_fit_is_the_maximum():
    _, x = _points(64, 40.0, 100)
    fit = vmf_torch.vmf_fit(x)
    best = vmf_torch.vmf_logpdf(x, fit.direction, fit.kappa).mean()
    for factor in (0.99, 1.01):
        assert vmf_torch.vmf_logpdf(x, fit.direction, factor * fit.kappa).mean() < best


def _framework(name):
    if name == "torch":
        return vmf_torch, lambda x: torch.as_tensor(np.asarray(x, np.float64))
    return vmf_jax, lambda x: jnp.asarray(np.asarray(x), jnp.float32)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_bad_input(name):
    module, array = _framework(name)
    with pytest.raises(ValueError, match="norm 1, got 2"):
        module.vmf_fit(array([[2.0, 0.0], [0.0, 1.0]]))
    assert float(module.vmf_fit(array([[2.0, 0.0], [0.0, 1.0]]), normalize=True).kappa) > 0
    with pytest.raises(ValueError, match="mean of the rows is 0"):
        module.vmf_fit(array([[1.0, 0.0], [-1.0, 0.0]]))
    with pytest.raises(ValueError, match="all 2 rows are the same"):
        module.vmf_fit(array([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="row of zeros"):
        module.vmf_fit(array([[0.0, 0.0], [1.0, 0.0]]), normalize=True)
    with pytest.raises(ValueError, match="NaN"):
        module.vmf_fit(array([[np.nan, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        module.vmf_fit(array([[1.0], [1.0]]))
    with pytest.raises(ValueError, match="n >= 1"):
        module.vmf_fit(array(np.zeros((0, 3))))
    with pytest.raises(ValueError, match="kappa must be finite and >= 0"):
        module.vmf_log_normalizer(3, array([-1.0]))
    with pytest.raises(ValueError, match="entries of a row"):
        module.vmf_logpdf(array([[1.0, 0.0]]), array([1.0, 0.0, 0.0]), array(1.0))
