"""The same function with less work: batch norm folded away, ReLU after pooling, faster pooling.

Batch norm with given statistics is linear, so it can be folded into the convolution before it: one
pass over the activations less. ReLU and max pooling can change places, which leaves ReLU a quarter
of the values; pooling itself can be done in halves. All need the graph of the model; one that
``torch.fx`` cannot trace stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from landscape_lib.averaging import average_by_matrix
from landscape_lib.weights import Weights

_NORM_AFTER = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


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
        changed = _pool_first(traced)
        if next(model.parameters()).device.type == "cpu":
            changed |= _pool_by_halves(traced)
        if self._pairs or changed:
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
    folded = Folded(model)
    if folded.module is model:
        return False
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        load(folded.module, folded.weights(tensors))
    return same_output(model, folded.module, x)


def same_output(first: nn.Module, second: nn.Module, x: Any) -> bool:
    """Say whether two models give the same for the same inputs, up to rounding."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            expected = tree_flatten(first(x))[0]
            torch.manual_seed(0)
            found = tree_flatten(second(x))[0]
    except Exception:
        return False
    return len(expected) == len(found) and all(map(_agree, expected, found))


def lighter(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a model of equal output and gradients with less to do in both, or the model itself.

    ReLU comes after max pooling, and adaptive average pooling is a product with a matrix: its
    gradient takes a sixth of a step otherwise, on a CPU in 16 bits. Batch norm stays.

    Args:
        model: the result shares its layers.
        x: a few samples on the model's device and in its dtype; others must have their size.
    """
    traced = trace(model)
    if traced is None:
        return model
    changed = _pool_first(traced)
    if x.device.type == "cpu":
        changed |= average_by_matrix(traced, x)
    if not changed:
        return model
    traced.recompile()
    return traced if same_output(model, traced, x) else model


def load(module: nn.Module, weights: Weights) -> None:
    """Copy tensors into a module's parameters of those names, in place."""
    for name, tensor in weights.items():
        module.get_parameter(name).copy_(tensor)


class _LayerTracer(fx.Tracer):
    """Takes every module without children for one step, also those that are not PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())


def trace(model: nn.Module) -> fx.GraphModule | None:
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
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return None if drew or constants or hooks else traced


def plain_layers(traced: fx.GraphModule, model: nn.Module) -> set[str]:
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


def _pool_first(traced: fx.GraphModule) -> bool:
    """Put max pooling before ReLU in the graph, in place; say whether that happened anywhere."""
    modules = dict(traced.named_modules())
    swapped = False
    for pool in list(traced.graph.nodes):
        if pool.op != "call_module" or not isinstance(modules[pool.target], _POOLS):
            continue
        relu = pool.args[0]
        if modules[pool.target].return_indices or not _is_relu(relu, modules):
            continue
        if len(relu.users) != 1:
            continue
        pool.replace_all_uses_with(relu)
        pool.replace_input_with(relu, relu.args[0])
        relu.replace_input_with(relu.args[0], pool)
        pool.append(relu)
        swapped = True
    return swapped


def _pool_by_halves(traced: fx.GraphModule) -> bool:
    """Replace max pooling of 2 x 2 pixels in the graph, in place; say whether there was any."""
    modules = dict(traced.named_modules())
    replaced = False
    for node in list(traced.graph.nodes):
        pool = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(pool) is not nn.MaxPool2d or pool.return_indices or pool.ceil_mode:
            continue
        sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        if [s if isinstance(s, tuple) else (s, s) for s in sizes] == [
            (2, 2),
            (2, 2),
            (0, 0),
            (1, 1),
        ]:
            node.op, node.target, node.kwargs = "call_function", _max_of_2x2, {}
            replaced = True
    return replaced


def _max_of_2x2(x: Tensor) -> Tensor:
    """Return the largest of 2 x 2 pixels: of pairs of rows, then of pairs of columns.

    The same bits as ``max_pool2d``, which on a CPU takes up to four times as long on images of few
    channels.
    """
    height, width = x.size(-2) // 2 * 2, x.size(-1) // 2 * 2
    rows = torch.maximum(x[..., 0:height:2, :], x[..., 1:height:2, :])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def _is_relu(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and not module.inplace
    is_function = node.op == "call_function" and node.target in (F.relu, torch.relu)
    return is_function and len(node.args) == 1 and not node.kwargs


def _agree(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return bool(expected == found)
    if expected.shape != found.shape:
        return False
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
    room = torch.finfo(expected.dtype).eps ** 0.5 if expected.is_floating_point() else 0.0
    return torch.allclose(expected, found, rtol=room, atol=room * largest, equal_nan=True)
