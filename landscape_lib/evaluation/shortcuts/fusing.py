"""Convolution, bias, sum and ReLU in one kernel, on NVIDIA's GPUs.

Adding a bias, adding a shortcut and ReLU each read all outputs of a convolution and write them
again. In 16 bits that takes longer than the convolution: on an H100 with 64 channels of 32 x 32
pixels 1.9 ms where the one kernel of cuDNN takes 0.7.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from landscape_lib.evaluation.nested import cloned
from landscape_lib.evaluation.shortcuts.graphs import is_relu, plain_layers, trace
from landscape_lib.evaluation.trials import move_somewhere, same_output

# In 16 bits cuDNN is fast with multiples of 8 channels. Measured on an H100, images of 3 and 4
# channels gain from channels of zeros (1.1 to 5 times as fast), those of one lose.
CHANNELS = 8
FEWEST_CHANNELS = 3

_SUMS = (operator.add, operator.iadd, torch.add)


class ConvolutionReLU(nn.Conv2d):
    """A convolution and ReLU, and between them the addition of a tensor if one is given."""

    def forward(self, x: Tensor, summand: Tensor | None = None) -> Tensor:
        """Map (N, channels, height, width) to what ReLU gives."""
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):  # which does not know these kernels
            dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), self.weight.to(dtype)
        if dtype.itemsize == 2 and self.groups == 1 and self.in_channels >= FEWEST_CHANNELS:
            x, weight = _more_channels(x), _more_channels(weight)
        bias = None if self.bias is None else self.bias.to(dtype)
        shape: Any = (self.stride, self.padding, self.dilation, self.groups)
        try:
            if summand is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *shape)
            summand = summand.to(dtype)
            return torch.cudnn_convolution_add_relu(x, weight, summand, 1.0, bias, *shape)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # cuDNN has no such kernel for these sizes
            y = F.conv2d(x, weight, bias, *shape)
            return torch.relu(y if summand is None else y + summand)


def available(device: torch.device) -> bool:
    """Say whether a device has these kernels."""
    return device.type == "cuda" and torch.backends.cudnn.is_available() and not torch.version.hip


def fused(model: nn.Module) -> nn.Module | None:
    """Return a model in which one kernel does the work of several; ``None`` if there is no such.

    It shares all parameters with the model.
    """
    traced = trace(model)
    if traced is None:
        return None
    modules = dict(model.named_modules())
    plain = plain_layers(traced, model)

    def can_join(node: Any) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return False
        layer = modules[str(node.target)]
        if type(layer) is not nn.Conv2d or str(node.target) not in plain:
            return False
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)

    found = False
    for relu in list(traced.graph.nodes):
        before: Any = relu.args[0] if is_relu(relu, modules, inplace=True) else None
        if not isinstance(before, fx.Node) or len(before.users) != 1:
            continue
        convolution: Any = before
        summands: list[Any] = []
        if _is_sum(before):
            first, second = before.args
            convolution, other = (first, second) if can_join(first) else (second, first)
            summands = [other]
        if not can_join(convolution):
            continue
        joined = copy.copy(modules[str(convolution.target)])
        joined.__class__ = ConvolutionReLU
        traced.add_submodule(str(convolution.target), joined)
        with traced.graph.inserting_before(relu):
            inputs = (convolution.args[0], *summands)
            node = traced.graph.call_module(str(convolution.target), inputs)
        relu.replace_all_uses_with(node)
        for gone in dict.fromkeys((relu, before, convolution)):
            traced.graph.erase_node(gone)
        found = True
    traced.recompile()
    return traced if found else None


def _is_sum(node: fx.Node) -> bool:
    """Say whether a node is the sum of two others."""
    nodes = [argument for argument in node.args if isinstance(argument, fx.Node)]
    two = len(node.args) == len(set(nodes)) == 2
    return two and not node.kwargs and node.target in _SUMS


def can_fuse(model: nn.Module, x: Any) -> bool:
    """Say whether the fused model computes what the model does, NaN included."""
    model = copy.deepcopy(model)
    one = fused(model)
    if one is None or not same_output(model, one, x):
        return False
    # ReLU may be told to make 0 of NaN.
    if not same_output(model, one, tree_map(_with_nan, cloned(x))):
        return False
    move_somewhere(model)
    return same_output(model, one, x)


def _more_channels(tensor: Tensor) -> Tensor:
    """Return images or filters with channels of zeros added up to ``CHANNELS``."""
    missing = CHANNELS - tensor.size(1)
    return F.pad(tensor, (0, 0, 0, 0, 0, missing)) if missing > 0 else tensor


def _with_nan(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
        leaf.view(-1)[0] = torch.nan
    return leaf
