"""The local entropy of a loss, on which Entropy-SGD works, by quadrature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from landscape_lib.closures import check_number


def local_entropy(loss: Tensor, grid: Tensor, points: Tensor, gamma: float) -> Tensor:
    """Return the local entropy of a loss of one weight, by the trapezoid rule.

    F(x) = log ∫ exp(-f(y) - gamma/2 (x - y)²) dy. Entropy-SGD descends on -F.

    Args:
        loss: f on the grid, shape (M,).
        grid: the y of the integral, shape (M,), rising; wide enough that the integrand vanishes at
            its ends, and finer than 1/√gamma.
        points: where F is wanted, shape (K,).
        gamma: the larger, the nearer the entropy looks: F + log(gamma/2π)/2 goes to -f.

    Returns:
        F at the points, shape (K,).

    Raises:
        ValueError: gamma is not above 0, or the grid does not rise or fit.

    Source: Chaudhari et al. 2017, equation 4.
    """
    check_number("gamma", gamma, above=0)
    if grid.dim() != 1 or len(grid) < 2 or loss.shape != grid.shape or not (grid.diff() > 0).all():
        raise ValueError(
            f"grid: expected a rising one of one dimension with one loss for each of its points, "
            f"got shapes {tuple(grid.shape)} and {tuple(loss.shape)}"
        )
    gaps = pad(grid.diff(), (1, 1))
    weights = (gaps[1:] + gaps[:-1]) / 2
    exponent = -loss - gamma / 2 * (points[:, None] - grid).square()
    return torch.logsumexp(exponent + weights.log(), dim=1)
