"""The settings of a fit, checked before any work, and the procedures that give their defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from landscape_lib.closures import check_number
from landscape_lib.evaluation.batches import check_count, read_batches
from landscape_lib.evaluation.precision import check_dtype
from landscape_lib.files import local_path
from landscape_lib.mpo import patterns
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

TAU = 2.5
"""The paper's threshold of the loss: a little above ln 10, that of guessing among ten classes."""

PAPER_EPOCHS = 100  # the budget of the authors' program: 11,800 steps on Fashion-MNIST

# By the fast procedure every cell is drawn so often on average; small pictures need no fewer steps.
DRAWS, FEWEST_STEPS = 500, 1000

PROCEDURES: dict[str, dict[str, Any]] = {
    # Among the best rows of the page on speed, "What makes a fit fast": images of its own for each
    # cell, few of them, and many steps. Not one image only, which is best there, with an MLP: batch
    # norm has no statistics of one, and a small CNN showed details worse.
    "fast": {
        "cells": 24,
        "batch_size": 4,
        "lr": 2e-3,
        "shared_batch": False,
        "schedule": "one-cycle",
    },
    "paper": {
        "cells": 50,
        "batch_size": 512,
        "lr": 3e-4,
        "shared_batch": True,
        "schedule": "constant",
    },
}


@dataclass(frozen=True)
class Settings:
    """All that a fit depends on beside model, pattern, data and functions; see ``fit``.

    They belong to the fingerprint of a checkpoint, by these names.
    """

    iterations: int
    cells: tuple[int, int]
    batch_size: int
    lr: float
    seed: int
    tau: float
    high_weight: float
    shared_batch: bool
    prune: bool | int
    parametrization: str
    initialization: str
    scale: float
    schedule: str
    clip: float | None
    method: str
    chunk_size: int | None
    dtype: torch.dtype | None
    record_every: int
    stop_gap: float | None

    @classmethod
    def of(cls, procedure: str, pattern: Pattern, images: int, **given: Any) -> Settings:
        """Return the settings that were given, and those of a procedure where they are ``None``.

        Args:
            procedure: one of ``PROCEDURES``.
            pattern: to be fitted.
            images: in the training set; no default asks for more.
            given: every setting by name.

        Raises:
            TypeError, ValueError: a setting is not possible.
        """
        if procedure not in PROCEDURES:
            names = tuple(PROCEDURES)
            raise ValueError(f"procedure: expected one of {names}, got {procedure!r}")
        for name, default in PROCEDURES[procedure].items():
            if given[name] is None:
                given[name] = min(default, images) if name == "batch_size" else default
        check_count("batch_size", given["batch_size"], most=images)
        given["cells"] = _pair(given["cells"])
        if given["iterations"] is None and procedure == "paper":
            given["iterations"] = PAPER_EPOCHS * -(-images // given["batch_size"])
        elif given["iterations"] is None:
            trained = patterns.trained(pattern, given["prune"])
            there = int((trained == 1).sum()), int((trained == -1).sum())
            rounds = [n / min(n, c) for n, c in zip(there, given["cells"], strict=True) if n and c]
            given["iterations"] = max(FEWEST_STEPS, math.ceil(DRAWS * max(rounds)))
        settings = cls(**given)
        _check(settings)
        return settings


def count_images(data: Any) -> int:
    """Return the number of samples, or raise an error unless data are tensors of one length."""
    if not all(isinstance(getattr(data, side, None), Tensor) for side in ("x", "y")):
        raise TypeError(f"data: expected a data set of tensors x and y, got {type(data).__name__}")
    return read_batches(data, None, max(1, len(data.y)), 0)[1]


def check_inputs(
    model: nn.Module,
    pattern: Pattern,
    data: Any,
    settings: Settings,
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
    if settings.stop_gap is not None and data.y.is_floating_point():
        raise ValueError("stop_gap: needs accuracies, so targets that are class indices")
    if origin is not None:
        check_like(origin, weights, "origin", "the model's parameters")
        check_weights(origin, "origin")
    for name, function in functions.items():
        if not callable(function) and not (name != "loss" and function is None):
            raise TypeError(f"{name}: expected a callable, got {type(function).__name__}")
    if checkpoint is not None:
        local_path("checkpoint", checkpoint)


def check_tau(value: Any) -> None:
    """Raise a ``ValueError`` unless ``value`` is above 0; infinity means that all losses count."""
    if not isinstance(value, Real) or value != math.inf:
        check_number("tau", value, above=0)


def _check(settings: Settings) -> None:
    for name in ("iterations", "record_every"):
        check_count(name, getattr(settings, name))
    if settings.chunk_size is not None:
        check_count("chunk_size", settings.chunk_size)
    for name, choices in CHOICES.items():
        if getattr(settings, name) not in choices:
            raise ValueError(f"{name}: expected one of {choices}, got {getattr(settings, name)!r}")
    if not isinstance(settings.shared_batch, bool):
        raise TypeError(f"shared_batch: expected True or False, got {settings.shared_batch!r}")
    if not isinstance(settings.prune, bool) and (
        not isinstance(settings.prune, int) or settings.prune < 2
    ):
        raise TypeError(
            f"prune: expected True, False or a whole number of 2 or more, got {settings.prune!r}"
        )
    check_number("lr", settings.lr, above=0)
    check_number("scale", settings.scale, above=0)
    check_number("high_weight", settings.high_weight, least=0)
    check_tau(settings.tau)
    for name in ("clip", "stop_gap"):
        if getattr(settings, name) is not None:
            check_number(name, getattr(settings, name), above=0)
    check_dtype(settings.dtype)


def _pair(cells: Any) -> tuple[int, int]:
    pair = tuple(cells) if isinstance(cells, (tuple, list)) else (cells, cells)
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in pair)
    if len(pair) != 2 or not whole or pair[0] < 1 or pair[1] < 0:
        raise ValueError(
            f"cells: expected a whole number of at least 1, or two for LOW and HIGH (0 HIGH is "
            f"allowed), got {cells!r}"
        )
    return int(pair[0]), int(pair[1])
