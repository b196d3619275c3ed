"""Loss landscapes of neural networks: slices, evaluation, training, figures."""

from __future__ import annotations

import importlib
from typing import Any

from landscape_lib import (
    data,
    directions,
    models,
    page,
    results,
    runtime,
    slices,
    training,
    weights,
)
from landscape_lib.directions import pca_directions, random_direction, random_directions
from landscape_lib.entropy_sgd import EntropySGD
from landscape_lib.evaluation import Cost, StoreMismatch, batchnorm, cost, evaluate, refine
from landscape_lib.pal import PAL
from landscape_lib.slices import Line, Plane, Slice
from landscape_lib.training import CheckpointMismatch, History, train
from landscape_lib.weights import Weights, load_weights, weights_of

__version__ = "0.1.0"

__all__ = [
    "CheckpointMismatch",
    "Cost",
    "EntropySGD",
    "History",
    "Line",
    "PAL",
    "Plane",
    "Slice",
    "StoreMismatch",
    "Weights",
    "batchnorm",
    "comparison",
    "cost",
    "curvature",
    "data",
    "directions",
    "evaluate",
    "figures",
    "load_weights",
    "models",
    "mpo",
    "page",
    "patterns",
    "pca_directions",
    "plots",
    "random_direction",
    "random_directions",
    "recipes",
    "refine",
    "results",
    "rivals",
    "runtime",
    "slices",
    "train",
    "training",
    "weights",
    "weights_of",
    "widgets",
]

runtime.keep_freed_memory()


# Imported on first use: evaluation needs none of them.
_ROOMS = {
    "comparison": "training.comparison",
    "curvature": "curvature",
    "figures": "figures",
    "mpo": "mpo",
    "patterns": "mpo.patterns",
    "plots": "plots",
    "recipes": "training.recipes",
    "rivals": "training.rivals",
    "widgets": "widgets",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"landscape_lib.{_ROOMS[name]}")
    raise AttributeError(f"module 'landscape_lib' has no attribute {name!r}")
