"""Sums over samples, and what follows from them: means with their standard errors."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The sums that are kept of each measure: of values v, of v^2, of v w, of weights w, of w^2.
SUMS = 5
WEIGHTS = 3  # the place of the sum of weights among them


def five_sums(values: Tensor, weights: Tensor, known: Tensor) -> Tensor:
    """Return the sums over samples of values and weights (measures, samples), see ``SUMS``.

    ``known`` (measures,) is 0, or NaN where a measure gives only means: its sum of squares is NaN.
    """
    squares = values**2 + known[:, None]  # NaN says that there is no error; the mean stays
    products = (values, squares, values * weights, weights, weights**2)
    return torch.stack([product.sum(1) for product in products], dim=1)


def mean_and_error(
    sums: NDArray[np.float64], samples: NDArray[np.float64] | float, population: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn sums into means and standard errors of the mean.

    The mean is the ratio of the sums of values v and weights w. With the residuals
    ``e = v - mean w`` its standard error is ``s_e / (mean of w) / sqrt(n) * sqrt((N - n) / N)``
    (Cochran, Sampling Techniques, 1977, sections 2.6 and 6.4). The last factor is the correction
    for drawing n samples from a finite population of N without replacement; it is 0 when all were
    drawn. Where all weights are 1 this is the usual ``s / sqrt(n)``.

    Args:
        sums: shape (..., 5), as from :meth:`Measures.sums`.
        samples: n, one number or shape (...).
        population: N; ``math.inf`` for the distribution that the data came from.

    Returns:
        Means and standard errors, shape (...). Where a part of the population all has one value,
        as hits of a good model have, its spread says nothing: the error is NaN. So it is where
        only means of batches are known.
    """
    n = np.asarray(samples, dtype=np.float64)
    v, vv, vw, w, ww = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = v / w
        correction = 1.0 if math.isinf(population) else (population - n) / population
        variance = (vv - 2 * mean * vw + mean**2 * ww) / (n - 1)
        # Where all samples agree, rounding can leave a tiny variance, negative or positive.
        noise = 1e-13 * mean**2 * ww / n
        variance = np.where(variance <= noise, np.nan, variance)
        error = np.sqrt(variance / n * correction) / (w / n)
    everything = (n >= population) & np.isfinite(mean) & ~np.isnan(vv)
    return mean, np.where(everything, 0.0, np.where(n > 1, error, np.nan))
