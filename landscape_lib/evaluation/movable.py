"""A private copy of a model whose weights are one vector, so that moving it is one copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape_lib.evaluation import batchnorm, precision
from landscape_lib.evaluation.batches import Batch, channels_last_pays, move, reads_channels_last
from landscape_lib.evaluation.layout import Layout
from landscape_lib.evaluation.shortcuts import fusing
from landscape_lib.evaluation.shortcuts.folding import can_fold
from landscape_lib.evaluation.shortcuts.prepared import Prepared, Shortcuts
from landscape_lib.evaluation.trials import cloned, habits, output_of
from landscape_lib.evaluation.workload import workload
from landscape_lib.runtime import restart_random_numbers
from landscape_lib.weights import Weights

T = TypeVar("T")


class Movable:
    """A copy of a model that can be moved to any weights.

    Args:
        model: it is copied.
        example: inputs of a few samples, on which it is tried what the model can do.
        dtype: compute dtype; the model's own if ``None``. Where ``precision.autocasts`` says so,
            weights and inputs are float32 and forward passes run in ``precision.autocast``.
        training: run in training mode; batch norm follows its policy all the same.
        seed: of random numbers that the model draws: the same at all weights.
        policy: of batch norm, one of ``batchnorm.POLICIES``.

    Attributes:
        device: of the model.
        dtype: of its weights.
        precise: in which weights are built: at least float32, since a step along a direction can be
            smaller than bfloat16 resolves.
        layout: of the vector.
        draws: whether it draws random numbers.
        shortcuts: what :attr:`prepared` makes use of.
        statistics: the model's own running statistics, in full precision.
        work: of one sample.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        dtype: torch.dtype | None,
        training: bool,
        seed: int,
        policy: str,
    ) -> None:
        self._seed = seed
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
        self.shortcuts = Shortcuts(fold=can_fold(self._probe, own))
        # With autocast in float32: it leaves float64 as it is.
        self._autocast = dtype if precision.autocasts(self.device, dtype) else None
        self._probe.to(dtype=torch.float32 if self._autocast else dtype)
        self.dtype = next(self._probe.parameters()).dtype
        self.precise = torch.promote_types(self.dtype, torch.float32)
        self.statistics = self.to_precise(batchnorm.statistics_of(model))
        buffers = dict(self._probe.named_buffers())
        self._buffers = {n: b.clone() for n, b in buffers.items() if n not in self.statistics}
        self._example = move(Batch(example, None, 1), self.device, self.dtype).x
        # Dropout draws its mask in the order in which values are stored: under vmap that is not
        # channels-last.
        self._overwrites, draws = habits(lambda x: self.run(self._probe, x), self._example)
        self.draws = training or draws
        self.work = self.run(workload, self._probe, self._example)
        self._store(channels_last=False)
        if self.device.type == "cpu":  # whatever the method
            self._choose_layout()

    @property
    def computed(self) -> torch.dtype:
        """The dtype of products."""
        return self._autocast or self.dtype

    @property
    def autocasts(self) -> bool:
        """Whether passes run under autocast."""
        return self._autocast is not None

    def choose(self, method: str) -> None:
        """Store weights, and join layers, as the method computes fastest; call it once."""
        if self.device.type != "cpu" and channels_last_pays(self.device, self.computed, method):
            self._choose_layout()
        # Under vmap these kernels have no rule; products of 64 bits they do not have.
        if fusing.available(self.device) and method == "loop" and self.computed.itemsize <= 4:
            ready = self.prepared
            ready.load(self.layout.views(self._flat) | self.statistics)
            self.take(fuse=self.run(fusing.can_fuse, ready.module, self._example))

    def take(self, **shortcuts: bool) -> None:
        """Change some of the shortcuts."""
        before, self.shortcuts = self.shortcuts, self.shortcuts._replace(**shortcuts)
        if self.shortcuts != before:
            self._ready = None

    def _choose_layout(self) -> None:
        """Store everything channels-last if the model runs on that."""
        if self.draws:
            return
        plain = self.run(output_of, self._probe, self._example)
        reads = lambda x: reads_channels_last(self._probe, x, plain)  # noqa: E731
        if self.run(reads, self._example):
            self._store(channels_last=True)
            if not self.run(reads, self._example):  # the images, but not the filters
                self._store(channels_last=False)

    def _store(self, channels_last: bool) -> None:
        self.layout = Layout(dict(self._probe.named_parameters()), channels_last)
        self._tie()

    def _tie(self) -> None:
        """Make all parameters views of one flat vector, so that a point is one product."""
        parameters = dict(self._probe.named_parameters())
        self._flat = self.layout.flatten(parameters)
        for name, view in self.layout.views(self._flat).items():
            parameters[name].data = view
        self._ready = None

    @property
    def prepared(self) -> Prepared:
        """What to call in place of the model."""
        # Made anew in every process: a traced model does not travel well.
        if self._ready is None:
            self._ready = Prepared(self._probe, self.dtype, self.shortcuts)
        return self._ready

    def __getstate__(self) -> dict[str, Any]:
        # A view is pickled with all of its storage: parameters travel as tensors of their own.
        state = vars(self) | {"_probe": copy.deepcopy(self._probe)}
        for name in ("_flat", "_ready"):
            del state[name]
        for parameter in state["_probe"].parameters():
            parameter.data = parameter.data.clone()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tie()

    def run(self, forward: Callable[..., T], *args: Any) -> T:
        """Call what runs the model; building weights and measuring stay outside."""
        if self._overwrites:
            args = (*args[:-1], cloned(args[-1]))
        if self._autocast is None:
            return forward(*args)
        with precision.autocast(self.device, self._autocast):
            return forward(*args)

    def to_precise(self, tensors: Weights) -> Weights:
        """Return tensors on the model's device, in the dtype in which weights are built."""
        return {name: t.to(self.device, self.precise) for name, t in tensors.items()}

    def lay_out(self, batches: list[Batch]) -> list[Batch]:
        """Return batches on the device, images channels-last if the model runs on that."""
        return [move(b, self.device, self.dtype, self.layout.channels_last) for b in batches]

    def output_of_model(self, x: Any) -> Any:
        """Return the model's output where it is."""
        with torch.no_grad():
            return self.run(self._probe, x)

    def move_to(
        self, vector: Tensor, statistics: Weights | None, calibration: list[Batch] | None
    ) -> None:
        """Move to some weights, as if nothing had run before.

        Args:
            vector: the weights.
            statistics: of batch norm; the model's own if ``None``.
            calibration: batches on which statistics are measured in place of those.
        """
        self._flat.copy_(vector)
        # What a pass changes, the next point must not see.
        for name, buffer in self._buffers.items():
            self._probe.get_buffer(name).copy_(buffer)
        self.restart_random_numbers()
        if calibration is not None:
            self.run(batchnorm.reestimate, self._probe, [b.x for b in calibration])
            statistics = self.to_precise(batchnorm.statistics_of(self._probe))
        elif statistics is not None:
            batchnorm.load_statistics(self._probe, statistics)
        if self.prepared.folds:
            tensors = self.layout.views(vector) | (statistics or self.statistics)
            self.prepared.load(tensors)

    def restart_random_numbers(self) -> None:
        """Let the model draw the same random numbers again."""
        restart_random_numbers(self.device, self._seed)
