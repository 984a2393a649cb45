"""Von Mises-Fisher fits: samples with a known kappa, features of real text, and what other libraries make of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import psutil
import torch
from jaxtyping import Float

from common import UserError
from common.data.text import king_james
from common.runner import Run
from papers.log_bessel import baseline, features
from papers.log_bessel.config import Config, Method
from papers.log_bessel.vmf_torch import vmf_fit, vmf_log_normalizer, vmf_logpdf, vmf_sample

DIMS = (2048, 8192, 32768)
Rows = Float[torch.Tensor, "n dim"]


class Fit(NamedTuple):
    """The concentration and the resultant |mean of the rows|."""

    kappa: float
    resultant: float


def sample(config: Config, dim: int) -> tuple[float, Rows]:
    """kappa and a sample of it around a random direction, drawn a few hundred rows at a time."""
    needed = 3 * 8 * config.rows * dim
    if needed > psutil.virtual_memory().available:
        raise UserError(f"{config.rows} rows of {dim} float64 need {needed / 2**30:.0f} GiB of free memory; set rows lower")
    generator = torch.Generator().manual_seed(config.seed)
    direction = torch.nn.functional.normalize(torch.randn(dim, dtype=torch.float64, generator=generator), dim=0)
    kappa, rows = config.concentration * dim, torch.empty(config.rows, dim, dtype=torch.float64)
    for part in rows.split(250):
        part.copy_(vmf_sample(direction, kappa, len(part), generator=generator))
    return kappa, rows


def fit(config: Config, rows: Rows) -> Fit:
    """By the paper's functions, or by SciPy's ratio where the method is naive."""
    if config.method is Method.naive:
        resultant = float(torch.linalg.vector_norm(rows.mean(0)))
        return Fit(baseline.fit(rows.shape[1], resultant), resultant)
    found = vmf_fit(rows)
    return Fit(float(found.kappa), float(torch.linalg.vector_norm(rows.mean(0))))


def residual(dim: int, fitted: Fit) -> float:
    """|A_p(kappa) - R| with A_p to 40 digits, so that the fit's own ratio is not its judge; 1 for a kappa that is none."""
    from papers.log_bessel.kernel.reference import bessel_i

    if not 0 < fitted.kappa < math.inf:
        return 1.0
    return abs(float(bessel_i(dim / 2 - 1, fitted.kappa)[1]) - fitted.resultant)


def gap(got: float, want: float) -> float:
    """Relative difference, 1 at most; 1 for what is not finite."""
    return min(abs(got / want - 1), 1.0) if math.isfinite(got) else 1.0


def alternatives(rows: Rows, fitted: Fit) -> dict[str, float]:
    """kappa as SciPy's own fit, as Newton's method on SciPy's scaled functions, and as mpmath give it."""
    dim = rows.shape[1]
    return {
        "SciPy": baseline.scipy_fit(rows.numpy()),
        "naive": baseline.fit(dim, fitted.resultant),
        "mpmath": baseline.mpmath_fit(dim, fitted.resultant),
    }


def held_out(rows: Rows) -> dict[str, float]:
    """Mean log density of every second row under the fit of the others, and under the uniform distribution."""
    found = vmf_fit(rows[::2])
    density = vmf_logpdf(rows[1::2], found.direction, found.kappa).mean()
    uniform = vmf_log_normalizer(rows.shape[1], torch.zeros((), dtype=torch.float64))
    return {"held-out gain over uniform [nats]": float(density - uniform)}


def feature_sets(config: Config, run: Run) -> Iterator[tuple[str, Rows]]:
    """Sentence embeddings, hashed byte sequences in the paper's three dimensions, and the user's own image features."""
    rows, found = features.embeddings()
    run.used("sentence embeddings", found.source, found.sha256)
    yield f"MiniLM {rows.shape[1]}", torch.from_numpy(rows)
    text = king_james()
    run.used("King James text", text.source, text.sha256)
    lines = features.verses(text.whole, config.verses)
    for dim in DIMS:
        yield f"byte sequences {dim}", torch.from_numpy(features.hashed_grams(lines, dim))
        if (own := features.image_features(dim)) is not None:
            images, found = own
            run.used(f"image features {dim}", found.source, found.sha256)
            yield f"images {dim}", torch.from_numpy(np.asarray(images, np.float64))
