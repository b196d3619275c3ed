"""The first layer at all points together: its output is linear in its weights.

All points of a slice see the same samples, and a linear layer with the weights ``sum_k c_k v_k``
gives ``sum_k c_k y_k``, where ``y_k`` is what it gives with the weights ``v_k`` (bias included). So
its output is computed once for each of the m vectors of the slice's basis, and only combined at
each point. For a network on flattened images that is most of the work: of the multiplications of
784-256-128-10, 85 %.

Convolutions are left as they are: on images of few channels they multiply little for each output,
so that they take at most three times as long as combining, and outputs for m vectors take
hundreds of kilobytes for each image.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from landscape_lib.evaluation.batches import is_batch
from landscape_lib.evaluation.shortcuts.graphs import plain_layers, trace
from landscape_lib.evaluation.trials import move_somewhere, same_output
from landscape_lib.weights import Weights, call_with

# Inputs of the layer, for each vector of the basis, from which on combining saves time. Measured on
# two cores with m = 3: with 784 inputs it takes 0.07 of the time of the product, with 64 inputs 0.6
# to 0.75, with 32 inputs more than the product.
INPUTS_PER_VECTOR = 20

# Operations to spare from which on tracing and trying a model, some 15 milliseconds, pay.
FEWEST_OPERATIONS = 1e9

# What the layer's outputs may take, for all samples and all vectors of the basis.
MOST_BYTES = 256 << 20

# What may stand before the layer: values are rearranged, not changed.
_MODULES = (nn.Flatten, nn.Identity)
_FUNCTIONS = (torch.flatten, torch.reshape, getattr, operator.getitem)
_METHODS = ("flatten", "reshape", "size", "view")


class Cut(NamedTuple):
    """A model in two parts.

    Attributes:
        first: from the model's input to the output of its first layer.
        rest: from there to the model's output.
        inputs: of the first layer.
    """

    first: nn.Module
    rest: nn.Module
    inputs: int


def cut(model: nn.Module) -> Cut | None:
    """Cut a model behind its first layer, with which both parts share their parameters.

    Returns:
        ``None`` unless the model begins with an ``nn.Linear`` that stands for itself: it is called
        once, shares no parameters, and nothing behind it reads the model's input.
    """
    traced = trace(model)
    if traced is None:
        return None
    modules = dict(model.named_modules())
    nodes = list(traced.graph.nodes)
    linear = [type(modules.get(str(node.target))) is nn.Linear for node in nodes]
    at = linear.index(True) if True in linear else 0
    layer = nodes[at]
    if str(layer.target) not in plain_layers(traced, model):
        return None
    if not all(_rearranges(node, modules) for node in nodes[:at]):
        return None
    front, back = fx.Graph(), fx.Graph()
    try:
        copies: dict[fx.Node, fx.Node] = {}
        for node in nodes[: at + 1]:
            copies[node] = front.node_copy(node, copies.__getitem__)
        front.output(copies[layer])
        copies = {layer: back.placeholder("x")}
        for node in nodes[at + 1 :]:
            copies[node] = back.node_copy(node, copies.__getitem__)
    except KeyError:  # something behind the layer reads what is before it
        return None
    inputs = modules[str(layer.target)].in_features
    return Cut(fx.GraphModule(traced, front), fx.GraphModule(traced, back), inputs)


def outputs(
    model: nn.Module, inputs: Sequence[Any], basis: Sequence[Weights], points: int
) -> list[Tensor] | None:
    """Return what the first layer makes of inputs with each vector of the basis, (m, N, ...) each.

    ``None`` if it saves nothing, by a rule that gives the same answer every time, or if a point
    would then not be what it is. Every vector costs as much as a point.
    """
    fewest = INPUTS_PER_VECTOR * len(basis)
    if points < 2 * len(basis) or not all(map(is_batch, inputs)):
        return None
    wide = [m for m in model.modules() if isinstance(m, nn.Linear) and m.in_features >= fewest]
    spared = max((2.0 * m.in_features * m.out_features for m in wide), default=0.0)
    if spared * points * sum(len(x) for x in inputs) < FEWEST_OPERATIONS:
        return None  # without the time that tracing takes
    found = cut(model)
    if found is None or found.inputs < fewest:
        return None
    few = inputs[0][:2]
    if not _can_cut(model, few):
        return None
    names = [name for name, _ in found.first.named_parameters()]
    vectors = [{name: vector[name] for name in names} for vector in basis]

    def at_basis(x: Tensor) -> Tensor:
        x = x.to(vectors[0][names[0]].dtype)
        return torch.stack([call_with(found.first, vector, x) for vector in vectors])

    if at_basis(few).nbytes / few.numel() * sum(x.numel() for x in inputs) > MOST_BYTES:
        return None
    made = [at_basis(x) for x in inputs]
    # 0 times inf is NaN: a vector that has no share in a point must not change it.
    return made if all(bool(y.isfinite().all()) for y in made) else None


def _can_cut(model: nn.Module, x: Any) -> bool:
    """Say whether the two parts give what the model gives, also at other weights than its own."""
    probe = copy.deepcopy(model)
    found = cut(probe)
    if found is None:
        return False
    parts = nn.Sequential(found.first, found.rest)
    if not same_output(probe, parts, x):
        return False
    move_somewhere(probe)
    return same_output(probe, parts, x)


def combine(coefficients: Tensor, outputs: Tensor) -> Tensor:
    """Return the first layer's output (N, ...) at a point of coefficients (m,)."""
    return (coefficients @ outputs.flatten(1)).view(outputs.shape[1:])


def _rearranges(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Say whether a node is the input, or gives the values of the input in another shape."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) in _MODULES
    known = {"placeholder": (node.target,), "call_function": _FUNCTIONS, "call_method": _METHODS}
    return node.target in known.get(node.op, ())
