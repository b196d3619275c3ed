"""The graph of a model, and what may be changed in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


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
