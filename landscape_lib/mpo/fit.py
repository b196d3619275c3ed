"""Multi-point optimisation: fit a slice of weight space to a pattern.

Skorokhodov and Burtsev, 2019, "Loss landscape sightseeing with multi-point optimization".
Every cell of a pattern is a point of a plane, that is, a network. The plane is trained so that the
networks at LOW cells classify well and those at HIGH cells badly. A fit is three weight vectors and
one number, however many cells the pattern has; a line or more than two dimensions work the same.
"""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from landscape_lib import runtime
from landscape_lib.fingerprint import digest
from landscape_lib.mpo import patterns
from landscape_lib.mpo.cells import Cells
from landscape_lib.mpo.draws import Objective, coordinates, draw_cells, draw_images, trained_cells
from landscape_lib.mpo.patterns import Pattern
from landscape_lib.mpo.quality import Quality, cells_of, quality
from landscape_lib.mpo.settings import check_inputs, check_settings
from landscape_lib.mpo.span import Span, initial_vectors
from landscape_lib.slices import Plane, Slice
from landscape_lib.training.checkpoint import History, Run
from landscape_lib.training.train import Augment
from landscape_lib.weights import Weights, combine, unflatten, weights_of

__all__ = ["MPOFit", "Quality", "cells_of", "fit", "quality"]


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
    """

    pattern: Pattern
    origin: Weights
    directions: tuple[Weights, ...]
    scale: float
    method: str
    history: History

    @property
    def right(self) -> Weights:
        """The direction along the columns of the pattern (along its last axis)."""
        return self.directions[0]

    @property
    def up(self) -> Weights:
        """The direction along the rows of the pattern, which are counted downwards."""
        return self.directions[1]

    def plane(self) -> Plane:
        """Return the plane at the cells of the pattern: alpha for columns, beta for rows.

        Cell (i, j) of an H x W pattern is at alpha = j - W // 2, beta = i - H // 2, in units of the
        scale times right and up. A map of this plane has dimensions (alpha, beta), so
        ``surface.accuracy.values.T`` is to be compared with the pattern. Rows are counted
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

        Direction k belongs to axis ``-1 - k`` of the pattern. A map of this slice has the dimension
        ``point``; ``surface.accuracy.values.reshape(pattern.shape)`` is to be compared with it.
        """
        return Slice(self.origin, self._scaled(), coordinates(self.pattern))

    def _scaled(self) -> tuple[Weights, ...]:
        return tuple(combine((direction,), (self.scale,)) for direction in self.directions)


def fit(
    model: nn.Module,
    pattern: ArrayLike,
    data: Any,
    *,
    iterations: int,
    cells: int | tuple[int, int],
    batch_size: int,
    lr: float,
    seed: int = 0,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    tau: float = 2.5,
    high_weight: float = 1.0,
    shared_batch: bool = True,
    prune: bool = True,
    parametrization: str = "paper",
    initialization: str = "xavier",
    origin: Weights | None = None,
    scale: float = 0.1,
    schedule: str = "constant",
    clip: float | None = None,
    augment: Augment | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
    record_every: int = 100,
    stop_gap: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_record: Callable[[MPOFit], object] | None = None,
    progress: bool = True,
) -> MPOFit:
    """Fit a slice to a pattern (MPO paper, eq. 1 to 3).

    Each iteration draws LOW and HIGH cells without replacement and takes a step of Adam on
    ``mean_LOW L - c mean_HIGH min(L, tau)`` with L the mean loss of a cell on its minibatch: a HIGH
    cell whose loss is above tau has no gradient. Batch norm uses the statistics of each cell's
    minibatch, so maps of such a model need ``batchnorm="batch"``; its scales should be stored
    around zero (:func:`landscape_lib.evaluation.batchnorm.mean_zero`).

    Args:
        model: gives the architecture; it is copied, and its weights are not used.
        pattern: d-dimensional, 1 for LOW and 0 for HIGH, or rows of text; see ``patterns``.
        data: training set with tensors ``x`` (N, ...) and ``y`` (N, ...).
        iterations: steps.
        cells: how many LOW and how many HIGH cells per iteration, two numbers or one for both; all
            if there are fewer.
        batch_size: images per iteration if shared, else images per cell.
        lr: learning rate of Adam, the largest one of a schedule. The paper has 3e-4.
        seed: of the initial vectors, the cells, the order of images, augmentation and dropout.
        loss: callable ``(output, target) -> scalar mean``.
        tau: HIGH losses count up to this value.
        high_weight: c, the weight of the HIGH cells.
        shared_batch: all cells see the same images (the paper), or each cell has its own: less
            alike and therefore a better gradient, for the same arithmetic.
        prune: do not train cells whose neighbours are all of their class (the paper).
        parametrization: ``"paper"`` or ``"code"``, see :class:`landscape_lib.mpo.span.Span`.
        initialization: ``"xavier"`` (the paper) or ``"pytorch"`` (the authors' code), see
            :func:`landscape_lib.mpo.span.initial_vectors`.
        origin: start from these weights, for example ``weights_of(model)``.
        scale: initial s; it is trained.
        schedule: ``"constant"``, or ``"one-cycle"``: the rate rises over 30 % of the iterations,
            then falls to almost 0, along cosines.
        clip: largest norm of the whole gradient (in the authors' code, 10 to 100).
        augment: ``(x, generator) -> x``, applied to the images of an iteration.
        method: how cells are computed, equal up to rounding: ``"basis"``, ``"vmap"``, ``"loop"`` or
            ``"auto"``, see ``mpo_cells``; the result says which.
        chunk_size: cells computed together; chosen if ``None``. Limits memory.
        dtype: compute dtype, for example ``torch.bfloat16``; the model's own by default. The
            trained vectors have at least float32, orthogonalisation float64.
        record_every: iterations between two rows of the history.
        stop_gap: stop at the first row in which the LOW accuracy is by so much above the HIGH one,
            on training images.
        checkpoint: file written with every row; the fit resumes from it, to the same bits as one
            that was not interrupted.
        on_record: called with the fit so far after every row, for example to draw its map. A fit
            that resumes calls it with new rows only.
        progress: show a progress bar if it takes longer than two seconds.

    Raises:
        TypeError, ValueError: bad input, named before any work.
        CheckpointMismatch: ``checkpoint`` belongs to another fit; it is left untouched.
    """
    wanted = patterns.from_drawing(pattern)
    settings: dict[str, Any] = {
        "iterations": iterations,
        "cells": cells if isinstance(cells, tuple) else (cells, cells),
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "tau": tau,
        "high_weight": high_weight,
        "shared_batch": shared_batch,
        "prune": prune,
        "parametrization": parametrization,
        "initialization": initialization,
        "scale": scale,
        "schedule": schedule,
        "clip": clip,
        "method": method,
        "chunk_size": chunk_size,
        "dtype": dtype,
        "record_every": record_every,
        "stop_gap": stop_gap,
    }
    check_settings(settings)
    functions = {"loss": loss, "augment": augment, "on_record": on_record}
    check_inputs(model, wanted, data, settings, origin, functions, checkpoint)
    groups = trained_cells(wanted, prune)
    low, high = map(min, map(len, groups), settings["cells"])
    objective = Objective(low, high, high_weight, tau)
    places = torch.from_numpy(np.insert(coordinates(wanted), 0, 1.0, axis=1))

    with runtime.isolated_random_state(seed):
        vectors = initial_vectors(model, wanted.ndim, initialization, origin, seed)
        span = Span(vectors, float(scale), parametrization)
        optimizer = torch.optim.Adam(span.parameters(), float(lr))
        cycle = None
        if schedule == "one-cycle":
            cycle = OneCycleLR(optimizer, float(lr), total_steps=iterations, cycle_momentum=False)
        run = Run(span, optimizer, cycle, runtime.generator(seed), History())
        at = Cells(model, loss, dtype)
        method = at.choose(method, data.x, data.y, low + high, batch_size)
        if checkpoint is not None:
            network = digest([repr(model), dict(model.named_buffers())])
            extra = {"pattern": digest(wanted), "network": network, "method": method}
            run.describe(data, None, loss, augment, settings | extra)
            run.resume(Path(checkpoint))
        done = len(run.history.batch_losses)
        images = batch_size * (1 if shared_batch else low + high)
        draws = zip(
            draw_cells(groups, (low, high), seed),
            draw_images(len(data.y), images, seed),
            strict=True,
        )
        seen: list[Tensor] = []
        started = time.perf_counter()
        bar = tqdm(total=iterations, initial=done, unit="step", delay=2, disable=not progress)
        with bar:
            for drawn, chosen in itertools.islice(draws, done, iterations):
                if _is_reached(stop_gap, run.history):
                    break
                x, y = data.x[chosen.to(data.x.device)], data.y[chosen.to(data.y.device)]
                if augment is not None:
                    x = augment(x, run.generator)
                basis = span()
                batch = at.lay_out(x, y)
                found = at.step(
                    basis, places[drawn], batch, batch_size, objective.terms, method, chunk_size
                )
                optimizer.zero_grad()
                basis.backward(found.gradient)  # through Gram-Schmidt, once for all cells
                if clip is not None:
                    nn.utils.clip_grad_norm_(span.parameters(), clip)
                rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                if cycle is not None:
                    cycle.step()
                seen.append(objective.summary(found.losses, found.accuracies))
                done += 1
                bar.update()
                if done % record_every == 0 or done == iterations:
                    row = _record(run.history, torch.stack(seen), done)
                    row |= {"scale": float(span.scale.detach()), "learning_rate": float(rate)}
                    run.history.seconds += time.perf_counter() - started
                    seen = []
                    bar.set_postfix(gap=f"{row['gap']:.3f}", loss=f"{row['loss']:.3f}")
                    if checkpoint is not None:
                        run.save(Path(checkpoint))
                    if on_record is not None:
                        on_record(_result(wanted, span, model, method, run.history))
                    started = time.perf_counter()
    return _result(wanted, span, model, method, run.history)


def _result(
    pattern: Pattern, span: Span, model: nn.Module, method: str, history: History
) -> MPOFit:
    """Return the fit that a span stands for, independent of what becomes of the span."""
    with torch.no_grad():
        directions = span.directions().to(span.vectors)
    shapes = weights_of(model)
    first, *others = (
        unflatten(vector.clone(), shapes) for vector in (span.vectors.detach()[0], *directions)
    )
    known = copy.deepcopy(history)
    return MPOFit(pattern, first, tuple(others), float(span.scale.detach()), method, known)


def _record(history: History, seen: Tensor, done: int) -> dict[str, float]:
    """Add a row of means over the iterations since the last row, and return it."""
    names = ("loss", "low_loss", "high_loss", "low_accuracy", "high_accuracy")
    row: dict[str, float] = {"epoch": len(history.epochs) + 1, "iteration": done}
    row |= dict(zip(names, seen.double().mean(dim=0).tolist(), strict=True))
    row["gap"] = row["low_accuracy"] - row["high_accuracy"]
    if np.isnan(row["loss"]):
        raise FloatingPointError(
            f"the objective became NaN at or before iteration {done}; try a smaller lr, or clip"
        )
    history.batch_losses.extend(seen[:, 0].tolist())
    history.epochs.append(row)
    return row


def _is_reached(stop_gap: float | None, history: History) -> bool:
    return stop_gap is not None and bool(history.epochs) and history.epochs[-1]["gap"] >= stop_gap
