"""The arguments of a fit, each checked before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from landscape_lib.evaluation.batches import check_count, read_batches
from landscape_lib.evaluation.precision import check_dtype
from landscape_lib.mpo.cells import METHODS
from landscape_lib.mpo.patterns import Pattern
from landscape_lib.mpo.span import INITIALIZATIONS, PARAMETRIZATIONS
from landscape_lib.slices import check_weights
from landscape_lib.weights import Weights, check_like, count, weights_of

CHOICES = {
    "parametrization": PARAMETRIZATIONS,
    "initialization": INITIALIZATIONS,
    "schedule": ("constant", "one-cycle"),
    "method": METHODS,
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise an error that names the argument unless all settings of a fit are possible."""
    for name in ("iterations", "batch_size", "record_every", "chunk_size"):
        if name != "chunk_size" or settings[name] is not None:
            check_count(name, settings[name])
    pair = settings["cells"]
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in pair)
    if len(pair) != 2 or not whole or pair[0] < 1 or pair[1] < 0:
        raise ValueError(
            f"cells: expected a whole number of at least 1, or two for LOW and HIGH (0 HIGH is "
            f"allowed), got {pair[0] if len(set(pair)) == 1 else pair!r}"
        )
    for name, choices in CHOICES.items():
        if settings[name] not in choices:
            raise ValueError(f"{name}: expected one of {choices}, got {settings[name]!r}")
    for name in ("shared_batch", "prune"):
        if not isinstance(settings[name], bool):
            raise TypeError(f"{name}: expected True or False, got {settings[name]!r}")
    _check_number("lr", settings["lr"], above=0)
    _check_number("scale", settings["scale"], above=0)
    _check_number("high_weight", settings["high_weight"], least=0)
    if settings["tau"] != math.inf:  # which means that HIGH losses count whatever they are
        _check_number("tau", settings["tau"], above=0)
    for name in ("clip", "stop_gap"):
        if settings[name] is not None:
            _check_number(name, settings[name], above=0)
    check_dtype(settings["dtype"])


def check_inputs(
    model: nn.Module,
    pattern: Pattern,
    data: Any,
    settings: Mapping[str, Any],
    origin: Weights | None,
    functions: Mapping[str, Any],
    checkpoint: Any,
) -> None:
    """Raise an error that names the argument unless model, data and the rest fit together."""
    weights = weights_of(model)
    if count(weights) < pattern.ndim:
        raise ValueError(
            f"pattern: {pattern.ndim} orthogonal directions need as many weights, "
            f"got a model with {count(weights)}"
        )
    if not all(isinstance(getattr(data, side, None), Tensor) for side in ("x", "y")):
        raise TypeError(f"data: expected a data set of tensors x and y, got {type(data).__name__}")
    read_batches(data, None, settings["batch_size"], 0)  # lengths
    check_count("batch_size", settings["batch_size"], most=len(data.y))
    if settings["stop_gap"] is not None and data.y.is_floating_point():
        raise ValueError("stop_gap: needs accuracies, so targets that are class indices")
    if origin is not None:
        check_like(origin, weights, "origin", "the model's parameters")
        check_weights(origin, "origin")
    for name, function in functions.items():
        if not callable(function) and not (name != "loss" and function is None):
            raise TypeError(f"{name}: expected a callable, got {type(function).__name__}")
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint: expected the path of a file, got {type(checkpoint).__name__}")


def _check_number(
    name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf
) -> None:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value <= above or value < least:
        bound = f"above {above:g}" if above > -math.inf else f"of at least {least:g}"
        raise ValueError(f"{name}: expected a finite number {bound}, got {value!r}")
