"""The graph of a model: what may be changed in it, and whether a change kept the function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map


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
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return None if drew or constants or hooks else traced


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


def is_relu(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Say whether a node is ReLU that does not overwrite its input."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and not module.inplace
    is_function = node.op == "call_function" and node.target in (F.relu, torch.relu)
    return is_function and len(node.args) == 1 and node.kwargs in ({}, {"inplace": False})


def same_output(first: nn.Module, second: nn.Module, x: Any) -> bool:
    """Say whether two models give the same for the same inputs, up to rounding."""
    try:
        return same_values(output_of(first, x), output_of(second, x))
    except Exception:
        return False


def output_of(model: nn.Module, x: Any) -> Any:
    """Return a model's output with random numbers that are the same every time.

    Args:
        model: it may overwrite its inputs.
        x: a few samples.
    """
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return model(tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x))


def move_somewhere(model: nn.Module) -> None:
    """Change all parameters and running statistics, those that are zero as well.

    A change that keeps a model's function at its own weights may have frozen a number that depends
    on them; and a last layer of zeros hides everything before it.
    """
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=source).to(parameter)
            size = parameter.abs().mean() if parameter.numel() else 0.0
            parameter.add_((0.5 * size + 0.05) * noise)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1.25)


def same_values(expected: Any, found: Any) -> bool:
    """Say whether two outputs, tensors or nested ones, agree up to rounding."""
    one, other = tree_flatten(expected)[0], tree_flatten(found)[0]
    return len(one) == len(other) and all(map(_agree, one, other))


def _agree(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return bool(expected == found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
    room = torch.finfo(expected.dtype).eps ** 0.5 if expected.is_floating_point() else 0.0
    return torch.allclose(expected, found, rtol=room, atol=room * largest, equal_nan=True)
