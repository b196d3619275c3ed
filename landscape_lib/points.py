"""A private copy of a model that can be put at any point of a slice, and measured there."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from landscape_lib import batchnorm, first_layer, fusing, precision
from landscape_lib.batches import (
    Batch,
    Group,
    channels_last_pays,
    group,
    move,
    reads_channels_last,
    split,
)
from landscape_lib.folding import can_fold
from landscape_lib.layout import Layout
from landscape_lib.measures import Measures
from landscape_lib.precision import at_least_float32
from landscape_lib.prepared import Prepared
from landscape_lib.slices import Slice
from landscape_lib.trials import cloned, habits, output_of
from landscape_lib.weights import Weights
from landscape_lib.workload import workload

Indices = NDArray[np.int64]
T = TypeVar("T")


class Points:
    """The points of a slice as models.

    Args:
        model: it is copied.
        slice: the points.
        example: inputs of a few samples, on which it is tried what the model can do.
        dtype: compute dtype; the model's own if ``None``. Where ``precision.autocasts`` says so,
            weights and inputs are float32 and forward passes run in ``precision.autocast``.
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
        example: Any,
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
        self._cut = self._fuse = False
        self._ready: Prepared | None = None
        self._probe = copy.deepcopy(model).train(training).requires_grad_(False)
        batchnorm.follow_running_statistics(self._probe)
        if policy == "batch":
            batchnorm.use_batch_statistics(self._probe)
        first = next(self._probe.parameters())
        self.device = first.device
        example = cloned(example)
        own = move(Batch(example, None, 1), self.device, first.dtype).x
        self._overwrites = False
        self._foldable = can_fold(self._probe, own)
        # Points are built in at least float32: a step along a direction can be smaller than
        # bfloat16 resolves.
        # With autocast in float32: it leaves float64 as it is.
        self.autocast = dtype if precision.autocasts(self.device, dtype) else None
        self._probe.to(dtype=torch.float32 if self.autocast else dtype)
        self.dtype = next(self._probe.parameters()).dtype
        self._precise = torch.promote_types(self.dtype, torch.float32)
        self._fixed = self._to_precise(batchnorm.statistics_of(model))
        buffers = dict(self._probe.named_buffers())
        self._buffers = {n: b.clone() for n, b in buffers.items() if n not in self._fixed}
        self._example = move(Batch(example, None, 1), self.device, self.dtype).x
        # Dropout draws its mask in the order in which values are stored: under vmap that is not
        # channels-last.
        self._overwrites, draws = habits(lambda x: self._run(self._probe, x), self._example)
        self._draws = training or draws
        self.work = self._run(workload, self._probe, self._example)
        # All at once: a copy to an accelerator waits for all that it has to do.
        places = torch.from_numpy(slice.coefficients(slice.coordinates))
        self._places = places.to(self.device, self._precise)
        self._statistics = [self._to_precise(vector) for vector in statistics]
        self._calibration = list(calibration)
        self._store(channels_last=False)
        if self.device.type == "cpu":  # whatever the method
            self._choose_layout()

    @property
    def count(self) -> int:
        """Number of parameters."""
        return self._layout.count

    def choose(self, method: str) -> None:
        """Store weights, and lay out images, as the method computes fastest; call it once."""
        computed = self.autocast or self.dtype
        if self.device.type != "cpu" and channels_last_pays(self.device, computed, method):
            self._choose_layout()
        self._calibration = self.lay_out(self._calibration)
        # Under vmap these kernels have no rule; products of 64 bits they do not have.
        if fusing.available(self.device) and method == "loop" and computed.itemsize <= 4:
            ready = self._prepared
            ready.load(self._layout.views(self._flat) | self._fixed)
            self._fuse = self._run(fusing.can_fuse, ready.module, self._example)
            self._ready = None

    def _choose_layout(self) -> None:
        """Store everything channels-last if the model runs on that."""
        if self._draws:
            return
        plain = self._run(output_of, self._probe, self._example)
        reads = lambda x: reads_channels_last(self._probe, x, plain)  # noqa: E731
        if self._run(reads, self._example):
            self._store(channels_last=True)
            if not self._run(reads, self._example):  # the images, but not the filters
                self._store(channels_last=False)

    def _store(self, channels_last: bool) -> None:
        self._layout = Layout(dict(self._probe.named_parameters()), channels_last)
        self._tie()
        vectors = [self._layout.flatten(vector) for vector in self.slice.basis]
        self._basis = torch.stack(vectors).to(self.device, self._precise)

    def _run(self, forward: Callable[..., T], *args: Any) -> T:
        """Call what runs the model; building a point and measuring there stay outside."""
        if self._overwrites:
            args = (*args[:-1], cloned(args[-1]))
        if self.autocast is None:
            return forward(*args)
        with precision.autocast(self.device, self.autocast):
            return forward(*args)

    def _to_precise(self, tensors: Weights) -> Weights:
        return {name: t.to(self.device, self._precise) for name, t in tensors.items()}

    def _tie(self) -> None:
        """Make all parameters views of one flat vector, so that a point is one product."""
        self._parameters = dict(self._probe.named_parameters())
        self._flat = self._layout.flatten(self._parameters)
        for name, view in self._layout.views(self._flat).items():
            self._parameters[name].data = view
        self._ready = None

    @property
    def _prepared(self) -> Prepared:
        # Made anew in every process: a traced model does not travel well.
        if self._ready is None:
            settings = (self._foldable, self._cut, self._fuse)
            self._ready = Prepared(self._probe, self.dtype, *settings)
        return self._ready

    def __getstate__(self) -> dict[str, Any]:
        # A view is pickled with all of its storage: parameters travel as tensors of their own.
        state = vars(self) | {"_probe": copy.deepcopy(self._probe)}
        for name in ("_parameters", "_flat", "_ready"):
            del state[name]
        for parameter in state["_probe"].parameters():
            parameter.data = parameter.data.clone()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tie()

    def lay_out(self, batches: list[Batch]) -> list[Batch]:
        """Return batches on the device, images channels-last if the model runs on that."""
        return [move(b, self.device, self.dtype, self._layout.channels_last) for b in batches]

    def output_of_model(self, batch: Batch) -> Any:
        """Return the output at the caller's own weights; ask before any sums."""
        with torch.no_grad():
            return _readable(self._run(self._probe, batch.x))

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
        self._flat.copy_(vector)
        # What a pass changes, the next point must not see.
        for name, buffer in self._buffers.items():
            self._probe.get_buffer(name).copy_(buffer)
        torch.manual_seed(self.seed)
        if self.policy == "reestimated":
            self._run(batchnorm.reestimate, self._probe, [b.x for b in self._calibration])
            statistics = self._to_precise(batchnorm.statistics_of(self._probe))
        elif statistics is not None:
            batchnorm.load_statistics(self._probe, statistics)
        self._prepared.load(self._layout.views(vector) | (statistics or self._fixed))

    def with_reference(
        self, groups: list[Group], measures: Measures, weights: Weights
    ) -> list[Group]:
        """Return the groups with what is measured on them at some weights."""
        with torch.no_grad():
            there = {name: weights[name].to(self._basis) for name in self._parameters}
            self._move_to(self._layout.flatten(there))
            return [
                replace(g, reference=measures.values(self._output(g.passes), g.y, g.size)[0])
                for g in groups
            ]

    @torch.no_grad()
    def cut_first_layer(self, stages: list[list[Group]]) -> list[list[Group]]:
        """Return the groups with outputs of the first layer for inputs, if that saves work.

        The points then run only what follows that layer.
        """
        passes = [x for stage in stages for group in stage for x in group.passes]
        basis = [self._layout.views(vector) for vector in self._basis]
        outputs = first_layer.outputs(self._prepared.module, passes, basis, len(self.slice))
        if outputs is None:
            return stages
        self._cut, self._ready = True, None
        left = iter(outputs)
        return [
            [replace(g, passes=tuple(islice(left, len(g.passes)))) for g in stage]
            for stage in stages
        ]

    def _input(self, x: Any, coefficients: Tensor) -> Any:
        """Return what the model reads at a point, or what its first layer gives there."""
        return first_layer.combine(coefficients, x).to(self.dtype) if self._cut else x

    def _output(self, passes: Iterable[Any]) -> Any:
        return _joined([self._run(self._prepared.module, x) for x in passes])

    def run_at(self, index: int, batch: Batch) -> Any:
        """Return the output at a point."""
        with torch.no_grad():
            self._go_to(index)
            return self._output([batch.x])

    def _go_to(self, index: int) -> Tensor:
        """Move to a point and return its coefficients, shape (m,)."""
        coefficients = self._coefficients(np.array([index]))
        statistics = None
        if self.policy == "interpolated":
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
        if self.policy == "interpolated":
            statistics = self._statistics_at(coefficients)
        torch.manual_seed(self.seed)
        ready = self._prepared

        def at_point(
            coefficients: Tensor, vector: Tensor, statistics: Weights, group: Group
        ) -> Tensor:
            found = self._layout.views(vector) | (statistics or self._fixed)
            found |= ready.folded(found)
            weights = {n: t.to(self.dtype) for n, t in found.items() if n in ready.names}
            inputs = (self._input(x, coefficients) for x in group.passes)
            outputs = [self._run(functional_call, ready.module, weights, (x,)) for x in inputs]
            return measures.sums(_joined(outputs), group.y, group.size, group.reference)

        at_points = vmap(at_point, in_dims=(0, 0, 0, None), randomness="same")
        vectors = coefficients @ self._basis
        with warnings.catch_warnings():  # of operations that vmap takes one by one
            warnings.filterwarnings("ignore", "There is a performance drop")
            parts = [at_points(coefficients, vectors, statistics, group) for group in groups]
        return torch.stack(parts).sum(0)


def _joined(outputs: list[Any]) -> Any:
    """Return the output of several forward passes as one."""
    return _readable(outputs[0] if len(outputs) == 1 else torch.cat(outputs))


def _readable(output: Any) -> Any:
    """Return an output of at least float32, images in the layout that losses may take views of."""
    output = at_least_float32(output)
    images = lambda t: isinstance(t, Tensor) and t.dim() == 4  # noqa: E731
    return tree_map(lambda t: t.contiguous() if images(t) else t, output)
