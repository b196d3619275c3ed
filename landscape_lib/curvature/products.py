"""Curvature from a few products: along a direction, in a plane, all of it for small networks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from landscape_lib.curvature.operator import Hessian, Settings
from landscape_lib.evaluation.batches import check_count, read_batches
from landscape_lib.slices import Slice
from landscape_lib.weights import Weights

# The exact Hessian of as many parameters fills 200 MB in float64.
MOST_EXACT = 5000


@dataclass(frozen=True)
class Cost:
    """What Hessian-vector products will take.

    Attributes:
        products: how many.
        samples: of the data, all of which each product passes.
        seconds: in all, from the time of one batch.
    """

    products: int
    samples: int
    seconds: float

    def __str__(self) -> str:
        """Return the estimate as one sentence."""
        return (
            f"{self.products:,} Hessian-vector products x {self.samples:,} samples: about "
            f"{tqdm.format_interval(self.seconds)} (measured here on one batch)"
        )


def cost(model: nn.Module, data: Any, products: int, **settings: Unpack[Settings]) -> Cost:
    """Measure one batch, and estimate what so many Hessian-vector products will take.

    Args:
        model: as for :class:`Hessian`.
        data: as for :class:`Hessian`.
        products: for :func:`trace` the number of probes, for :func:`spectral_density` probes times
            steps, for :func:`hessian` n (an eighth of it in time); :func:`top_eigenvalues` takes as
            many as it needs, often 50 to 200.
        settings: as for :class:`Hessian`.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, or ``products`` is no count.
    """
    check_count("products", products)
    size, seed = settings.get("batch_size", 128), settings.get("seed", 0)
    check_count("batch_size", size)
    batches, _ = read_batches(data, settings.pop("samples", None), size, seed)
    operator = Hessian(model, [(batches[0].x, batches[0].y)], **settings)
    vector, seconds = torch.ones(operator.count), []
    for _ in range(3):
        started = time.perf_counter()
        float((operator @ vector).sum())  # waits for an accelerator
        seconds.append(time.perf_counter() - started)
    used = sum(batch.size for batch in batches)
    return Cost(products, used, min(seconds[1:]) / batches[0].size * used * products)


def hvp(model: nn.Module, data: Any, direction: Weights, **settings: Unpack[Settings]) -> Weights:
    """Return the Hessian times a direction; one product.

    Args:
        model: as for :class:`Hessian`, which is quicker where many products are wanted.
        data: as for :class:`Hessian`.
        direction: a weight vector.
        settings: as for :class:`Hessian`.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, or a direction of other names or shapes.
    """
    operator = Hessian(model, data, **settings)
    vector = operator.vector(direction)
    with operator.working("Hessian-vector product", 1):
        return operator.weights(operator @ vector)


def along(model: nn.Module, data: Any, direction: Weights, **settings: Unpack[Settings]) -> float:
    """Return the curvature along a direction d, ``dᵀHd``: L''(a) of L(w + a d); one product.

    Args:
        model: as for :class:`Hessian`.
        data: as for :class:`Hessian`.
        direction: a weight vector of any length, which counts squared.
        settings: as for :class:`Hessian`.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, or a direction of other names or shapes.
    """
    operator = Hessian(model, data, **settings)
    return float(_quadratic_form(operator, [operator.vector(direction)]))


def in_plane(model: nn.Module, data: Any, plane: Slice, **settings: Unpack[Settings]) -> Tensor:
    """Return the Hessian in a plane's coordinates, ``[dᵢᵀHdⱼ]``; one product per direction.

    Args:
        model: as for :class:`Hessian`.
        data: as for :class:`Hessian`.
        plane: a plane, or any slice with d directions. The Hessian is taken at its origin, or at
            ``weights``, for example ``plane.weights_at(1.0, 0.5)``.
        settings: as for :class:`Hessian`.

    Returns:
        Shape (2, 2) for a plane, (d, d) for a slice; float64, on the CPU.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, or a slice of another model.
    """
    if not isinstance(plane, Slice):
        raise TypeError(f"plane: expected a Plane or another slice, got {type(plane).__name__}")
    if settings.get("weights") is None:
        settings["weights"] = plane.origin
    operator = Hessian(model, data, **settings)
    return _quadratic_form(operator, [operator.vector(d, "plane") for d in plane.directions])


def hessian(model: nn.Module, data: Any, **settings: Unpack[Settings]) -> Tensor:
    """Return the exact Hessian of a small network; n products, eight in one pass.

    Args:
        model: as for :class:`Hessian`, with at most 5,000 parameters.
        data: as for :class:`Hessian`.
        settings: as for :class:`Hessian`. ``dtype=torch.float64`` tells small eigenvalues from 0.

    Returns:
        Shape (n, n), on the model's device; rows and columns in the order of ``flatten(weights)``.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, or too many parameters.
    """
    operator = Hessian(model, data, **settings)
    n = operator.count
    if n > MOST_EXACT:
        raise ValueError(
            f"model: expected at most {MOST_EXACT:,} parameters for the exact Hessian, got {n:,} "
            f"({8e-9 * n * n:.2g} GB in float64): use top_eigenvalues, trace or spectral_density"
        )
    with operator.working("Hessian", n):
        return operator @ torch.eye(n)


def _quadratic_form(operator: Hessian, vectors: list[Tensor]) -> Tensor:
    columns = torch.stack(vectors, dim=1)
    with operator.working("curvature", len(vectors)):
        products = operator @ columns
    return columns.cpu().double().T @ products.cpu().double()
