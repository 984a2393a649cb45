"""GPTQ against its definition with explicit inverses, against rounding to the nearest, and across frameworks."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.gptq import Hessian, gptq, nearest


def problem(seed: int, rows: int = 6, k: int = 16, n: int = 64, batch: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((*batch, rows, k))
    x = rng.standard_normal((*batch, n, k)) @ rng.standard_normal((*batch, k, k)) * np.exp(rng.standard_normal(k))
    return weights, 2 * np.swapaxes(x, -1, -2) @ x / n


def loss(weights: np.ndarray, quantised: np.ndarray, hessian: np.ndarray) -> float:
    error = weights - quantised
    return float(np.einsum("...ri,...ij,...rj->", error, hessian, error))


def by_definition(weights: np.ndarray, hessian: np.ndarray, scales: np.ndarray, bits: int, damping: float) -> np.ndarray:
    """Round column by column; after each, move the others to where the damped quadratic is least, by solving anew."""
    k = weights.shape[-1]
    damped, group = hessian + damping * np.diag(hessian).mean() * np.eye(k), k // scales.shape[-1]
    weights, codes = weights.copy(), np.zeros(weights.shape)
    for i in range(k):
        step = scales[:, i // group].astype(float)
        codes[:, i] = np.clip(np.round(weights[:, i] / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = weights[:, i] - codes[:, i] * step
        if i + 1 < k:
            weights[:, i + 1 :] += np.outer(error, np.linalg.solve(damped[i + 1 :, i + 1 :], damped[i + 1 :, i]))
    return codes


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_equals_the_definition(bits: int) -> None:
    weights, hessian = problem(1)
    got = gptq(torch.tensor(weights), torch.tensor(hessian), bits=bits, group=-1, clip="none")
    want = by_definition(weights, hessian, got.scales.numpy(), bits, 0.1)
    np.testing.assert_array_equal(got.codes.numpy(), want)
    np.testing.assert_allclose(got.scales.numpy()[:, 0], np.abs(weights).max(1) * 2 / (2**bits - 1), rtol=1e-3)


def test_activation_order_is_the_natural_order_of_permuted_columns() -> None:
    weights, hessian = problem(2)
    columns = np.argsort(-np.diag(hessian))
    got = gptq(torch.tensor(weights), torch.tensor(hessian), group=4, order="activation", clip="none")
    steps = got.scales.numpy().repeat(4, axis=1)[:, columns]
    want = by_definition(weights[:, columns], hessian[np.ix_(columns, columns)], steps, 4, 0.1)
    np.testing.assert_array_equal(got.codes.numpy()[:, columns], want)


@pytest.mark.parametrize(
    ("group", "order", "clip"),
    [(-1, "natural", "none"), (8, "natural", "hessian"), (4, "natural", "error"), (8, "activation", "error")],
)
def test_frameworks_agree(group: int, order: str, clip: str) -> None:
    weights, hessian = problem(3, batch=(2,))
    options = {"group": group, "order": order, "clip": clip}
    ours = gptq(torch.tensor(weights), torch.tensor(hessian), **options)
    with jax.enable_x64(True):
        theirs = gptq(jnp.asarray(weights), jnp.asarray(hessian), **options)
        np.testing.assert_array_equal(ours.codes.numpy(), np.asarray(theirs.codes))
        np.testing.assert_array_equal(ours.scales.numpy(), np.asarray(theirs.scales))
        np.testing.assert_array_equal(ours.dense().numpy(), np.asarray(theirs.dense()))
        near = nearest(jnp.asarray(weights), group=group, clip="error")
    np.testing.assert_array_equal(nearest(torch.tensor(weights), group=group, clip="error").codes.numpy(), np.asarray(near.codes))
    for each in range(2):  # the batch is its parts
        alone = gptq(torch.tensor(weights[each]), torch.tensor(hessian[each]), **options)
        np.testing.assert_array_equal(alone.codes.numpy(), ours.codes[each].numpy())


@pytest.mark.parametrize("seed", range(5))
def test_output_error_is_below_that_of_rounding_to_the_nearest(seed: int) -> None:
    weights, hessian = problem(seed, rows=32, k=32, n=256)
    found = {"nearest": nearest(torch.tensor(weights), group=16)}
    for order, clip in [("natural", "none"), ("natural", "hessian"), ("activation", "none")]:
        found[f"{order} {clip}"] = gptq(torch.tensor(weights), torch.tensor(hessian), group=16, order=order, clip=clip)
    errors = {name: loss(weights, each.dense().double().numpy(), hessian) for name, each in found.items()}
    assert all(error < 0.8 * errors["nearest"] for name, error in errors.items() if name != "nearest"), errors
    assert errors["natural hessian"] < errors["natural none"]


def test_is_between_the_best_codes_there_are_and_the_nearest() -> None:
    weights, hessian = problem(7, rows=1, k=5)
    got = gptq(torch.tensor(weights), torch.tensor(hessian), bits=2, group=-1, clip="none", damping=0.0)
    scale = float(got.scales[0, 0])
    every = np.array(list(itertools.product(range(-2, 2), repeat=5))) * scale
    error = weights - every
    best = np.einsum("ni,ij,nj->n", error, hessian, error).min()
    mine = loss(weights, got.dense().double().numpy(), hessian)
    assert best <= mine <= loss(weights, nearest(torch.tensor(weights), bits=2, group=-1).dense().double().numpy(), hessian)


def test_identity_hessian_rounds_to_the_nearest() -> None:
    weights = torch.tensor(problem(4)[0])
    got = gptq(weights, torch.eye(16, dtype=torch.float64), group=8, clip="none")
    assert torch.equal(got.codes, nearest(weights, group=8).codes)


def test_hessian_of_samples_of_varying_length() -> None:
    x = np.random.default_rng(0).standard_normal((10, 4))
    whole = Hessian()
    whole.add(torch.tensor(x[:3])[None])
    whole.add(torch.tensor(x[3:]))
    np.testing.assert_allclose(whole.value.numpy(), 2 * x.T @ x / 10)
    with jax.enable_x64(True):
        same = Hessian()
        same.add(jnp.asarray(x))
        np.testing.assert_allclose(np.asarray(same.value), whole.value.numpy())


def test_a_row_of_zeros_stays_zero() -> None:
    weights, hessian = problem(5)
    weights[2] = 0
    got = gptq(torch.tensor(weights), torch.tensor(hessian), group=8)
    assert not got.codes[2].any()
    assert (got.scales[2] == 1).all()


def test_bad_input_is_refused() -> None:
    weights, hessian = (torch.tensor(each) for each in problem(6))
    with pytest.raises(ValueError, match="group 5 does not divide k = 16"):
        gptq(weights, hessian, group=5)
    with pytest.raises(ValueError, match="bits is 9"):
        nearest(weights, bits=9, group=4)
    with pytest.raises(ValueError, match=r"hessian \(4, 4\) for weights"):
        gptq(weights, torch.eye(4, dtype=torch.float64), group=4)
    with pytest.raises(ValueError, match="not positive definite with damping 0"):
        gptq(weights, torch.zeros(16, 16, dtype=torch.float64), group=4, damping=0.0)
    with pytest.raises(ValueError, match="not positive definite"):
        gptq(jnp.asarray(weights.numpy()), jnp.zeros((16, 16)), group=4, damping=0.0)
    with pytest.raises(ValueError, match="NaN, infinity"):
        nearest(weights * float("inf"), group=4)
    with pytest.raises(ValueError, match="clip 'error' with order"):
        gptq(weights, hessian, group=4, order="activation")
    with pytest.raises(ValueError, match="call gptq"):
        nearest(weights, group=4, clip="hessian")
    with pytest.raises(TypeError, match="ndarray"):
        nearest(weights.numpy(), group=4)
    with pytest.raises(ValueError, match="no inputs were added"):
        _ = Hessian().value
