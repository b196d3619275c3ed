"""Layers whose weights differ from sample to sample, without a copy of the weights for each.

At a point with coefficients c a layer has the weights ``sum_k c_k W_k``. Linear layers and
convolutions are linear in their weights, so the output for a sample is ``sum_k c_k layer(x, W_k)``:
the layers of all k side by side in one, and a combination per sample. :func:`mix_layers` puts such
layers in the place of a model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape_lib.evaluation.batchnorm import OFFSETS, MeanZeroScale

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class Chunk:
    """What the layers of a mixed model read: the basis, and which samples belong to which cell.

    Attributes:
        basis: for each parameter its m tensors, shape (m, ...).
        cells: coefficients of the cells, shape (k, m); the first of each is 1.
        samples: the coefficients of every sample, shape (N, m). The N / k samples of a cell stand
            together.
    """

    basis: dict[str, Tensor] = field(default_factory=dict)
    cells: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    samples: Tensor = field(default_factory=lambda: torch.empty(0, 0))


class MixedLayer(nn.Module):
    """A linear layer or convolution with other weights for each sample, read from a chunk.

    ``names`` are those of its parameters: name in the layer -> name in the model.
    """

    def __init__(self, layer: nn.Module, names: dict[str, str], chunk: Chunk) -> None:
        super().__init__()
        self.names, self.chunk = names, chunk
        linear = isinstance(layer, nn.Linear)
        self.features = -1 if linear else 1
        self.function = F.linear if linear else CONVOLUTIONS[type(layer)]
        options = () if linear else ("stride", "padding", "dilation")
        self.options = {name: getattr(layer, name) for name in options}

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (N, ...) as the layer does."""
        weights = self.chunk.basis[self.names["weight"]]
        bias = self.chunk.basis[self.names["bias"]] if "bias" in self.names else None
        outputs, inputs = weights.shape[1:3]
        column = (-1,) + (1,) * (x.dim() - 1)
        factors = [c.view(column) for c in self.chunk.samples.unbind(1)[1:]]
        if outputs <= inputs:
            shifts = None if bias is None else bias.flatten()
            parts = self.function(x, weights.flatten(0, 1), shifts, **self.options)
            y, *others = parts.split(outputs, dim=self.features)
            for part, factor in zip(others, factors, strict=True):
                y = torch.addcmul(y, part, factor)
            return y
        # Fewer inputs than outputs: the same sum with the factors on the input, which is smaller.
        x = torch.cat([x, *(x * factor for factor in factors)], dim=self.features)
        y = self.function(x, weights.transpose(0, 1).flatten(1, 2), None, **self.options)
        if bias is None:
            return y
        shape = [len(y)] + [1] * (y.dim() - 1)
        shape[self.features] = outputs
        return y + (self.chunk.samples @ bias).view(shape)


class MixedNorm(nn.Module):
    """Batch norm, a scale per channel, or both, with other weights for each cell.

    Batch norm uses the statistics of the samples of each cell.
    """

    def __init__(self, layer: nn.Module, names: dict[str, str], chunk: Chunk) -> None:
        super().__init__()
        self.names, self.chunk = names, chunk
        self.eps = layer.eps if isinstance(layer, _BatchNorm) else None
        self.offset = OFFSETS[layer.initialization] if isinstance(layer, MeanZeroScale) else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (N, channels, ...) to the same shape."""
        cells = x.unflatten(0, (len(self.chunk.cells), -1))
        column = (len(cells), 1, -1) + (1,) * (x.dim() - 2)
        scale, shift = x.new_ones(1), x.new_zeros(1)
        if "weight" in self.names:
            weight, bias = (self.chunk.basis[self.names[name]] for name in ("weight", "bias"))
            scale = (self.chunk.cells @ weight + self.offset).view(column)
            shift = (self.chunk.cells @ bias).view(column)
        if self.eps is not None:
            others = [1, *range(3, cells.dim())]
            variance, mean = torch.var_mean(cells, others, correction=0, keepdim=True)
            scale = scale * (variance + self.eps).rsqrt()
            shift = shift - mean * scale
        return (cells * scale + shift).flatten(0, 1)


def obstacle(model: nn.Module) -> str | None:
    """Say why the layers of a model cannot be mixed, or ``None`` if they can.

    Only modules are looked at: what a model's own code does between them is for a trial to tell.
    """
    for name, module in model.named_modules():
        kind, known = type(module), type(module) in (nn.Linear, MeanZeroScale, *NORMS)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            known = kind in CONVOLUTIONS
            if module.groups != 1 or module.padding_mode != "zeros":
                return f"{name or kind.__name__} is a convolution with groups or another padding"
        owns = next(module.parameters(recurse=False), None) is not None
        if not known and (owns or isinstance(module, _BatchNorm)):
            return f"{name or 'the model'} is a {kind.__name__}"
    return None


def mix_layers(model: nn.Module) -> tuple[nn.Module, Chunk]:
    """Return a copy of a model whose layers read their weights from a :class:`Chunk`.

    Args:
        model: one without an :func:`obstacle`; batch norm must use batch statistics.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mixed, chunk = nn.Sequential(copy.deepcopy(model)), Chunk()
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        own = {name: names[id(p)] for name, p in layer.named_parameters(recurse=False)}
        if type(layer) in (nn.Linear, *CONVOLUTIONS):
            mixed.set_submodule(f"0.{path}".rstrip("."), MixedLayer(layer, own, chunk))
        elif isinstance(layer, (_BatchNorm, MeanZeroScale)):
            mixed.set_submodule(f"0.{path}".rstrip("."), MixedNorm(layer, own, chunk))
    return mixed, chunk
