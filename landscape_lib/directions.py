"""Directions in weight space: random and normalised, or taken from a training trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape_lib.slices import Line, Slice, check_weights
from landscape_lib.weights import Weights, check_like, flatten, float64, norm, unflatten

NORMALIZATIONS = ("filter", "layer", None)


def random_direction(
    weights: Weights,
    *,
    normalize: str | None = "filter",
    ignore_1d: bool = True,
    generator: torch.Generator | None = None,
) -> Weights:
    """Draw a direction from N(0, I) and normalise it (Li et al., 2018, section 4).

    Args:
        weights: the centre; gives names, shapes and, for normalisation, lengths.
        normalize: ``"filter"`` gives every filter (slice along dimension 0 of a tensor: an output
            channel, a row of a linear layer) the norm of the same filter of ``weights``;
            ``"layer"`` does so per tensor; ``None`` leaves the normal draw.
        ignore_1d: set tensors of at most one dimension (biases, batch-norm scale and shift) to
            zero, as Li et al. do in their figures. With ``False`` each of their entries is a
            filter of its own.
        generator: source of randomness (CPU); without one the global generator is used.

    Returns:
        A weight vector shaped like ``weights``.

    Raises:
        TypeError: ``weights`` is not a dictionary of tensors, ``generator`` not a generator.
        ValueError: unknown ``normalize``, weights that are not finite, or nothing is left because
            every tensor has at most one dimension.
    """
    return random_directions(
        weights, 1, normalize=normalize, ignore_1d=ignore_1d, generator=generator
    )[0]


def random_directions(
    weights: Weights,
    count: int,
    *,
    normalize: str | None = "filter",
    ignore_1d: bool = True,
    generator: torch.Generator | None = None,
) -> list[Weights]:
    """Draw ``count`` directions that are orthogonal *and* normalised.

    Normalising whole vectors after orthogonalising them undoes the orthogonality. Here both
    hold: within each block (filter, layer, or all weights) the draws are orthogonalised first, and
    a block is then only rescaled. A block with fewer than ``count`` entries cannot hold that many
    orthogonal parts; the parts that do not fit are zero.

    Args:
        weights: as in :func:`random_direction`.
        count: how many directions.
        normalize: as in :func:`random_direction`.
        ignore_1d: as in :func:`random_direction`.
        generator: as in :func:`random_direction`.

    Raises:
        TypeError, ValueError: as in :func:`random_direction`, or ``count`` is below 1.
    """
    check_weights(weights, "weights")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize: expected one of {NORMALIZATIONS}, got {normalize!r}")
    _check_count("count", count)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator: expected a torch.Generator, got {type(generator).__name__}; for a seed, "
            f"runtime.generator(seed)"
        )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator: expected one on the CPU, got one on {generator.device}")
    if ignore_1d and all(tensor.dim() <= 1 for tensor in weights.values()):
        raise ValueError(
            "ignore_1d: every tensor of weights has at most one dimension, so the direction "
            "would be zero; pass ignore_1d=False"
        )
    draws = [_draw(weights, ignore_1d, generator) for _ in range(count)]
    if normalize is None:
        flat = torch.stack([float64(flatten(draw)) for draw in draws], dim=1)
        basis = _orthogonalize(flat[None])[0]
        found = [unflatten(vector, weights) for vector in basis.unbind(1)]
        return [{n: t.to(weights[n]) for n, t in direction.items()} for direction in found]
    directions: list[Weights] = [{} for _ in range(count)]
    for name, tensor in weights.items():
        # Blocks as a batch of matrices (blocks, entries of a block, count).
        blocks = torch.stack([_blocks(float64(d[name]), normalize) for d in draws], dim=2)
        blocks = _orthogonalize(blocks)
        lengths = _blocks(float64(tensor), normalize).norm(dim=1, keepdim=True)[..., None]
        norms = blocks.norm(dim=1, keepdim=True)
        scaled = torch.where(norms > 0, blocks * (lengths / norms), 0.0)
        for direction, part in zip(directions, scaled.unbind(2), strict=True):
            direction[name] = part.reshape(tensor.shape).to(tensor)
    return directions


def pca_directions(trajectory: Sequence[Weights], k: int = 2) -> tuple[list[Weights], list[float]]:
    """Return the principal directions of a trajectory, seen from its last point.

    The rows ``w_t - w_T`` of all points but the last are decomposed without centring, so that the
    plane passes through the final weights (Li et al., 2018, section 7).

    Args:
        trajectory: at least k + 1 weight vectors, in the order of training.
        k: how many directions.

    Returns:
        k orthonormal weight vectors, and the fraction of the squared distances that each
        one explains.

    Raises:
        TypeError: ``trajectory`` is not a sequence of weight vectors.
        ValueError: the trajectory is too short, its vectors differ in names or shapes, or it does
            not move.
    """
    _check_count("k", k)
    if not isinstance(trajectory, Sequence):
        raise TypeError(
            f"trajectory: expected a sequence of weight vectors, got {type(trajectory).__name__}"
        )
    if len(trajectory) < k + 1:
        raise ValueError(
            f"trajectory: {k} directions need at least {k + 1} points, got {len(trajectory)}"
        )
    last = trajectory[-1]
    for step, point in enumerate(trajectory):
        check_like(point, last, f"trajectory[{step}]", "the last point")
        check_weights(point, f"trajectory[{step}]")
    end = float64(flatten(last))
    offsets = torch.stack([float64(flatten(point)) - end for point in trajectory[:-1]])
    # The Gram matrix is (steps, steps): its eigenvectors give the principal directions at the
    # cost of one product, however many weights there are.
    values, vectors = torch.linalg.eigh(offsets @ offsets.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    if total == 0 or float(values[k - 1]) <= 1e-14 * float(values[0]):
        raise ValueError(f"trajectory: spans fewer than {k} direction(s)")
    principal = (vectors[:, :k].T @ offsets) / values[:k, None].sqrt()
    # Squared, a small component is only as exact as its square: QR makes it orthonormal again.
    principal = torch.linalg.qr(principal.T).Q.T.contiguous()
    # An eigenvector's sign is arbitrary; the start of training is put on the positive side.
    principal *= torch.where(principal @ offsets[0] < 0, -1.0, 1.0)[:, None]
    dtype = flatten(last).dtype
    directions = [unflatten(vector.to(dtype), last) for vector in principal]
    return directions, (values[:k] / total).tolist()


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def project(trajectory: Sequence[Weights], plane: Slice) -> xr.Dataset:
    """Say where each point of a trajectory lies in a slice, and how far from it.

    The foot of each point is its least-squares projection: the directions of the slice need be
    neither orthogonal nor of length 1.

    Args:
        trajectory: weight vectors.
        plane: a slice of any dimension; only its origin and directions count.

    Returns:
        Over ``step``: ``coordinates`` (step, direction), in units of the directions; ``distance``
        of the point from its foot and ``distance_from_origin``, both in units of the weights.

    Raises:
        TypeError, ValueError: names or shapes differ from those of the slice; there is no point;
            the slice's directions are linearly dependent.
    """
    if len(trajectory) == 0:
        raise ValueError("trajectory: expected at least one weight vector, got none")
    axes = torch.stack([float64(flatten(d)) for d in plane.directions])
    gram = axes @ axes.T
    if np.linalg.matrix_rank(gram.cpu().numpy(), hermitian=True) < len(axes):
        raise ValueError("plane: its directions are linearly dependent, so feet are not unique")
    origin = float64(flatten(plane.origin))
    feet, distances, lengths = [], [], []
    for step, point in enumerate(trajectory):
        check_like(point, plane.origin, f"trajectory[{step}]", "the slice's origin")
        offset = float64(flatten(point)) - origin
        foot = torch.linalg.solve(gram, axes @ offset)
        feet.append(foot.tolist())
        distances.append(float((offset - foot @ axes).norm()))
        lengths.append(float(offset.norm()))
    return xr.Dataset(
        {
            "coordinates": (("step", "direction"), feet),
            "distance": ("step", distances),
            "distance_from_origin": ("step", lengths),
        }
    )


def project_on_line(
    trajectory: Sequence[Weights], start: Weights, end: Weights
) -> tuple[list[float], list[float]]:
    """Say how far each point of a trajectory is from the line through two weight vectors.

    Args:
        trajectory: weight vectors.
        start: the line's point at alpha = 0.
        end: the line's point at alpha = 1.

    Returns:
        For each point alpha of the foot of its perpendicular on the line, and its distance from
        the line in units of the line's length.

    Raises:
        ValueError: names or shapes differ, or ``end`` equals ``start``.
    """
    line = Line.between(start, end, [0.0, 1.0])
    found = project(trajectory, line)
    length = norm(line.directions[0])
    return found.coordinates.values[:, 0].tolist(), (found.distance.values / length).tolist()


def _draw(weights: Weights, ignore_1d: bool, generator: torch.Generator | None) -> Weights:
    # Drawn on the CPU so that a seed means the same direction on every device.
    return {
        name: torch.zeros_like(tensor)
        if (ignore_1d and tensor.dim() <= 1) or not tensor.is_floating_point()
        else torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
        for name, tensor in weights.items()
    }


def _blocks(tensor: Tensor, normalize: str) -> Tensor:
    if normalize == "layer":
        return tensor.reshape(1, -1)
    return tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)


def _orthogonalize(blocks: Tensor) -> Tensor:
    """Gram-Schmidt over the last dimension of (blocks, entries, count), twice for accuracy."""
    done: list[Tensor] = []
    for column in blocks.unbind(2):
        length = column.norm(dim=1, keepdim=True)
        for _ in range(2):
            for other in done:
                squared = (other * other).sum(1, keepdim=True)
                share = (column * other).sum(1, keepdim=True) / torch.where(
                    squared > 0, squared, 1.0
                )
                column = column - share * other
        left = column.norm(dim=1, keepdim=True)
        done.append(torch.where(left > 1e-5 * length, column, 0.0))
    return torch.stack(done, dim=2)
