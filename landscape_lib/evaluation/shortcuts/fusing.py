"""Convolution, bias, sum and ReLU in one kernel, on NVIDIA's GPUs.

Adding a bias, adding a shortcut and ReLU each read all outputs of a convolution and write them
again. In 16 bits that takes longer than the convolution: on an H100 with 64 channels of 32 x 32
pixels 1.9 ms where the one kernel of cuDNN takes 0.7.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from landscape_lib.evaluation.nested import cloned, map_tensors
from landscape_lib.evaluation.trials import move_somewhere, same_output

# In 16 bits cuDNN is fast with multiples of 8 channels. Measured on an H100, images of 3 and 4
# channels gain from channels of zeros (1.1 to 5 times as fast), those of one lose.
CHANNELS = 8
FEWEST_CHANNELS = 3

_SUMS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, torch.relu_)


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
    traced = _trace(model)
    if traced is None:
        return None
    modules = dict(model.named_modules())
    plain = _plain_layers(traced, model)

    def can_join(node: Any) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return False
        layer = modules[str(node.target)]
        if type(layer) is not nn.Conv2d or str(node.target) not in plain:
            return False
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)

    found = False
    for relu in list(traced.graph.nodes):
        before: Any = relu.args[0] if _is_relu(relu, modules) else None
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
    if not same_output(model, one, map_tensors(_with_nan, cloned(x))):
        return False
    move_somewhere(model)
    return same_output(model, one, x)


def _more_channels(tensor: Tensor) -> Tensor:
    """Return images or filters with channels of zeros added up to ``CHANNELS``."""
    missing = CHANNELS - tensor.size(1)
    return F.pad(tensor, (0, 0, 0, 0, 0, missing)) if missing > 0 else tensor


def _with_nan(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[0] = torch.nan
    return tensor


class _LayerTracer(fx.Tracer):
    """Takes every module without children for one step, also those that are not PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())


def _trace(model: nn.Module) -> fx.GraphModule | None:
    """Return the graph of a model, ``None`` where it would not say all that the model does."""
    before = torch.get_rng_state()
    try:
        traced = fx.GraphModule(model, _LayerTracer().trace(model))
    except Exception:
        return None
    finally:
        drew = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
    # Tensors and random numbers made in Python code are frozen into the graph.
    constants = any(str(n.target).startswith("_tensor_constant") for n in traced.graph.nodes)
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return None if drew or constants or hooked else traced


def _plain_layers(traced: fx.GraphModule, model: nn.Module) -> set[str]:
    """Return the names of the layers that are called once, share nothing and are not altered."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    aliases = Counter(id(thing) for thing in [*modules.values(), *parameters.values()])
    calls = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_module")
    read = {str(n.target).rpartition(".")[0] for n in traced.graph.nodes if n.op == "get_attr"}

    def shares_nothing(name: str) -> bool:
        own = [modules[name], *modules[name].parameters()]
        return all(aliases[id(thing)] == 1 for thing in own) and "forward" not in vars(own[0])

    return {n for n, count in calls.items() if count == 1 and n not in read and shares_nothing(n)}


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and "forward" not in vars(module) and len(node.args) == 1
    known = len(node.args) == 1 and not node.kwargs.keys() - {"inplace"}
    return node.op == "call_function" and node.target in _RELUS and known
