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

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape_lib.evaluation.batches import is_batch
from landscape_lib.weights import Weights, call_with

# Inputs of the layer, for each vector of the basis, from which on combining saves time. Measured on
# two cores with m = 3: with 784 inputs it takes 0.07 of the time of the product, with 64 inputs 0.6
# to 0.75, with 32 inputs more than the product.
INPUTS_PER_VECTOR = 20

# Operations to spare from which on it is worth the set-up.
FEWEST_OPERATIONS = 1e9

# What the layer's outputs may take, for all samples and all vectors of the basis.
MOST_BYTES = 256 << 20


def cut(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential] | None:
    """Cut a model behind its first layer; both parts hold the model's own modules, by their names.

    Returns:
        ``None`` unless the model is an ``nn.Sequential`` that begins with an ``nn.Linear``, which
        shares no parameters, behind modules that rearrange values and do not change them.
    """
    if type(model) is not nn.Sequential:
        return None
    held = list(model._modules.items())  # named_children() leaves out what is there twice
    kinds = [type(module) for _, module in held]
    at = kinds.index(nn.Linear) + 1 if nn.Linear in kinds else 0
    first, rest = (nn.Sequential(OrderedDict(part)) for part in (held[:at], held[at:]))
    if not at or not set(kinds[: at - 1]) <= {nn.Flatten, nn.Identity}:
        return None
    for module in (model, *first):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
    shared = {id(p) for p in first.parameters()} & {id(p) for p in rest.parameters()}
    return None if shared else (first, rest)


def outputs(
    model: nn.Module, inputs: Sequence[Any], basis: Sequence[Weights], points: int
) -> list[Tensor] | None:
    """Return what the first layer makes of inputs with each vector of the basis, (m, N, ...) each.

    ``None`` if it saves nothing, by a rule that gives the same answer every time, or if a point
    would then not be what it is. Every vector costs as much as a point.
    """
    found = cut(model)
    if found is None or points < 2 * len(basis) or not all(map(is_batch, inputs)):
        return None
    first, layer = found[0], found[0][-1]
    assert isinstance(layer, nn.Linear)
    spared = 2.0 * layer.weight.numel() * points * sum(len(x) for x in inputs)
    if layer.in_features < INPUTS_PER_VECTOR * len(basis) or spared < FEWEST_OPERATIONS:
        return None
    vectors = [{name: vector[name] for name, _ in first.named_parameters()} for vector in basis]
    dtype = next(iter(vectors[0].values())).dtype

    def at_basis(x: Tensor) -> Tensor:
        return torch.stack([call_with(first, vector, x.to(dtype)) for vector in vectors])

    few = inputs[0][:2]
    if at_basis(few).nbytes / few.numel() * sum(x.numel() for x in inputs) > MOST_BYTES:
        return None
    made = [at_basis(x) for x in inputs]
    # 0 times inf is NaN: a vector that has no share in a point must not change it.
    return made if all(bool(y.isfinite().all()) for y in made) else None


def combine(coefficients: Tensor, outputs: Tensor) -> Tensor:
    """Return the first layer's output (N, ...) at a point of coefficients (m,)."""
    return (coefficients @ outputs.flatten(1)).view(outputs.shape[1:])
