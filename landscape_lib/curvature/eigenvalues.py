"""Extreme eigenvalues of the Hessian, and their eigenvectors."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from landscape_lib.curvature.operator import Hessian, Settings
from landscape_lib.evaluation.batches import check_count
from landscape_lib.runtime import generator
from landscape_lib.weights import Weights

_ARPACK = {"largest": "LA", "smallest": "SA", "magnitude": "LM", "both ends": "BE"}


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of the Hessian, with their eigenvectors.

    Attributes:
        values: shape (k,), the outermost first.
        vectors: k weight vectors of norm 1, which can be axes of a plane; the entry of largest
            absolute value is positive.
        residuals: shape (k,), ``|Hv - λv|``: within that distance of a value is an eigenvalue.
        attrs: what they were computed from and how.
    """

    values: Tensor
    vectors: list[Weights]
    residuals: Tensor
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest eigenvalue of the Hessian, and how they were computed."""

    smallest: float
    largest: float
    attrs: dict[str, Any]

    @property
    def convexity(self) -> float:
        """``|λmin / λmax|``, near 0 where the loss is convex (Li et al., 2018, section 6)."""
        return abs(self.smallest / self.largest) if self.largest else math.nan


def top_eigenvalues(
    model: nn.Module,
    data: Any,
    k: int = 1,
    *,
    which: str = "largest",
    tolerance: float = 1e-6,
    most_products: int = 2000,
    **settings: Unpack[Settings],
) -> Eigenpairs:
    """Find the k outermost eigenvalues of the Hessian, by implicitly restarted Lanczos (ARPACK).

    It takes as many products as it needs, often 50 to 200. Of an eigenvalue that occurs several
    times it may find fewer copies.

    Args:
        model: as for :class:`Hessian`.
        data: as for :class:`Hessian`.
        k: how many.
        which: ``"largest"`` or ``"smallest"``, in the order of numbers with their signs, or
            ``"magnitude"``, the largest absolute values.
        tolerance: of eigenvalues, relative to themselves.
        most_products: give up after about as many products.
        settings: as for :class:`Hessian`.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, unknown ``which``, or ``k`` above n.
        RuntimeError: not found within ``most_products``.
    """
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f"which: expected 'largest', 'smallest' or 'magnitude', got {which!r}")
    operator = Hessian(model, data, **settings)
    check_count("k", k, operator.count)
    with operator.working(f"{which} eigenvalues"):
        values, vectors = _outermost(operator, k, which, tolerance, most_products)
        products = operator @ vectors
    order = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which].argsort()
    residuals = (products - vectors * values).norm(dim=0)
    attrs = operator.about() | {"which": which, "tolerance": tolerance}
    pairs = [operator.weights(vectors[:, i].contiguous()) for i in order.tolist()]
    return Eigenpairs(values[order], pairs, residuals[order], attrs)


def extremes(
    model: nn.Module,
    data: Any,
    *,
    tolerance: float = 1e-3,
    most_products: int = 2000,
    **settings: Unpack[Settings],
) -> Extremes:
    """Find the smallest and the largest eigenvalue, for maps of convexity (Li et al., 2018).

    Args:
        model: as for :class:`Hessian`.
        data: as for :class:`Hessian`.
        tolerance: as for :func:`top_eigenvalues`.
        most_products: as for :func:`top_eigenvalues`.
        settings: as for :class:`Hessian`; ``weights=plane.weights_at(a, b)`` for a point of a map.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`top_eigenvalues`.
    """
    operator = Hessian(model, data, **settings)
    with operator.working("extreme eigenvalues"):
        count = min(2, operator.count)
        values, _ = _outermost(operator, count, "both ends", tolerance, most_products)
    attrs = operator.about() | {"tolerance": tolerance}
    return Extremes(float(values.min()), float(values.max()), attrs)


def _outermost(
    operator: Hessian, k: int, which: str, tolerance: float, most_products: int
) -> tuple[Tensor, Tensor]:
    """Return k eigenvalues, shape (k,), and eigenvectors, shape (n, k), in any order."""
    check_count("most_products", most_products)
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance!r}")
    n = operator.count
    width = max(2 * k + 1, 20)  # of ARPACK's subspace
    if n <= width:
        values, vectors = torch.linalg.eigh(operator @ torch.eye(n))
        if which == "both ends":
            order = torch.tensor([0, n - 1][:k])
        else:
            ends = {"largest": values, "smallest": -values, "magnitude": values.abs()}
            order = ends[which].argsort(descending=True)[:k]
        order = order.to(values.device)
        return values[order], _signed(vectors[:, order])

    def multiply(vector: np.ndarray) -> np.ndarray:
        return (operator @ torch.from_numpy(vector)).cpu().double().numpy()

    start = torch.randn(n, generator=generator(operator.seed), dtype=torch.float64).numpy()
    settings: dict[str, Any] = {"ncv": width, "v0": start, "tol": tolerance}
    settings["maxiter"] = max(1, (most_products - width) // (width - k))
    if "rng" in inspect.signature(eigsh).parameters:  # scipy 1.17 draws where Lanczos ends early
        settings["rng"] = np.random.default_rng(operator.seed)
    product = LinearOperator((n, n), matvec=multiply, dtype=np.float64)
    try:
        values, vectors = eigsh(product, k, which=_ARPACK[which], **settings)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"most_products: {len(error.eigenvalues)} of {k} eigenvalues found within "
            f"{operator.products}: allow more, or a larger tolerance"
        ) from error
    except ArpackError:
        if multiply(start).any():
            raise
        values, vectors = np.zeros(k), np.eye(n, k)  # a Hessian of zeros, which ARPACK refuses
    values, vectors = (
        torch.from_numpy(array).to(operator.device, operator.dtype) for array in (values, vectors)
    )
    return values, _signed(vectors)


def _signed(vectors: Tensor) -> Tensor:
    """Return columns whose entry of largest absolute value is positive."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()
