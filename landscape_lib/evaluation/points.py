"""A model at the points of a slice, and what is measured there."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from landscape_lib.evaluation import batchnorm, precision
from landscape_lib.evaluation.batches import Batch, Group, group, split
from landscape_lib.evaluation.measures import Measures
from landscape_lib.evaluation.movable import Movable
from landscape_lib.evaluation.precision import at_least_float32
from landscape_lib.evaluation.shortcuts import first_layer, patches
from landscape_lib.slices import Slice
from landscape_lib.weights import Weights

Indices = NDArray[np.int64]


class Points:
    """The points of a slice as models.

    Args:
        model: as ``example``, ``dtype``, ``training``, ``seed`` and ``policy``, see
            :class:`Movable`.
        slice: the points.
        example: inputs of a few samples.
        dtype: compute dtype.
        training: run in training mode.
        seed: of random numbers that the model draws: the same at every point.
        policy: of batch norm, one of ``batchnorm.POLICIES``.
        statistics: for ``"interpolated"``: running statistics for each vector of the slice's basis.
        calibration: for ``"reestimated"``: the batches on which statistics are measured.

    Attributes:
        model: the copy of the model that is moved.
    """

    def __init__(
        self,
        model: nn.Module,
        slice: Slice,
        example: Any,
        dtype: torch.dtype | None,
        training: bool,
        seed: int,
        policy: str,
        statistics: Sequence[Weights],
        calibration: Sequence[Batch],
    ) -> None:
        self.slice = slice
        self.model = Movable(model, example, dtype, training, seed, policy)
        # All at once: a copy to an accelerator waits for all that it has to do.
        places = torch.from_numpy(slice.coefficients(slice.coordinates))
        self._places = places.to(self.model.device, self.model.precise)
        self._policy = policy
        self._statistics = [self.model.to_precise(vector) for vector in statistics]
        self._calibration = list(calibration)
        self._basis = self._stored_basis()

    def choose(self, method: str) -> None:
        """Store weights, and lay out images, as the method computes fastest; call it once."""
        before = self.model.layout
        self.model.choose(method)
        if self.model.layout is not before:
            self._basis = self._stored_basis()
        self._calibration = self.model.lay_out(self._calibration)

    def _stored_basis(self) -> Tensor:
        vectors = [self.model.layout.flatten(vector) for vector in self.slice.basis]
        return torch.stack(vectors).to(self.model.device, self.model.precise)

    def output_of_model(self, batch: Batch) -> Any:
        """Return the output at the caller's own weights; ask before any sums."""
        return _readable(self.model.output_of_model(batch.x))

    def keeps_samples_apart(self, batch: Batch, output: Any) -> bool:
        """Say whether an output is a tensor with one entry per sample, first of all dimensions.

        Fewer samples must give fewer entries, and leave the other dimensions as they are.
        """
        few = split(batch, min(2, max(1, batch.size // 2)))[0]
        try:
            less = self.output_of_model(few)
        except Exception:
            return False
        if not isinstance(output, Tensor) or not isinstance(less, Tensor):
            return False
        sizes = output.shape[:1] + less.shape[:1]
        return sizes == (batch.size, few.size) and output.shape[1:] == less.shape[1:]

    def sums(
        self, indices: Indices, groups: list[Group], measures: Measures, method: str
    ) -> Tensor:
        """Return the sums over the groups at some points, shape (k, measures, 2)."""
        if method == "vmap":
            return self._by_vmap(indices, groups, measures)
        return torch.stack([self._by_loop(i, groups, measures) for i in indices.tolist()])

    def can_vmap(self, batch: Batch, measures: Measures) -> bool:
        """Say whether one point can be measured by ``vmap``: not every operation has a rule."""
        try:
            with torch.no_grad():
                self.sums(np.array([0]), group([batch], 0), measures, "vmap")
        except Exception:
            return False
        return True

    def describe(self, indices: Indices) -> str:
        """Name some points for an error message."""
        first = self.slice.coordinates[indices[0]].tolist()
        names = self.slice.dims if len(self.slice.dims) == len(first) else range(len(first))
        place = ", ".join(f"{n}={c:g}" for n, c in zip(names, first, strict=True))
        others = f" or one of the {len(indices) - 1} after it" if len(indices) > 1 else ""
        return f"point {indices[0]} ({place}){others}"

    def _coefficients(self, indices: Indices) -> Tensor:
        return torch.stack([self._places[index] for index in indices.tolist()])

    def _statistics_at(self, coefficients: Tensor) -> Weights:
        """Return running statistics at some points, shapes (k, ...), in full precision."""
        return batchnorm.statistics_along(self._statistics, coefficients)

    def _move_to(self, vector: Tensor, statistics: Weights | None = None) -> None:
        calibration = self._calibration if self._policy == "reestimated" else None
        self.model.move_to(vector, statistics, calibration)

    def with_reference(
        self, groups: list[Group], measures: Measures, weights: Weights
    ) -> list[Group]:
        """Return the groups with what is measured on them at some weights."""
        with torch.no_grad():
            vector = self.model.layout.flatten(weights)
            self._move_to(vector.to(self._basis))
            return [
                replace(g, reference=measures.values(self._output(g.passes), g.y, g.size)[0])
                for g in groups
            ]

    @torch.no_grad()
    def shorten(self, stages: list[list[Group]], method: str) -> list[list[Group]]:
        """Return the groups with what the first layer makes of the inputs, if that saves work.

        These are its outputs, so that the points run only what follows that layer, or the patches
        that it multiplies.
        """
        passes = [x for stage in stages for group in stage for x in group.passes]
        basis = [self.model.layout.views(vector) for vector in self._basis]
        module, points = self.model.prepared.module, len(self.slice)
        found = first_layer.outputs(module, passes, basis, points)
        self.model.take(cut=found is not None)
        if found is None and method == "loop" and self._can_gather():
            found = patches.gathered(module, passes, points)
            self.model.take(gather=found is not None)
        left = iter(found or passes)
        return [
            [replace(g, passes=tuple(islice(left, len(g.passes)))) for g in stage]
            for stage in stages
        ]

    def _can_gather(self) -> bool:
        """Say whether a product with patches is what a convolution is.

        Dropout draws its mask in the order in which values are stored; a weight that is not finite
        may meet nothing but the margin of the images, which is 0.
        """
        alike = precision.multiplies_alike(self.model.device)
        return alike and not self.model.draws and bool(self._basis.isfinite().all())

    def _input(self, x: Any, coefficients: Tensor) -> Any:
        """Return what the model reads at a point, or what its first layer gives there."""
        cut = self.model.shortcuts.cut
        return first_layer.combine(coefficients, x).to(self.model.dtype) if cut else x

    def _output(self, passes: Iterable[Any]) -> Any:
        ready = self.model.prepared
        with ready.gradients_off():
            outputs = [self.model.run(ready.module, x) for x in passes]
        return _joined(outputs)

    def run_at(self, index: int, batch: Batch) -> Any:
        """Return the output at a point."""
        with torch.no_grad():
            self._go_to(index)
            return self._output([batch.x])

    def _go_to(self, index: int) -> Tensor:
        """Move to a point and return its coefficients, shape (m,)."""
        coefficients = self._coefficients(np.array([index]))
        statistics = None
        if self._policy == "interpolated":
            statistics = {n: t[0] for n, t in self._statistics_at(coefficients).items()}
        self._move_to((coefficients @ self._basis)[0], statistics)
        return coefficients[0]

    def _by_loop(self, index: int, groups: list[Group], measures: Measures) -> Tensor:
        coefficients = self._go_to(index)
        parts = []
        for g in groups:
            output = self._output(self._input(x, coefficients) for x in g.passes)
            parts.append(measures.sums(output, g.y, g.size, g.reference))
        return torch.stack(parts).sum(0)

    def _by_vmap(self, indices: Indices, groups: list[Group], measures: Measures) -> Tensor:
        coefficients = self._coefficients(indices)
        statistics = {}
        if self._policy == "interpolated":
            statistics = self._statistics_at(coefficients)
        self.model.restart_random_numbers()
        ready = self.model.prepared

        def at_point(
            coefficients: Tensor, vector: Tensor, statistics: Weights, group: Group
        ) -> Tensor:
            found = self.model.layout.views(vector) | (statistics or self.model.statistics)
            found |= ready.folded(found)
            weights = {n: t.to(self.model.dtype) for n, t in found.items() if n in ready.names}
            inputs = (self._input(x, coefficients) for x in group.passes)
            run, module = self.model.run, ready.module
            outputs = [run(functional_call, module, weights, (x,)) for x in inputs]
            return measures.sums(_joined(outputs), group.y, group.size, group.reference)

        at_points = vmap(at_point, in_dims=(0, 0, 0, None), randomness="same")
        vectors = coefficients @ self._basis
        with warnings.catch_warnings():  # of operations that vmap takes one by one
            warnings.filterwarnings("ignore", "There is a performance drop")
            parts = [at_points(coefficients, vectors, statistics, group) for group in groups]
        return torch.stack(parts).sum(0)


def _joined(outputs: list[Any]) -> Any:
    """Return the output of several forward passes as one, which a loss may do anything with."""
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return tree_map(_ordinary, _readable(output))


def _ordinary(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _readable(output: Any) -> Any:
    """Return an output of at least float32, images in the layout that losses may take views of."""
    output = at_least_float32(output)
    images = lambda t: isinstance(t, Tensor) and t.dim() == 4  # noqa: E731
    return tree_map(lambda t: t.contiguous() if images(t) else t, output)
