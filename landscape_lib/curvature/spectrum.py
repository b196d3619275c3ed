"""The whole spectrum of the Hessian from random probes: trace, density, shares."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn

from landscape_lib.curvature.operator import Hessian, Settings
from landscape_lib.evaluation.batches import check_count
from landscape_lib.runtime import generator

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes.

    Attributes:
        value: the mean.
        se: its standard error; NaN for a single probe.
        attrs: what it was computed from and how.
    """

    value: float
    se: float
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Share(Estimate):
    """A share of eigenvalues, from a quadrature that knows its nodes only.

    Attributes:
        lowest: what it is at least, as the probes see it, averaged over them.
        highest: what it is at most. An interval narrower than the distance of nodes there has wide
            bounds (Chebyshev, Markov and Stieltjes): more steps narrow them.
    """

    lowest: float
    highest: float


def trace(
    model: nn.Module, data: Any, *, probes: int = 20, **settings: Unpack[Settings]
) -> Estimate:
    """Estimate the trace of the Hessian from random probes; a product for each.

    The mean of ``vᵀHv`` over vectors of random signs (Hutchinson, 1989).

    Args:
        model: as for :class:`Hessian`.
        data: as for :class:`Hessian`.
        probes: number of random vectors.
        settings: as for :class:`Hessian`.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, or ``probes`` is no count.
    """
    check_count("probes", probes)
    operator = Hessian(model, data, **settings)
    source, found = generator(operator.seed), []
    with operator.working("trace", probes):
        for start in range(0, probes, operator.together):
            columns = min(operator.together, probes - start)
            signs = torch.stack([_signs(operator, source) for _ in range(columns)], dim=1)
            found += (signs * (operator @ signs)).double().sum(0).tolist()
    return _mean(np.array(found), operator.about() | {"probes": probes})


def spectral_density(
    model: nn.Module,
    data: Any,
    *,
    probes: int = 1,
    steps: int = 100,
    sigma: float | None = None,
    points: int = 1024,
    **settings: Unpack[Settings],
) -> xr.Dataset:
    """Estimate the density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    From each probe, a vector of random signs, ``steps`` steps of Lanczos with full
    reorthogonalisation lead to nodes and weights: the share of eigenvalues near a node. The density
    puts a normal curve around every node (Ghorbani et al., 2019): it is only as sharp as ``sigma``.
    Shares of eigenvalues are sums of weights, see :func:`share`.

    Args:
        model: as for :class:`Hessian`.
        data: as for :class:`Hessian`.
        probes: number of random vectors.
        steps: number of Lanczos steps, at most n; as many vectors are held in memory. It takes
            ``probes * steps`` products.
        sigma: standard deviation of the normal curves, in units of eigenvalues. By default
            ``sqrt(1e-5)``, 0.3 %, of the range of the nodes.
        points: number of eigenvalues at which the density is given.
        settings: as for :class:`Hessian`.

    Returns:
        Dataset with ``nodes`` and ``weights`` (dimensions ``probe`` and ``node``; where Lanczos
        ended early, nodes are NaN and weights 0), ``density`` and, from several probes,
        its standard error ``density_se`` (dimension ``eigenvalue``). All settings are attributes.

    Raises:
        TypeError, ValueError: as :class:`Hessian`, or settings that are no counts, or too few
            points for ``sigma``.
    """
    for name, value in {"probes": probes, "steps": steps, "points": points}.items():
        check_count(name, value)
    if sigma is not None and not (isinstance(sigma, (int, float)) and 0 < sigma < math.inf):
        raise ValueError(f"sigma: expected a number above 0, got {sigma!r}")
    started = time.perf_counter()
    operator = Hessian(model, data, **settings)
    check_count("steps", steps, operator.count)
    source = generator(operator.seed)
    nodes, weights = np.full((2, probes, steps), np.nan)
    with operator.working("spectral density", probes * steps):
        for probe in range(probes):
            at, shares = lanczos(operator.__matmul__, _signs(operator, source), steps)
            nodes[probe, : len(at)], weights[probe, : len(at)] = at, shares
    weights = np.nan_to_num(weights)
    low, high = np.nanmin(nodes), np.nanmax(nodes)
    if sigma is None:
        sigma = math.sqrt(1e-5) * ((high - low) or abs(high) or 1.0)
    eigenvalues = np.linspace(low - 6 * sigma, high + 6 * sigma, points)
    if points < 2 or eigenvalues[1] - eigenvalues[0] > sigma:
        needed = math.ceil((high - low) / sigma + 12) + 1
        raise ValueError(f"points: expected at least {needed} for sigma {sigma:.3g}, got {points}")
    pairs = zip(nodes, weights, strict=True)
    curves = np.stack([_normal_curves(eigenvalues, *pair, sigma) for pair in pairs])
    variables: dict[str, Any] = {
        "nodes": (("probe", "node"), nodes),
        "weights": (("probe", "node"), weights),
        "density": ("eigenvalue", curves.mean(axis=0)),
    }
    if probes > 1:
        variables["density_se"] = ("eigenvalue", curves.std(axis=0, ddof=1) / math.sqrt(probes))
    attrs = operator.about() | {
        "method": "stochastic Lanczos quadrature, full reorthogonalisation, probes of random signs",
        "probes": probes,
        "steps": steps,
        "sigma": float(sigma),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return xr.Dataset(variables, {"eigenvalue": eigenvalues}, attrs)


def lanczos(
    multiply: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[FloatArray, FloatArray]:
    """Run Lanczos with full reorthogonalisation (Golub and Welsch, 1969; Golub and Meurant, 2010).

    curvlinops has it without, which meets large eigenvalues again and again and does not end where
    nothing is left: nodes and weights of that are no quadrature.

    Args:
        multiply: a symmetric operator A, from shape (n,) to shape (n,).
        start: v, shape (n,), not zero.
        steps: m, at most n. It ends earlier where the vectors found so far hold everything that the
            operator makes of ``start``: the quadrature is then exact.

    Returns:
        Nodes θ, shape (m,), ascending, and weights w, at least 0 and of sum 1, with
        ``Σ w θ^p = vᵀA^p v / vᵀv`` for p up to ``2 m - 1``.
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
    return nodes, vectors[0] ** 2


def share(spectrum: xr.Dataset, low: float, high: float) -> Share:
    """Return the share of eigenvalues from ``low`` to ``high``, as mass of the quadrature.

    Args:
        spectrum: as from :func:`spectral_density`.
        low: smallest eigenvalue that counts.
        high: largest eigenvalue that counts.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"low: expected a number below high={high!r}, got {low!r}")
    found = np.array(
        [
            _mass(nodes, weights, low, high)
            for nodes, weights in zip(spectrum.nodes.values, spectrum.weights.values, strict=True)
        ]
    )
    mean = _mean(found[:, 0], dict(spectrum.attrs))
    _, lowest, highest = found.mean(axis=0).tolist()
    return Share(mean.value, mean.se, mean.attrs, lowest, highest)


def _mass(nodes: FloatArray, weights: FloatArray, low: float, high: float) -> list[float]:
    """Return the weight of the nodes in an interval, and bounds of the mass that it stands for."""
    if np.isnan(nodes).any():  # Lanczos ended early: the quadrature is exact
        return [float(weights[(nodes >= low) & (nodes <= high)].sum())] * 3
    start, end = np.searchsorted(nodes, low), np.searchsorted(nodes, high, side="right")
    inside = float(weights[start:end].sum())
    doubtful = float(weights[start : start + 1].sum() + weights[max(end - 1, 0) : end].sum())
    beside = float(weights[max(start - 1, 0) : start].sum() + weights[end : end + 1].sum())
    return [inside, max(0.0, inside - doubtful), min(1.0, inside + beside)]


def _signs(operator: Hessian, source: torch.Generator) -> Tensor:
    """Draw a vector of random signs, the same on every device."""
    signs = torch.randint(2, (operator.count,), generator=source) * 2 - 1
    return signs.to(operator.device, operator.dtype)


def _mean(values: FloatArray, attrs: dict[str, Any]) -> Estimate:
    several = len(values) > 1
    error = values.std(ddof=1) / math.sqrt(len(values)) if several else math.nan
    return Estimate(float(values.mean()), float(error), attrs)


def _normal_curves(
    at: FloatArray, nodes: np.ndarray, weights: np.ndarray, sigma: float
) -> FloatArray:
    """Return a sum of normal curves around nodes, at some points."""
    held = weights > 0
    z = (at[:, None] - nodes[held]) / sigma
    return np.exp(-0.5 * z**2) @ weights[held] / (sigma * math.sqrt(2 * math.pi))
