"""A private copy of a model that can be put at any point of a slice, and measured there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from landscape_lib import batchnorm
from landscape_lib.batches import Batch, move, own, reads_channels_last
from landscape_lib.measures import Measures, mean_and_error
from landscape_lib.slices import FloatArray, Slice
from landscape_lib.weights import Weights, count, flatten, unflatten

Indices = NDArray[np.int64]


class Points:
    """The points of a slice as models.

    Args:
        model: it is copied.
        slice: the points.
        dtype: compute dtype; the model's own if ``None``.
        training: run in training mode; batch norm follows its policy all the same.
        seed: of random numbers that the model draws: the same at every point.
        policy: of batch norm, one of ``batchnorm.POLICIES``.
        statistics: for ``"interpolated"``: running statistics for each vector of the slice's basis.
        calibration: for ``"reestimated"``: the batches on which statistics are measured.
    """

    def __init__(
        self,
        model: nn.Module,
        slice: Slice,
        dtype: torch.dtype | None,
        training: bool,
        seed: int,
        policy: str,
        statistics: Sequence[Weights],
        calibration: Sequence[Batch],
    ) -> None:
        self.slice = slice
        self.seed = seed
        self.policy = policy
        self._probe = copy.deepcopy(model).train(training).requires_grad_(False).to(dtype=dtype)
        batchnorm.follow_running_statistics(self._probe)
        if policy == "batch":
            batchnorm.use_batch_statistics(self._probe)
        parameters = dict(self._probe.named_parameters())
        first = next(iter(parameters.values()))
        self.count = count(parameters)
        self.device = first.device
        # Points are built in at least float32: a step along a direction can be smaller than
        # bfloat16 resolves.
        precise = torch.promote_types(first.dtype, torch.float32)
        self._basis = torch.stack([flatten({n: v[n] for n in parameters}) for v in slice.basis]).to(
            first.device, precise
        )
        self._tie()
        self._statistics = [
            {name: tensor.to(self.device, precise) for name, tensor in vector.items()}
            for vector in statistics
        ]
        self._calibration = self.lay_out(list(calibration)) if calibration else []

    def _tie(self) -> None:
        """Make all parameters views of one flat vector, so that a point is one product."""
        self._parameters = dict(self._probe.named_parameters())
        first = next(iter(self._parameters.values()))
        self._flat = torch.empty(self.count, dtype=first.dtype, device=first.device)
        for name, view in unflatten(self._flat, self._parameters).items():
            view.copy_(self._parameters[name])
            self._parameters[name].data = view

    def __getstate__(self) -> dict[str, Any]:
        # A view is pickled with all of its storage: parameters travel as tensors of their own.
        state = vars(self) | {"_probe": copy.deepcopy(self._probe), "_flat": None}
        del state["_parameters"]
        for parameter in state["_probe"].parameters():
            parameter.data = parameter.data.clone()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tie()

    def lay_out(self, batches: list[Batch]) -> list[Batch]:
        """Return batches on the device, images channels-last if the model runs on that."""
        dtype = self._flat.dtype
        batches = [move(batch, self.device, dtype) for batch in batches]
        if not reads_channels_last(self._probe, batches[0].x):
            return batches
        return [move(batch, self.device, dtype, channels_last=True) for batch in batches]

    def output_of_model(self, batch: Batch) -> Any:
        """Return the output at the caller's own weights; ask before any sums."""
        with torch.no_grad():
            return self._output(batch)

    def sums(
        self, indices: Indices, batches: list[Batch], measures: Measures, method: str
    ) -> Tensor:
        """Return the sums over the batches at some points, shape (k, measures, 2)."""
        if method == "vmap":
            return self._by_vmap(indices, batches, measures)
        return torch.stack([self._by_loop(i, batches, measures) for i in indices.tolist()])

    def can_vmap(self, batch: Batch, measures: Measures) -> bool:
        """Say whether one point can be measured by ``vmap``: not every operation has a rule."""
        try:
            with torch.no_grad():
                self.sums(np.array([0]), [batch], measures, "vmap")
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
        coefficients = self.slice.coefficients(self.slice.coordinates[indices])
        return torch.from_numpy(coefficients).to(self._basis)

    def _move_to(self, vector: Tensor) -> None:
        self._flat.copy_(vector)
        torch.manual_seed(self.seed)
        if self.policy == "reestimated":
            batchnorm.reestimate(self._probe, (batch.x for batch in self._calibration))

    def with_reference(
        self, batches: list[Batch], measures: Measures, weights: Weights
    ) -> list[Batch]:
        """Return the batches with what is measured on them at some weights."""
        with torch.no_grad():
            self._move_to(flatten({name: weights[name] for name in self._parameters}))
            return [
                replace(b, reference=measures.values(self._output(b), b.y, b.size)[0])
                for b in batches
            ]

    def _output(self, batch: Batch) -> Any:
        return _at_least_float32(self._probe(batch.x))

    def _by_loop(self, index: int, batches: list[Batch], measures: Measures) -> Tensor:
        coefficients = self._coefficients(np.array([index]))
        self._move_to((coefficients @ self._basis)[0])
        if self.policy == "interpolated":
            mixed = batchnorm.statistics_along(self._statistics, coefficients)
            batchnorm.load_statistics(self._probe, {n: t[0] for n, t in mixed.items()})
        parts = [measures.sums(self._output(b), b.y, b.size, b.reference) for b in batches]
        return torch.stack(parts).sum(0)

    def _by_vmap(self, indices: Indices, batches: list[Batch], measures: Measures) -> Tensor:
        coefficients = self._coefficients(indices)
        vectors = (coefficients @ self._basis).to(self._flat.dtype)
        buffers = {}
        if self.policy == "interpolated":
            mixed = batchnorm.statistics_along(self._statistics, coefficients)
            buffers = {name: tensor.to(self._flat.dtype) for name, tensor in mixed.items()}
        torch.manual_seed(self.seed)

        def at_point(vector: Tensor, buffers: Weights, batch: Batch) -> Tensor:
            weights = unflatten(vector, self._parameters) | buffers
            output = functional_call(self._probe, weights, (batch.x,))
            return measures.sums(_at_least_float32(output), batch.y, batch.size, batch.reference)

        parts = [
            vmap(at_point, in_dims=(0, 0, None), randomness="same")(vectors, buffers, batch)
            for batch in batches
        ]
        return torch.stack(parts).sum(0)


@dataclass
class Task:
    """All that is needed to evaluate points, here or in another process.

    Attributes:
        points: the model along the slice.
        measures: what is measured.
        stages: lists of batches; later stages are needed only while errors are too large.
        names: of the measures, and of their differences from a reference if there is one.
        method: ``"loop"`` or ``"vmap"``.
        tolerance: largest standard error, or ``None``.
        population: number of samples that the means stand for.
    """

    points: Points
    measures: Measures
    stages: list[list[Batch]]
    names: tuple[str, ...]
    method: str
    tolerance: float | None
    population: float

    def __getstate__(self) -> dict[str, Any]:
        # A batch is a view of all data, and would be pickled with all of it.
        return vars(self) | {"stages": [[own(b) for b in stage] for stage in self.stages]}

    def run(self, indices: Indices) -> FloatArray:
        """Return sums and samples at some points, shape (k, names * 2 + 1)."""
        values = np.zeros((len(indices), len(self.names) * 2 + 1))
        active = np.arange(len(indices))
        try:
            with torch.no_grad():
                for stage in self.stages:
                    sums = self.points.sums(indices[active], stage, self.measures, self.method)
                    values[active, :-1] += sums.cpu().numpy().reshape(len(active), -1)
                    values[active, -1] += sum(batch.size for batch in stage)
                    active = active[self._too_uncertain(values[active])]
                    if not active.size:
                        break
        except Exception as error:
            error.add_note(f"landscape_lib.evaluate: at {self.points.describe(indices)}")
            raise
        return values

    def _too_uncertain(self, values: FloatArray) -> NDArray[np.bool_]:
        if self.tolerance is None:
            return np.ones(len(values), dtype=bool)
        sums = values[:, :-1].reshape(len(values), -1, 2)
        mean, error = mean_and_error(sums, values[:, -1:], self.population)
        # Where a mean is not finite, more samples cannot make it so; where there is no standard
        # error, all samples are used.
        with np.errstate(invalid="ignore"):
            return np.any(np.isfinite(mean) & ~(error <= self.tolerance), axis=1)


def choose_method(model: nn.Module, device: torch.device, batch: int, policy: str) -> str:
    """Return ``"loop"`` or ``"vmap"`` by a rule that gives the same answer every time.

    On an accelerator a small network is bound by launches, so points are batched. On a CPU
    grouped convolutions and batched matrix products are slower than plain ones, except where a
    forward pass is so small that the interpreter's overhead dominates. Statistics that are measured
    at each point need the loop.

    Args:
        model: its parameters are counted.
        device: where it runs.
        batch: samples per forward pass.
        policy: of batch norm.
    """
    if policy == "reestimated":
        return "loop"
    parameters = sum(p.numel() for p in model.parameters())
    if device.type == "cpu":
        return "vmap" if parameters * batch <= 1_000_000 else "loop"
    return "vmap" if parameters <= 5_000_000 else "loop"


def _at_least_float32(output: Any) -> Any:
    if isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16):
        return output.float()
    return output
