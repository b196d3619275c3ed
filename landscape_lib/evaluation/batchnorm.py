"""What batch norm does at a point of a slice: four policies, four different functions.

A batch-norm layer divides by statistics of its input. Away from the weights at which they were
measured these statistics no longer fit, and it has to be said which ones are used:

``frozen``
    the running statistics of the model, at every point (Li et al., 2018, random directions);
``interpolated``
    running statistics that move along the slice as the weights do (Li et al., between two models);
``reestimated``
    statistics measured anew at each point, over one fixed subset of the data;
``batch``
    those of the batch being evaluated, as in training (MPO paper).

The last two make the loss indifferent to the scale of the weights before the layer; the first two
do not.

:func:`mean_zero` stores the scales of batch norm around zero, for multi-point optimisation.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape_lib import runtime
from landscape_lib.weights import Weights, check_like

POLICIES = ("frozen", "interpolated", "reestimated", "batch")

# Extrapolated variances can fall below zero, where batch norm gives NaN.
SMALLEST_VARIANCE = 1e-12


def layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers of a model that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def statistics_of(model: nn.Module) -> Weights:
    """Return copies of the running means and variances of a model, by buffer name."""
    found = {}
    for name, layer in layers(model).items():
        prefix = f"{name}." if name else ""
        assert layer.running_mean is not None and layer.running_var is not None
        found[f"{prefix}running_mean"] = layer.running_mean.detach().clone()
        found[f"{prefix}running_var"] = layer.running_var.detach().clone()
    return found


def statistics_along(basis: Sequence[Weights], coefficients: Tensor) -> Weights:
    """Return the statistics at points of coefficients (k, m), variances kept above 0."""
    mixed = {}
    for name in basis[0]:
        stacked = torch.stack([vector[name] for vector in basis])
        mixed[name] = torch.tensordot(coefficients.to(stacked), stacked, dims=1)
        if name.endswith("running_var"):
            mixed[name] = mixed[name].clamp(min=SMALLEST_VARIANCE)
    return mixed


def clamped(basis: Sequence[Weights], coefficients: Tensor) -> Tensor:
    """Say at which points a variance had to be clamped, shape (k,) of bool."""
    along = statistics_along(basis, coefficients)
    variances = [t.flatten(1) for name, t in along.items() if name.endswith("running_var")]
    return (torch.cat(variances, dim=1) <= SMALLEST_VARIANCE).any(dim=1).cpu()


def check_policy(model: nn.Module, policy: str) -> None:
    """Raise a ``ValueError`` unless the policy is known and the model can follow it."""
    if policy not in POLICIES:
        raise ValueError(f"batchnorm: expected one of {POLICIES}, got {policy!r}")
    modules = model.named_modules()
    without = [n for n, m in modules if isinstance(m, _BatchNorm) and m.running_mean is None]
    if without and policy != "batch":
        raise ValueError(
            f"batchnorm: the layer {without[0]!r} keeps no running statistics, so it can only use "
            f"those of each batch: expected 'batch', got {policy!r}"
        )


def check_statistics(
    model: nn.Module, statistics: Sequence[Weights] | None, policy: str, vectors: int
) -> Sequence[Weights]:
    """Raise a clear error unless the statistics fit the policy, the model and the slice."""
    if policy != "interpolated":
        if statistics is not None:
            raise ValueError(f"statistics: only for batchnorm='interpolated', got with {policy!r}")
        return ()
    if statistics is None or len(statistics) != vectors:
        raise ValueError(
            f"statistics: batchnorm='interpolated' needs running statistics for each of the "
            f"{vectors} vectors of the slice's basis (for a line between two models: "
            f"[batchnorm.statistics_of(first), batchnorm.statistics_of(second)]), "
            f"got {'none' if statistics is None else len(statistics)}"
        )
    reference = statistics_of(model)
    if not reference:
        raise ValueError("batchnorm: 'interpolated' needs a model with batch-norm layers")
    for k, vector in enumerate(statistics):
        check_like(vector, reference, f"statistics[{k}]", "the model's running statistics")
    return statistics


def load_statistics(model: nn.Module, statistics: Weights) -> None:
    """Copy running statistics into a model, in place."""
    buffers = dict(model.named_buffers())
    for name, tensor in statistics.items():
        buffers[name].copy_(tensor)


def follow_running_statistics(model: nn.Module) -> None:
    """Put every batch-norm layer in eval mode, in place, whatever the mode of the model."""
    for layer in layers(model).values():
        layer.eval()


def use_batch_statistics(model: nn.Module) -> None:
    """Make every batch-norm layer normalise by its own batch, in place, in eval mode too."""
    for layer in layers(model).values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None


@torch.no_grad()
def reestimate(model: nn.Module, inputs: Iterable[Any]) -> None:
    """Measure running statistics anew, in place; dropout keeps its mode."""
    found = layers(model)
    before = [(layer, layer.training, layer.momentum) for layer in found.values()]
    for layer in found.values():
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average, every batch with equal weight
        layer.train()
    try:
        for x in inputs:
            model(x)
    finally:
        for layer, training, momentum in before:
            layer.train(training)
            layer.momentum = momentum


# How the scales of mean-zero batch norm start, and what the forward pass adds to them.
OFFSETS = {"paper": 0.5, "code": 1.0}


class MeanZeroScale(nn.Module):
    """Scale and shift per channel, ``x * (weight + offset) + bias``, with weights around zero.

    After batch norm without a scale of its own this is ordinary batch norm whose scale is stored
    less an offset (MPO paper, appendix C).

    Args:
        channels: size of dimension 1 of the input.
        initialization: ``"paper"`` draws weights from U[-1/2, 1/2] and adds 1/2, so that scales
            start in [0, 1]; ``"code"``, the authors' program, starts at 0 and adds 1.
    """

    def __init__(self, channels: int, initialization: str = "paper") -> None:
        super().__init__()
        if initialization not in OFFSETS:
            raise ValueError(
                f"initialization: expected one of {tuple(OFFSETS)}, got {initialization!r}"
            )
        self.initialization = initialization
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; shifts start at 0."""
        spread = 0.5 if self.initialization == "paper" else 0.0
        nn.init.uniform_(self.weight, -spread, spread)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, ...) to the same shape."""
        shape = (-1,) + (1,) * (x.dim() - 2)
        return x * (self.weight + OFFSETS[self.initialization]).view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        """Name the initialisation, which is part of the function."""
        return f"{len(self.weight)}, initialization={self.initialization!r}"


def mean_zero(model: nn.Module, initialization: str = "paper", seed: int = 0) -> nn.Module:
    """Return a copy of a model whose batch-norm layers store their scales around zero.

    Orthogonalisation subtracts one weight vector from another. Scales near 1 would come out
    negative, which they are not meant to be; scales stored around zero are weights like any others
    (MPO paper, appendix C). Each batch-norm layer becomes one without a scale, called ``norm``,
    and a :class:`MeanZeroScale`, called ``scale``.

    Args:
        model: any module with batch-norm layers that have a scale.
        initialization: ``"paper"`` or ``"code"``, see :class:`MeanZeroScale`.
        seed: of the scales.

    Raises:
        ValueError: unknown ``initialization``, or no such layers.
    """
    changed = copy.deepcopy(model)
    found = [n for n, m in changed.named_modules() if isinstance(m, _BatchNorm) and m.affine and n]
    if not found:
        raise ValueError(f"model: {type(model).__name__} has no batch-norm layers with a scale")
    with runtime.isolated_random_state(seed):
        for name in found:
            layer = changed.get_submodule(name)
            assert isinstance(layer, _BatchNorm)
            scale = MeanZeroScale(layer.num_features, initialization).to(layer.weight)
            layer.affine = False
            layer.weight = layer.bias = None  # type: ignore[assignment]
            pair = nn.Sequential(OrderedDict(norm=layer, scale=scale)).train(layer.training)
            changed.set_submodule(name, pair)
    return changed
