"""A private copy of a model that can be moved to any weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from landscape_lib.evaluation import batchnorm, precision
from landscape_lib.evaluation.batches import Batch, channels_last_pays, move, reads_channels_last
from landscape_lib.evaluation.nested import cloned, rebuilt
from landscape_lib.evaluation.shortcuts import first_layer, fusing
from landscape_lib.evaluation.trials import habits, output_of, private_copy
from landscape_lib.evaluation.workload import workload
from landscape_lib.runtime import restart_random_numbers
from landscape_lib.weights import Weights

T = TypeVar("T")


class Movable:
    """A copy of a model that can be moved to any weights.

    Every parameter keeps its own dtype; those of whole numbers stay where they are. A model that
    remembers something from one pass for the next is copied anew for each weights.

    Args:
        model: it is copied.
        example: inputs of a few samples, on which it is tried what the model can do.
        dtype: compute dtype; the model's own if ``None``. Where ``precision.autocasts`` says so,
            weights and inputs are float32 and forward passes run in ``precision.autocast``.
        training: run in training mode; batch norm follows its policy all the same.
        seed: of random numbers that the model draws: the same at all weights.
        policy: of batch norm, one of ``batchnorm.POLICIES``.
        allowed: whether shortcuts may be taken.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        dtype: torch.dtype | None,
        training: bool,
        seed: int,
        policy: str,
        allowed: bool = True,
    ) -> None:
        self._seed = seed
        self.cut = self._fuse = False  # see first_layer, fusing
        self._ready: nn.Module | None = None
        module = private_copy(model).train(training)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        batchnorm.follow_running_statistics(module)
        if policy == "batch":
            batchnorm.use_batch_statistics(module)
        floating = [p for p in module.parameters() if p.is_floating_point()]
        if not floating:
            raise ValueError("model: expected parameters of floating-point numbers, got none")
        self.device = floating[0].device
        example = cloned(example)
        # With autocast in float32: it leaves float64 as it is.
        self._autocast = dtype if precision.autocasts(self.device, dtype) else None
        _cast(module, torch.float32 if self._autocast else dtype)
        self.dtype = torch.float32 if self._autocast else dtype or floating[0].dtype
        # With parameters of several dtypes nobody knows which the inputs are to have.
        mixed = dtype is None and len({p.dtype for p in floating}) > 1
        self._reads, self._allowed = None if mixed else self.dtype, allowed and not mixed
        self.statistics = {
            name: t.to(self.device, torch.promote_types(t.dtype, torch.float32))
            for name, t in batchnorm.statistics_of(model).items()
        }
        self._example = move(Batch(example, None, 1), self.device, self._reads).x
        self._overwrites = False
        self.habits = habits(self.run, module, self._example)
        self._overwrites = self.habits.overwrites
        self.draws = training or self.habits.draws
        self.work = self.run(workload, private_copy(module), self._example)
        self.channels_last = False
        self._pristine = module if self.habits.remembers else None
        self._take(private_copy(module) if self.habits.remembers else module)
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

    @property
    def names(self) -> list[str]:
        """The parameters that move, in their order."""
        return list(self._moving)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self._moving.values())

    def choose(self, method: str) -> None:
        """Store weights, and join layers, as the method computes fastest; call it once."""
        if self.device.type != "cpu" and channels_last_pays(self.device, self.computed, method):
            self._choose_layout()
        # Under vmap these kernels have no rule; products of 64 bits they do not have.
        able = self.may_cut and fusing.available(self.device)
        if able and method == "loop" and self.computed.itemsize <= 4:
            self._fuse = self.run(fusing.can_fuse, self.ready, self._example)
            self._ready = None

    @property
    def may_cut(self) -> bool:
        """Whether :meth:`leave_out_first_layer` is allowed."""
        return self._allowed and not self.habits.remembers

    def leave_out_first_layer(self) -> None:
        """Read what the first layer gives in place of the inputs, from now on."""
        self.cut, self._ready = True, None

    def _choose_layout(self) -> None:
        """Store everything channels-last if the model runs on that."""
        # Dropout draws its mask in the order in which values are stored.
        if self.draws or self.habits.remembers:
            return
        plain = self.run(output_of, self.module, self._example)
        reads = lambda x: reads_channels_last(self.module, x, plain)  # noqa: E731
        if self.run(reads, self._example):
            before = {name: p.data for name, p in self._moving.items()}
            self.module.to(memory_format=torch.channels_last)
            self.channels_last = bool(self.run(reads, self._example))
            if not self.channels_last:  # the images, but not the filters
                for name, tensor in before.items():
                    self._moving[name].data = tensor
            self._ready = None

    def _take(self, module: nn.Module) -> None:
        self.module = module
        self._ready = None
        named = module.named_parameters()
        self._moving = {name: p for name, p in named if p.is_floating_point()}

    @property
    def ready(self) -> nn.Module:
        """What to call in place of the model: the same parameters, with less to do."""
        # Made anew in every process: a traced model does not travel well.
        if self._ready is None:
            found = first_layer.cut(self.module) if self.cut else None
            ready = found[1] if found else self.module
            self._ready = fusing.fused(ready) if self._fuse else None
            self._ready = self._ready or ready
        return self._ready

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_ready", "_moving")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._take(self.module)

    def run(self, forward: Callable[..., T], *args: Any) -> T:
        """Call what runs the model; building weights and measuring stay outside."""
        # Containers are new at each pass: a model may replace what is in them.
        args = (*args[:-1], cloned(args[-1]) if self._overwrites else rebuilt(args[-1]))
        if self._autocast is None:
            return forward(*args)
        with precision.autocast(self.device, self._autocast):
            return forward(*args)

    def stored(self, vector: Weights) -> list[Tensor]:
        """Return a vector for :meth:`move_to`; steps can be smaller than bfloat16 resolves."""
        found = []
        for name, parameter in self._moving.items():
            precise = torch.promote_types(parameter.dtype, torch.float32)
            tensor = vector[name].detach().to(self.device, precise)
            last = self.channels_last and tensor.dim() == 4
            found.append(tensor.contiguous(memory_format=torch.channels_last) if last else tensor)
        return found

    def lay_out(self, batches: list[Batch]) -> list[Batch]:
        """Return batches on the device, images channels-last if the model runs on that."""
        return [move(b, self.device, self._reads, self.channels_last) for b in batches]

    def start(self) -> None:
        """Begin as if nothing had run before: with the same random numbers, and no memories."""
        if self._pristine is not None:
            self._take(private_copy(self._pristine))
        restart_random_numbers(self.device, self._seed)

    def move_to(
        self,
        vectors: Sequence[list[Tensor]],
        coefficients: Sequence[float],
        statistics: Weights | None = None,
        calibration: list[Batch] | None = None,
    ) -> None:
        """Move to a combination of vectors from :meth:`stored`, as if nothing had run before."""
        self.start()
        tensors = _combined(vectors, coefficients)
        torch._foreach_copy_([p.data for p in self._moving.values()], tensors)
        if calibration is not None:
            self.run(batchnorm.reestimate, self.module, [b.x for b in calibration])
            statistics = batchnorm.statistics_of(self.module)
        elif statistics is not None:
            batchnorm.load_statistics(self.module, statistics)


def _combined(vectors: Sequence[list[Tensor]], coefficients: Sequence[float]) -> list[Tensor]:
    used = [(v, c) for v, c in zip(vectors, coefficients, strict=True) if c != 0]
    if not used:
        return [torch.zeros_like(tensor) for tensor in vectors[0]]
    (first, factor), *others = used
    total = torch._foreach_mul(first, factor)
    for vector, factor in others:
        torch._foreach_add_(total, vector, alpha=factor)
    return list(total)


def _cast(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast parameters and buffers, in place; ``module.to`` drops the imaginary parts."""
    twin = {torch.float32: torch.complex64, torch.float64: torch.complex128}

    def to(t: Tensor) -> Tensor:
        if dtype is None or not (t.is_floating_point() or t.is_complex()):
            return t
        return t.to(twin.get(dtype, t.dtype) if t.is_complex() else dtype)

    module._apply(to)
