"""Lanczos quadrature: the spectrum of a symmetric operator, as one vector sees it.

curvlinops has Lanczos without reorthogonalisation, which meets large eigenvalues again and again
and does not end where nothing is left: nodes and weights of that are no quadrature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor


@dataclass(frozen=True)
class Quadrature:
    """Nodes θ and weights w with ``Σ w θ^p = vᵀA^p v / vᵀv`` for p up to ``2 m - 1``.

    Attributes:
        nodes: shape (m,), ascending.
        weights: shape (m,), at least 0, with sum 1.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]


def lanczos(multiply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Quadrature:
    """Run Lanczos with full reorthogonalisation (Golub and Welsch, 1969; Golub and Meurant, 2010).

    Args:
        multiply: a symmetric operator, from shape (n,) to shape (n,).
        start: shape (n,), not zero.
        steps: m, at most n. It ends earlier where the vectors found so far hold everything that the
            operator makes of ``start``: the quadrature is then exact.
    """
    basis = start.new_empty(steps, len(start))
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        known = basis[: len(diagonal) + 1]
        vector = multiply(known[-1])
        size = float(vector.norm())
        diagonal.append(float(known[-1] @ vector))
        for _ in range(2):  # once leaves what rounding of the first pass has left
            vector = vector - known.T @ (known @ vector)
        rest = float(vector.norm())
        scale = max(size, *map(abs, diagonal), *beside)
        if len(diagonal) == steps or rest <= 10 * torch.finfo(start.dtype).eps * scale:
            break
        beside.append(rest)
        basis[len(diagonal)] = vector / rest
    nodes, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside))
    return Quadrature(nodes, vectors[0] ** 2)
