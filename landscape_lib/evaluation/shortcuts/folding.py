"""The same function with less work: batch norm folded into the convolution before it.

Batch norm with given statistics is linear, so that a pass over the activations can be spared. That
needs the graph of the model; one that ``torch.fx`` cannot trace stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from landscape_lib.evaluation.shortcuts.graphs import plain_layers, trace
from landscape_lib.evaluation.trials import move_somewhere, same_output
from landscape_lib.weights import Weights

_NORM_AFTER = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


class _Pair(NamedTuple):
    convolution: str
    norm: str
    eps: float


class Folded:
    """A model with less to do.

    Its ``module`` shares all layers with the model, but for folded convolutions: these have
    parameters of their own, to be set to :meth:`weights` at each point.

    Args:
        model: batch-norm layers in eval mode are folded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module: nn.Module = model
        self._pairs: list[_Pair] = []
        traced = trace(model)
        if traced is None:
            return
        self._pairs = _fold(traced, model)
        if self._pairs:
            traced.recompile()
            self.module = traced

    @property
    def folded(self) -> frozenset[str]:
        """Names of the batch-norm layers that are no longer there."""
        return frozenset(pair.norm for pair in self._pairs)

    def weights(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return the parameters of the folded convolutions.

        Args:
            tensors: the model's parameters and running statistics, by name.
        """
        found = {}
        for convolution, norm, eps in self._pairs:
            scale = (tensors[f"{norm}.running_var"] + eps).rsqrt()
            if f"{norm}.weight" in tensors:
                scale = scale * tensors[f"{norm}.weight"]
            shift = -tensors[f"{norm}.running_mean"] * scale
            if f"{norm}.bias" in tensors:
                shift = shift + tensors[f"{norm}.bias"]
            if f"{convolution}.bias" in tensors:
                shift = shift + tensors[f"{convolution}.bias"] * scale
            weight = tensors[f"{convolution}.weight"]
            per_filter = scale.reshape(-1, *[1] * (weight.dim() - 1))
            found[f"{convolution}.weight"] = weight * per_filter
            found[f"{convolution}.bias"] = shift
        return found


def can_fold(model: nn.Module, x: Any) -> bool:
    """Say whether the folded model computes what the model does.

    Tracing follows one path through Python code: a model that takes another one, or that draws
    random numbers of its own, is found out by running both.

    Args:
        model: in the mode in which it is to run.
        x: a few samples on the model's device and in its dtype.
    """
    model = copy.deepcopy(model)
    folded = Folded(model)
    if folded.module is model:
        return False

    def agrees() -> bool:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            load(folded.module, folded.weights(tensors))
        return same_output(model, folded.module, x)

    if not agrees():
        return False
    move_somewhere(model)
    return agrees()


def load(module: nn.Module, weights: Weights) -> None:
    """Copy tensors into a module's parameters of those names, in place."""
    for name, tensor in weights.items():
        module.get_parameter(name).copy_(tensor)


def _fold(traced: fx.GraphModule, model: nn.Module) -> list[_Pair]:
    """Replace pairs of convolution and batch norm in the graph, in place; return their names."""
    modules = dict(model.named_modules())
    plain = plain_layers(traced, model)
    pairs = []
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        if type(norm) is not _NORM_AFTER.get(type(convolution)) or norm.running_mean is None:
            continue
        if norm.training or not plain >= {str(before.target), str(node.target)}:
            continue
        changed = copy.deepcopy(convolution)
        changed.bias = nn.Parameter(
            convolution.weight.new_zeros(convolution.out_channels), requires_grad=False
        )
        traced.add_submodule(str(before.target), changed)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        pairs.append(_Pair(str(before.target), str(node.target), norm.eps))
    if pairs:
        traced.delete_all_unused_submodules()
    return pairs
