"""A fitted slice: three weight vectors and a number that stand for a picture of networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape_lib.evaluation.evaluate import evaluate
from landscape_lib.mpo.draws import coordinates
from landscape_lib.mpo.patterns import Pattern
from landscape_lib.mpo.quality import Quality, quality
from landscape_lib.mpo.settings import TAU
from landscape_lib.slices import Plane, Slice
from landscape_lib.training.checkpoint import History
from landscape_lib.weights import Weights, combine


@dataclass(frozen=True)
class MPOFit:
    """A slice fitted to a pattern: its points are networks.

    Attributes:
        pattern: the pattern, boolean, True for LOW.
        origin: the weights at the middle cell, the one with index ``side // 2`` along each axis.
        directions: orthogonal and of equal length, without the scale: right, up and so on.
        scale: s, the distance between neighbouring cells in units of the directions.
        method: how the cells were computed: ``"basis"``, ``"vmap"`` or ``"loop"``.
        history: the objective of every iteration in ``batch_losses``. The rows of ``epochs`` (one
            every ``record_every`` iterations) have means since the last row: ``loss`` (the
            objective), ``low_loss``, ``high_loss``, ``low_accuracy``, ``high_accuracy`` and ``gap``
            on training images; and ``iteration``, ``scale``, ``learning_rate``; ``epoch`` is the
            number of the row.
        tau: HIGH losses counted up to this value.
    """

    pattern: Pattern
    origin: Weights
    directions: tuple[Weights, ...]
    scale: float
    method: str
    history: History
    tau: float = TAU

    @property
    def right(self) -> Weights:
        """The direction along the columns of the pattern (along its last axis)."""
        return self.directions[0]

    @property
    def up(self) -> Weights:
        """The direction along the rows of the pattern, which are counted downwards."""
        return self.directions[1]

    def map(self, model: nn.Module, data: Any, **options: Any) -> xr.Dataset:
        """Measure the network of every cell: a map in the shape of the pattern.

        ``fitted.map(model, data).accuracy.values`` is to be compared with the pattern as it is,
        cell by cell.

        Args:
            model: the one given to ``fit``; its weights are not used.
            data: as for ``evaluate``.
            options: of ``evaluate``. If the model has batch norm, ``batchnorm`` is ``"batch"`` by
                default, as in training; the result then depends on ``batch_size``.

        Returns:
            What ``evaluate`` gives, with dimensions in the order of the pattern's: ``("beta",
            "alpha")``, rows and columns, in two dimensions, else ``("axis_0", "axis_1", ...)``.
        """
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            options = {"batchnorm": "batch"} | options
        if self.pattern.ndim == 2:
            return evaluate(model, self.plane(), data, **options).transpose("beta", "alpha")
        surface = evaluate(model, self.slice(), data, **options)
        axes = {f"axis_{k}": np.arange(n) - n // 2 for k, n in enumerate(self.pattern.shape)}
        variables = {
            name: (tuple(axes), values.values.reshape(self.pattern.shape))
            for name, values in surface.data_vars.items()
        }
        return xr.Dataset(variables, coords=axes, attrs=surface.attrs)

    def quality(self, surface: xr.Dataset, **options: Any) -> Quality:
        """Compare a map with the pattern, by :func:`landscape_lib.mpo.quality`.

        Args:
            surface: from :meth:`map`, or what ``evaluate`` gives for the plane or the slice.
            options: of ``quality``; ``tau`` is that of the fit by default.
        """
        return quality(surface, self.pattern, **{"tau": self.tau} | options)

    def plane(self) -> Plane:
        """Return the plane at the cells of the pattern: alpha for columns, beta for rows.

        Cell (i, j) of an H x W pattern is at alpha = j - W // 2, beta = i - H // 2, in units of the
        scale times right and up. ``evaluate`` gives a map of it with dimensions (alpha, beta), so
        columns come first; :meth:`map` gives one in the order of the pattern. Rows are counted
        downwards: to see the picture upright, draw beta downwards.

        Raises:
            ValueError: the pattern has other than two dimensions; use :meth:`slice`.
        """
        if self.pattern.ndim != 2:
            raise ValueError(
                f"pattern: a plane needs one of two dimensions, got shape {self.pattern.shape}; "
                f"slice() takes any"
            )
        rows, columns = (np.arange(side) - side // 2 for side in self.pattern.shape)
        return Plane(self.origin, self._scaled(), columns, rows)

    def slice(self) -> Slice:
        """Return the cells as points of a slice of any dimension, in the order of the pattern.

        Direction k belongs to axis ``-1 - k`` of the pattern. ``evaluate`` gives a map of it with
        the dimension ``point``; :meth:`map` gives one in the shape of the pattern.
        """
        return Slice(self.origin, self._scaled(), coordinates(self.pattern))

    def _scaled(self) -> tuple[Weights, ...]:
        return tuple(combine((direction,), (self.scale,)) for direction in self.directions)
