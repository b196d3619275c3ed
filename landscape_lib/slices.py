"""The affine subspaces: a slice is a set of points ``origin + sum_k c_k direction_k``.

``Line`` and ``Plane`` are the two everyday forms. All that the rest of the library asks of a
slice is its ``basis`` (weight vectors), the ``coefficients`` of every point in that basis, and how
its points are laid out (``dims``, ``axes``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from landscape_lib.weights import Weights, check_like, combine, dot, float64, subtract

FloatArray = NDArray[np.float64]


class Slice:
    """Points ``w(c) = origin + sum_k c_k d_k`` in weight space.

    Args:
        origin: the weights at coordinates 0.
        directions: d >= 1 weight vectors shaped like ``origin``.
        coordinates: shape (K, d), in units of the directions: point i is at
            ``coordinates[i]``.

    Raises:
        TypeError: ``origin`` or a direction is not a dictionary of tensors.
        ValueError: names or shapes differ, a direction is zero or not finite, coordinates are
            empty, not finite, or of another shape.
    """

    ends_are_models = False
    """Whether the slice is said to begin and end at the weights of two models."""

    def __init__(
        self, origin: Weights, directions: Sequence[Weights], coordinates: ArrayLike
    ) -> None:
        check_weights(origin, "origin")
        if not isinstance(directions, Sequence) or len(directions) == 0:
            raise ValueError(
                f"directions: expected a sequence of at least one weight vector, "
                f"got {_describe(directions)}"
            )
        for k, direction in enumerate(directions):
            name = f"directions[{k}]"
            check_like(direction, origin, name, "origin")
            check_weights(direction, name)
            if not any(tensor.any() for tensor in direction.values()):
                raise ValueError(f"{name}: is zero everywhere, so every point would be the origin")
        self.origin = origin
        self.directions = tuple(directions)
        self.coordinates = _check_coordinates(coordinates, len(self.directions))

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions in which the points are laid out."""
        return ("point",)

    @property
    def axes(self) -> dict[str, FloatArray]:
        """Coordinates along each dimension that has any."""
        return {}

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along each of ``dims``."""
        return tuple(len(axis) for axis in self.axes.values()) or (len(self.coordinates),)

    def __len__(self) -> int:
        """Return K, the number of points."""
        return len(self.coordinates)

    @property
    def basis(self) -> tuple[Weights, ...]:
        """The m weight vectors that every point is a linear combination of."""
        return (self.origin, *self.directions)

    def coefficients(self, coordinates: FloatArray) -> FloatArray:
        """Return the coefficients in ``basis``, shape (K, m), of coordinates of shape (K, d)."""
        return np.concatenate([np.ones((len(coordinates), 1)), coordinates], axis=1)

    def weights_at(self, *coordinates: float) -> Weights:
        """Return the weights at one point, for example ``weights_at(alpha, beta)``.

        Args:
            coordinates: d finite numbers; the point need not be one of the slice's own.

        Raises:
            ValueError: another count of coordinates, or one that is not finite.
        """
        if len(coordinates) != len(self.directions):
            raise ValueError(
                f"coordinates: expected {len(self.directions)} number(s), one for each direction, "
                f"got {len(coordinates)}"
            )
        point = _check_coordinates([coordinates], len(self.directions))
        return combine(self.basis, self.coefficients(point)[0].tolist())


class Line(Slice):
    """Points ``w(a) = origin + a direction`` (Li et al., 2018; report, section 3.2).

    Args:
        origin: the weights at alpha = 0.
        direction: a weight vector shaped like ``origin``.
        alphas: shape (K,).

    Raises:
        TypeError, ValueError: as in :class:`Slice`.
    """

    def __init__(self, origin: Weights, direction: Weights, alphas: ArrayLike) -> None:
        self.alphas = _check_axis(alphas, "alphas")
        super().__init__(origin, (direction,), self.alphas[:, None])

    @classmethod
    def between(cls, start: Weights, end: Weights, alphas: ArrayLike) -> Line:
        """Return the line ``w(a) = (1 - a) start + a end`` (report, eq. 1).

        Both ends are met exactly: alpha = 0 gives ``start`` and alpha = 1 gives ``end``,
        bit for bit.

        Args:
            start: the weights at alpha = 0.
            end: the weights at alpha = 1.
            alphas: shape (K,); values outside [0, 1] extrapolate.

        Raises:
            TypeError, ValueError: as in :class:`Slice`, naming ``start`` or ``end``.
        """
        check_weights(start, "start")
        check_like(end, start, "end", "start")
        check_weights(end, "end")
        direction = subtract(end, start)
        if not any(tensor.any() for tensor in direction.values()):
            raise ValueError("end: equals start, so there is no line between them")
        return _LineBetween(start, end, direction, alphas)

    @property
    def dims(self) -> tuple[str, ...]:
        """``("alpha",)``."""
        return ("alpha",)

    @property
    def axes(self) -> dict[str, FloatArray]:
        """``{"alpha": alphas}``."""
        return {"alpha": self.alphas}


class _LineBetween(Line):
    """A line that keeps both of its ends as its basis."""

    ends_are_models = True

    def __init__(self, start: Weights, end: Weights, direction: Weights, alphas: ArrayLike) -> None:
        super().__init__(start, direction, alphas)
        self.end = end

    @property
    def basis(self) -> tuple[Weights, ...]:
        return (self.origin, self.end)

    def coefficients(self, coordinates: FloatArray) -> FloatArray:
        return np.concatenate([1.0 - coordinates, coordinates], axis=1)


class Plane(Slice):
    """Points ``w(a, b) = origin + a d1 + b d2`` on a grid (Li et al., 2018; MPO paper, eq. 1).

    Args:
        origin: the weights at (0, 0).
        directions: two weight vectors shaped like ``origin``.
        alphas: shape (A,), along the first direction.
        betas: shape (B,), along the second direction.

    Raises:
        TypeError, ValueError: as in :class:`Slice`; also when the two directions are parallel.
    """

    def __init__(
        self,
        origin: Weights,
        directions: Sequence[Weights],
        alphas: ArrayLike,
        betas: ArrayLike,
    ) -> None:
        if not isinstance(directions, Sequence) or len(directions) != 2:
            raise ValueError(
                f"directions: a plane needs a sequence of exactly 2, got {_describe(directions)}"
            )
        self.alphas = _check_axis(alphas, "alphas")
        self.betas = _check_axis(betas, "betas")
        grid = np.stack(np.meshgrid(self.alphas, self.betas, indexing="ij"), axis=-1)
        super().__init__(origin, directions, grid.reshape(-1, 2))
        if _parallel(*self.directions):
            raise ValueError(
                "directions: the two are parallel up to rounding, so they span a line, not a plane"
            )

    @property
    def dims(self) -> tuple[str, ...]:
        """``("alpha", "beta")``."""
        return ("alpha", "beta")

    @property
    def axes(self) -> dict[str, FloatArray]:
        """``{"alpha": alphas, "beta": betas}``."""
        return {"alpha": self.alphas, "beta": self.betas}


def check_weights(weights: Weights, name: str) -> None:
    """Raise a clear error unless ``weights`` is a non-empty dictionary of finite tensors."""
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise TypeError(
            f"{name}: expected a dict of tensors as from weights_of(model), "
            f"got {type(weights).__name__}"
        )
    if not weights:
        raise ValueError(f"{name}: has no tensors")
    for key, tensor in weights.items():
        if tensor.is_complex():
            raise ValueError(f"{name}: expected real entries, {key!r} has {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite entries, {key!r} has NaN or inf")


def _parallel(first: Weights, second: Weights) -> bool:
    """Say whether ``second`` is a multiple of ``first``, up to the rounding of their dtypes."""
    share = dot(first, second) / dot(first, first)
    rest = {name: float64(t) - share * float64(first[name]) for name, t in second.items()}
    kinds = [t.dtype for t in (*first.values(), *second.values()) if t.is_floating_point()]
    epsilon = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    return dot(rest, rest) <= (8 * epsilon) ** 2 * dot(second, second)


def _describe(directions: object) -> str:
    """Say in an error message what was given in the place of several directions."""
    if isinstance(directions, dict):
        return "one weight vector"
    if isinstance(directions, Sequence):
        return str(len(directions))
    return type(directions).__name__


def _to_array(values: ArrayLike, name: str) -> FloatArray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected an array of numbers, got {type(values).__name__} ({error})"
        ) from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]}")
    return array


def _check_axis(values: ArrayLike, name: str) -> FloatArray:
    array = _to_array(values, name)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected a one-dimensional array, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one number, got an empty array")
    unique, counts = np.unique(array, return_counts=True)
    if len(unique) != array.size:
        raise ValueError(f"{name}: expected distinct numbers, got {unique[counts > 1][0]} repeated")
    end, middle = array[-1], array.size // 2
    if array.size % 2 and array[0] == -end and abs(array[middle]) <= np.spacing(abs(end)):
        array[middle] = 0.0  # np.linspace(-0.1, 0.1, 23) misses it by a rounding error
    return array


def _check_coordinates(values: ArrayLike, dimension: int) -> FloatArray:
    array = _to_array(values, "coordinates")
    if array.ndim != 2 or array.shape[1] != dimension:
        raise ValueError(
            f"coordinates: expected shape (K, {dimension}) for {dimension} direction(s), "
            f"got {array.shape}"
        )
    if array.shape[0] == 0:
        raise ValueError("coordinates: expected at least one point, got none")
    return array
