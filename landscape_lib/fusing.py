"""ReLU in the same pass as the convolution before it, on a CPU.

A convolution of few channels writes its output in hardly more time than ReLU needs to read and
write it again: ReLU takes 15 to 40 % of the two. oneDNN, PyTorch's library for CPUs, can apply it
to each value before that is written, through an operation that PyTorch's own compiler calls.

Its ReLU turns NaN into 0, though, and hides that a computation broke down. Here it is leaky, with a
slope far below rounding: then what is not finite anywhere is not finite in the output, and whoever
finds that repeats the pass with the model itself.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from landscape_lib.graphs import is_relu, plain_layers, same_output, trace
from landscape_lib.pooling import MAX_POOLS, max_of_2x2

# Below the rounding of values up to 1e12 times as large, and above what is slow to compute with.
SLOPE = 1e-20

# What hands on every value that is not finite. Max pooling may pass over -inf: a larger value is
# near it then, which it would find after ReLU as well. What reads -inf with weights of either sign
# makes NaN or +inf of it somewhere.
_MODULES = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Flatten, nn.Identity, nn.Dropout),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *MAX_POOLS),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_FUNCTIONS = (torch.flatten, torch.add, operator.add, operator.iadd, max_of_2x2)


class ConvolutionWithReLU(nn.Module):
    """A convolution followed by a leaky ReLU of slope ``SLOPE``, in one pass.

    Args:
        convolution: whose parameters it shares.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.settings = (
            *(convolution.padding, convolution.stride, convolution.dilation),
            convolution.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, height, width) images to the layer's output."""
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.settings, "leaky_relu", [SLOPE], ""
        )
        return fused


def fused(model: nn.Module) -> fx.GraphModule | None:
    """Return a model of equal finite outputs whose convolutions apply ReLU, where that is faster.

    Args:
        model: in eval mode; the result shares its layers.

    Returns:
        ``None`` where nothing can be fused. Otherwise a model that rounds as ``model`` does, and
        whose output is not finite if any value on the way to it is not: repeat that pass with
        ``model``, for ReLU could have made 0 of it.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.bfloat16):
        return None
    if model.training or not _has_fused_convolutions():
        return None
    traced = trace(model)
    if traced is None:
        return None
    modules = dict(traced.named_modules())
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    relus = [node for node in nodes if is_relu(node, modules, inplace=_reads_alone(node))]
    if not all(node in relus or _hands_on(node, modules) for node in nodes):
        return None
    plain = plain_layers(traced, model)
    if not any([_fuse(traced, relu, plain) for relu in relus]):
        return None
    traced.recompile()
    return traced


def can_fuse(model: nn.Module, x: Any) -> bool:
    """Say whether there is a fused model that computes what the model does.

    Args:
        model: in eval mode.
        x: a few samples on the model's device and in its dtype.
    """
    quick = fused(model)
    return quick is not None and same_output(model, quick, x)


def is_finite(output: Any) -> bool:
    """Say whether all numbers of an output, a tensor or nested tensors, are finite."""
    return all(bool(t.isfinite().all()) for t in tree_flatten(output)[0] if isinstance(t, Tensor))


def _has_fused_convolutions() -> bool:
    """Say whether this CPU is of the kind on which they were found to be faster."""
    library = torch.backends.mkldnn
    is_there = library.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return bool(is_there and torch.backends.cpu.get_cpu_capability().startswith("AVX"))


def _reads_alone(node: fx.Node) -> bool:
    return bool(node.all_input_nodes) and len(node.all_input_nodes[0].users) == 1


def _hands_on(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) in _MODULES
    return node.op == "call_function" and node.target in _FUNCTIONS


def _fuse(traced: fx.GraphModule, relu: fx.Node, plain: set[str]) -> bool:
    """Give ReLU to the convolution before it, or make it leaky; say whether there was one."""
    (source,) = relu.all_input_nodes
    before = traced.get_submodule(str(source.target)) if source.op == "call_module" else None
    if (
        type(before) is nn.Conv2d
        and source.target in plain
        and len(source.users) == 1
        and before.padding_mode == "zeros"
        and not isinstance(before.padding, str)
    ):
        traced.add_submodule(str(source.target), ConvolutionWithReLU(before))
        relu.replace_all_uses_with(source)
        traced.graph.erase_node(relu)
        return True
    relu.op, relu.target = "call_function", F.leaky_relu
    relu.args, relu.kwargs = (source, SLOPE), {}
    return False
