"""The vector space: a weight vector is a dictionary of named tensors.

Every function here but :func:`load_weights` is pure: it changes nothing it is given.
Inner products and norms are accumulated in float64 whatever the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Weights = dict[str, Tensor]


def call_with(model: nn.Module, tensors: Weights, x: Any) -> Any:
    """Call a model with other parameters and buffers in place of its own, which stay.

    Tensors that are tied move together. ``torch.func.functional_call`` ties them, too, but a module
    that is registered under two names then keeps what it was given.

    Args:
        model: any module.
        tensors: by any of their names in the model; other tensors are its own.
        x: its input.
    """
    held: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False)]
    held += model.named_buffers(remove_duplicate=False)
    given = {id(t): tensors[name] for name, t in held if name in tensors}
    places: Weights = {}
    for path, module in model.named_modules():  # each once
        own: list[tuple[str, Tensor]] = [
            *module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        own += module.named_buffers(recurse=False, remove_duplicate=False)
        prefix = f"{path}." if path else ""
        places |= {prefix + name: given[id(t)] for name, t in own if id(t) in given}
    return functional_call(model, places, (x,), tie_weights=False)


def weights_of(model: nn.Module) -> Weights:
    """Return detached copies of a model's named parameters.

    Tied parameters appear once, under their first name. Buffers (for example batch-norm
    statistics) are not weights and are left out.

    Args:
        model: any module.

    Returns:
        One tensor per parameter name, same shapes, dtypes and devices as in the model.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` has no parameters.
    """
    check_model(model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    if not weights:
        raise ValueError(f"model: {type(model).__name__} has no parameters")
    return weights


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy ``weights`` into ``model``, in place.

    Args:
        model: the module to change.
        weights: as from :func:`weights_of` of a model of the same architecture.

    Raises:
        TypeError: ``model`` is not a module, ``weights`` not a dict of tensors.
        ValueError: names or shapes differ.
    """
    check_model(model)
    parameters = dict(model.named_parameters())
    check_like(weights, parameters, "weights", "the model's parameters")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def check_model(model: nn.Module) -> None:
    """Raise a ``TypeError`` unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def check_like(
    weights: Weights, reference: Mapping[str, Tensor], name: str, reference_name: str
) -> None:
    """Raise an error, in which both have a name, unless names and shapes of tensors agree."""
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise TypeError(
            f"{name}: expected a dict of tensors as from weights_of(model), "
            f"got {type(weights).__name__}"
        )
    missing = [key for key in reference if key not in weights]
    extra = [key for key in weights if key not in reference]
    if missing or extra:
        raise ValueError(
            f"{name}: names differ from {reference_name}: missing {missing[:3]}, "
            f"unexpected {extra[:3]} ({len(missing)} missing, {len(extra)} unexpected)"
        )
    for key, tensor in reference.items():
        if weights[key].shape != tensor.shape:
            raise ValueError(
                f"{name}: {key!r} has shape {tuple(weights[key].shape)}, "
                f"expected {tuple(tensor.shape)} as in {reference_name}"
            )


def add(first: Weights, second: Weights) -> Weights:
    """Return ``first + second``; names and shapes must agree, here and below."""
    check_like(second, first, "second", "first")
    return {name: tensor + second[name] for name, tensor in first.items()}


def subtract(first: Weights, second: Weights) -> Weights:
    """Return ``first - second``."""
    check_like(second, first, "second", "first")
    return {name: tensor - second[name] for name, tensor in first.items()}


def scale(weights: Weights, factor: float) -> Weights:
    """Return ``factor * weights``."""
    return {name: tensor * factor for name, tensor in weights.items()}


def combine(vectors: Sequence[Weights], coefficients: Sequence[float]) -> Weights:
    """Return the linear combination of ``vectors`` with ``coefficients``.

    Each coefficient is multiplied once, so nothing drifts along a grid, and a vector whose
    coefficient is 0 contributes exactly nothing, not even the sign of a zero.

    Args:
        vectors: m >= 1 weight vectors of equal names and shapes.
        coefficients: m numbers.

    Returns:
        A weight vector with the dtypes of ``vectors[0]``.

    Raises:
        ValueError: names or shapes differ, or the two counts.
    """
    if len(vectors) != len(coefficients) or len(vectors) == 0:
        raise ValueError(
            f"coefficients: expected one for each of at least one vector, "
            f"got {len(coefficients)} for {len(vectors)}"
        )
    for k, vector in enumerate(vectors):
        check_like(vector, vectors[0], f"vectors[{k}]", "vectors[0]")
    terms = [term for term in zip(vectors, coefficients, strict=True) if term[1] != 0]
    first, *others = terms or [(vectors[0], 0.0)]
    total = {name: (first[0][name] * first[1]).to(t.dtype) for name, t in vectors[0].items()}
    for vector, coefficient in others:
        for name, tensor in vector.items():
            if tensor.is_floating_point():  # whole numbers stay those of the first vector
                total[name].add_(tensor, alpha=coefficient)
    return total


def dot(first: Weights, second: Weights) -> float:
    """Return the inner product, accumulated in float64."""
    check_like(second, first, "second", "first")
    return sum(
        float(torch.dot(float64(tensor.flatten()), float64(second[name].flatten())))
        for name, tensor in first.items()
    )


def norm(weights: Weights) -> float:
    """Return the Euclidean norm, accumulated in float64."""
    return dot(weights, weights) ** 0.5


def float64(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, on the CPU if its device (Apple's MPS) has no float64.

    Raises:
        ValueError: it is complex: its imaginary part would be lost.
    """
    if tensor.is_complex():
        raise ValueError(
            f"weights: expected real numbers, got {tensor.dtype}; view_as_real makes two of each"
        )
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def flatten(weights: Weights) -> Tensor:
    """Return all entries as one vector of shape (n,), in the order of the dictionary."""
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Weights:
    """Return the weights whose :func:`flatten` is ``vector``, as views of it.

    Args:
        vector: shape (n,).
        like: weights that give names and shapes; n is their number of entries.

    Raises:
        ValueError: ``vector`` has another shape.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"vector: expected shape ({sum(sizes)},), got {tuple(vector.shape)}")
    parts = vector.split(sizes)
    return {
        name: part.view(tensor.shape)
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }


def count(weights: Mapping[str, Tensor]) -> int:
    """Return n, the number of entries."""
    return sum(tensor.numel() for tensor in weights.values())
