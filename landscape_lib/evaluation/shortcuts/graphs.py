"""The graph of a model, and what may be changed in it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)

# What these give is a tensor of its own, to which nothing else refers.
_FRESH_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *MAX_POOLS),
)
_FRESH_FUNCTIONS = (operator.add, torch.add)

# Where functions live that do nothing but compute, and the layers that call them.
_PLAIN_FUNCTIONS = {"torch", "torch.nn.functional", "torch._C._nn", "_operator", "builtins"}
_PLAIN_LAYERS = "torch.nn.modules."
_OURS = "landscape_lib."


class _LayerTracer(fx.Tracer):
    """Takes every module without children for one step, also those that are not PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())


def trace(model: nn.Module) -> fx.GraphModule | None:
    """Return the graph of a model, ``None`` where it would not say all that the model does."""
    before = torch.get_rng_state()
    try:
        traced = fx.GraphModule(model, _graph_of(model))
    except Exception:
        return None
    finally:
        drew = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
    # Tensors and random numbers made in Python code are frozen into the graph.
    constants = any(str(n.target).startswith("_tensor_constant") for n in traced.graph.nodes)
    return None if drew or constants or _is_hooked(model) else traced


def _is_hooked(model: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _all_are_hooked() -> bool:
    """Say whether somebody looks on at all modules of the process, as counters do."""
    return bool(nn.modules.module._has_any_global_hook())


def _graph_of(model: nn.Module) -> fx.Graph:
    if not isinstance(model, fx.GraphModule):
        return _LayerTracer().trace(model)
    graph = fx.Graph()  # tracing it would look into the functions that it calls
    graph.output(graph.graph_copy(model.graph, {}))
    return graph


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


def is_relu(node: Any, modules: Mapping[str, nn.Module], inplace: bool = False) -> bool:
    """Say whether a node is ReLU, one that overwrites its input only if ``inplace``."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) is not nn.ReLU or "forward" in vars(module) or len(node.args) != 1:
            return False
        return inplace >= module.inplace
    is_function = node.op == "call_function" and node.target in (F.relu, torch.relu, torch.relu_)
    overwrites = dict(node.kwargs).get("inplace", False) or node.target is torch.relu_
    known = len(node.args) == 1 and not node.kwargs.keys() - {"inplace"}
    return is_function and known and overwrites in (False, inplace)


def overwrite(traced: fx.GraphModule, functions: Collection[Callable[..., Any]] = ()) -> bool:
    """Let ReLU overwrite what nobody else reads, in place; say whether that happened anywhere.

    Args:
        traced: the graph of a model.
        functions: others whose output is a tensor of its own.
    """
    if _all_are_hooked():
        return False
    modules = dict(traced.named_modules())
    changed = False
    for relu in traced.graph.nodes:
        before = relu.args[0] if is_relu(relu, modules) else None
        if not isinstance(before, fx.Node) or len(before.users) != 1:
            continue
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        fresh = type(layer) in _FRESH_LAYERS and "forward" not in vars(layer)
        function = before.target if before.op == "call_function" else None
        # With ``out=`` a function gives a tensor that others may know.
        fresh |= function in (*_FRESH_FUNCTIONS, *functions) and not before.kwargs
        if fresh:
            relu.op, relu.target, relu.kwargs = "call_function", torch.relu_, {}
            changed = True
    return changed


def runs_only_torch(model: nn.Module) -> bool:
    """Say whether a model is a sequence or a graph of PyTorch's layers and functions, or ours."""
    layers: list[nn.Module] = [m for m in model.modules() if type(m) is not nn.Sequential]
    functions: list[Any] = []
    if isinstance(model, fx.GraphModule):
        called = [n.target for n in model.graph.nodes if n.op == "call_module"]
        layers = [model.get_submodule(str(name)) for name in called]
        functions = [n.target for n in model.graph.nodes if n.op == "call_function"]
    altered = _all_are_hooked() or _is_hooked(model)
    altered |= any("forward" in vars(m) for m in model.modules())
    nested = any(any(layer.children()) for layer in layers)
    homes = [getattr(function, "__module__", None) or "" for function in functions]
    classes = [type(layer).__module__ for layer in layers]
    plain = all(h in _PLAIN_FUNCTIONS or h.startswith(_OURS) for h in homes)
    plain = plain and all(c.startswith((_PLAIN_LAYERS, _OURS)) for c in classes)
    return plain and not altered and not nested
