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
from torch.func import vmap

from landscape_lib.evaluation import batchnorm
from landscape_lib.evaluation.batches import Batch, Group, group, split
from landscape_lib.evaluation.measures import Measures
from landscape_lib.evaluation.movable import Movable
from landscape_lib.evaluation.nested import concatenated, map_tensors
from landscape_lib.evaluation.precision import at_least_float32
from landscape_lib.evaluation.shortcuts import first_layer
from landscape_lib.slices import Slice
from landscape_lib.weights import Weights, call_with

Indices = NDArray[np.int64]


class Points:
    """The points of a slice as models; arguments as of :class:`Movable` and of ``evaluate``."""

    def __init__(
        self,
        model: nn.Module,
        slice: Slice,
        example: Any,
        dtype: torch.dtype | None = None,
        training: bool = False,
        seed: int = 0,
        policy: str = "frozen",
        statistics: Sequence[Weights] = (),
        calibration: Sequence[Batch] = (),
        shortcuts: bool = True,
    ) -> None:
        self.slice = slice
        self.model = Movable(model, example, dtype, training, seed, policy, shortcuts)
        self._places = slice.coefficients(slice.coordinates)
        # All at once: a copy to an accelerator waits for all that it has to do.
        precise = torch.promote_types(self.model.dtype, torch.float32)
        self._there = torch.from_numpy(self._places).to(self.model.device, precise)
        self._policy = policy
        self._statistics = [
            {n: t.to(self.model.statistics[n]) for n, t in vector.items()} for vector in statistics
        ]
        self._calibration = list(calibration)
        self._basis = [self.model.stored(vector) for vector in slice.basis]

    @property
    def calibrating(self) -> int:
        """Samples that pass the model at each point before any that is measured."""
        return sum(batch.size for batch in self._calibration)

    def choose(self, method: str) -> None:
        """Store weights, and lay out images, as the method computes fastest; call it once."""
        before = self.model.channels_last
        self.model.choose(method)
        if self.model.channels_last is not before:
            self._basis = [self.model.stored(vector) for vector in self.slice.basis]
        self._calibration = self.model.lay_out(self._calibration)

    def output_of_model(self, x: Any) -> Any:
        """Return the output at the caller's own weights; ask before any sums."""
        with torch.no_grad():
            self.model.start()
            return _readable(self.model.run(self.model.module, x))

    def keeps_samples_apart(self, batch: Batch, output: Any) -> bool:
        """Say whether fewer samples give as many fewer entries of the output."""
        few = split(batch, min(2, max(1, batch.size // 2)))[0]
        try:
            less = self.output_of_model(few.x)
        except Exception:
            return False
        if not isinstance(output, Tensor) or not isinstance(less, Tensor):
            return False
        sizes = output.shape[:1] + less.shape[:1]
        return sizes == (batch.size, few.size) and output.shape[1:] == less.shape[1:]

    def sums(
        self, indices: Indices, groups: list[Group], measures: Measures, method: str
    ) -> Tensor:
        """Return the sums over the groups at some points, shape (k, measures, SUMS)."""
        if method == "vmap":
            return self._by_vmap(indices, groups, measures)
        return torch.stack([self._by_loop(i, groups, measures) for i in indices.tolist()])

    def can_vmap(self, batch: Batch, measures: Measures) -> bool:
        """Say whether one point can be measured by ``vmap``: not every operation has a rule."""
        if self.model.habits.remembers:
            return False
        try:
            return not self.vmap_differs(batch, measures)
        except Exception:
            return False

    @torch.no_grad()
    def vmap_differs(self, batch: Batch, measures: Measures) -> bool:
        """Say whether a point far from the model has other sums by ``vmap`` than by the loop.

        Parameters that a model holds in places of its own are not replaced by ``vmap``.
        """
        far = np.array([int(np.abs(self.slice.coordinates).sum(1).argmax())])
        groups = group([batch], 0)
        found = self.sums(far, groups, measures, "vmap")
        expected = self.sums(far, groups, measures, "loop")
        if self.model.draws:
            return False
        room = 4 * torch.finfo(self.model.computed).eps ** 0.5
        return not torch.allclose(found, expected, rtol=room, atol=room, equal_nan=True)

    def describe(self, indices: Indices) -> str:
        """Name some points for an error message."""
        first = self.slice.coordinates[indices[0]].tolist()
        names = self.slice.dims if len(self.slice.dims) == len(first) else range(len(first))
        place = ", ".join(f"{n}={c:g}" for n, c in zip(names, first, strict=True))
        others = f" or one of the {len(indices) - 1} after it" if len(indices) > 1 else ""
        return f"point {indices[0]} ({place}){others}"

    def with_reference(
        self, groups: list[Group], measures: Measures, weights: Weights
    ) -> list[Group]:
        """Return the groups with what is measured on them at some weights."""
        with torch.no_grad():
            self._move_to([self.model.stored(weights)], [1.0])
            outputs = ((g, self._output(g.passes)) for g in groups)
            return [replace(g, reference=measures.values(output, g)[0]) for g, output in outputs]

    @torch.no_grad()
    def shorten(self, stages: list[list[Group]]) -> list[list[Group]]:
        """Return the groups with the first layer's outputs as inputs, if that saves work."""
        if not self.model.may_cut:
            return stages
        passes = [x for stage in stages for group in stage for x in group.passes]
        basis = [dict(zip(self.model.names, vector, strict=True)) for vector in self._basis]
        found = first_layer.outputs(self.model.module, passes, basis, len(self.slice))
        if found is not None:
            self.model.leave_out_first_layer()
        left = iter(found or passes)
        return [
            [replace(g, passes=tuple(islice(left, len(g.passes)))) for g in stage]
            for stage in stages
        ]

    def _move_to(
        self,
        vectors: Sequence[list[Tensor]],
        coefficients: Sequence[float],
        statistics: Weights | None = None,
    ) -> None:
        calibration = self._calibration if self._policy == "reestimated" else None
        self.model.move_to(vectors, coefficients, statistics, calibration)

    def go_to(self, index: int) -> None:
        """Move the model to a point."""
        statistics = None
        if self._policy == "interpolated":
            found = self._statistics_at(np.array([index]))
            statistics = {name: tensor[0] for name, tensor in found.items()}
        self._move_to(self._basis, self._places[index].tolist(), statistics)

    def _statistics_at(self, indices: Indices) -> Weights:
        """Return running statistics at some points, shapes (k, ...), in full precision."""
        coefficients = torch.from_numpy(self._places[indices])
        return batchnorm.statistics_along(self._statistics, coefficients)

    def _coefficients(self, indices: Indices) -> Tensor:
        return torch.stack([self._there[index] for index in indices.tolist()])

    def _input(self, x: Any, coefficients: Tensor | None) -> Any:
        """Return what the model reads at a point, or what its first layer gives there."""
        if coefficients is None:
            return x
        return first_layer.combine(coefficients, x).to(self.model.dtype)

    def _output(self, passes: Iterable[Any]) -> Any:
        return _joined([self.model.run(self.model.ready, x) for x in passes])

    def _by_loop(self, index: int, groups: list[Group], measures: Measures) -> Tensor:
        self.go_to(index)
        cut = self.model.cut
        coefficients = self._coefficients(np.array([index]))[0] if cut else None
        parts = []
        for g in groups:
            output = self._output(self._input(x, coefficients) for x in g.passes)
            parts.append(measures.sums(output, g))
        return torch.stack(parts).sum(0)

    def _by_vmap(self, indices: Indices, groups: list[Group], measures: Measures) -> Tensor:
        statistics = {}
        if self._policy == "interpolated":
            statistics = self._statistics_at(indices)
        self.model.start()
        ready, cut, names = self.model.ready, self.model.cut, self.model.names
        dtypes = {n: t.dtype for n, t in self.model.module.named_parameters()}
        basis = [torch.stack(tensors) for tensors in zip(*self._basis, strict=True)]
        # All names of what is shared: a model and its graph may each list another one first.
        held = {n for n, _ in ready.named_parameters(remove_duplicate=False)}
        held |= {n for n, _ in ready.named_buffers(remove_duplicate=False)}

        def at_point(coefficients: Tensor, statistics: Weights, group: Group) -> Tensor:
            along = [torch.tensordot(coefficients.to(t), t, dims=1) for t in basis]
            found = dict(zip(names, along, strict=True)) | (statistics or self.model.statistics)
            weights = {
                n: t.to(dtypes.get(n, self.model.dtype)) for n, t in found.items() if n in held
            }
            inputs = (self._input(x, coefficients if cut else None) for x in group.passes)
            run = self.model.run
            outputs = [run(call_with, ready, weights, x) for x in inputs]
            return measures.sums(_joined(outputs), group)

        at_points = vmap(at_point, in_dims=(0, 0, None), randomness="same")
        coefficients = self._coefficients(indices)
        with warnings.catch_warnings():  # of operations that vmap takes one by one
            warnings.filterwarnings("ignore", "There is a performance drop")
            parts = [at_points(coefficients, statistics, group) for group in groups]
        return torch.stack(parts).sum(0)


def _joined(outputs: list[Any]) -> Any:
    """Return the output of several forward passes as one, which a loss may do anything with."""
    return _readable(outputs[0] if len(outputs) == 1 else concatenated(outputs))


def _readable(output: Any) -> Any:
    """Return an output of at least float32, images in the layout that losses may take views of."""
    images = lambda t: t.contiguous() if t.dim() == 4 else t  # noqa: E731
    return map_tensors(lambda t: images(at_least_float32(t)), output)
