"""Multi-point optimisation: fit a slice of weight space to a pattern.

Skorokhodov and Burtsev, 2019, "Loss landscape sightseeing with multi-point optimization".
Every cell of a pattern is a point of a plane, that is, a network. The plane is trained so that the
networks at LOW cells classify well and those at HIGH cells badly. A fit is three weight vectors and
one number, however many cells the pattern has; a line or more than two dimensions work the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from landscape_lib import runtime
from landscape_lib.evaluation.given import naming
from landscape_lib.mpo import patterns
from landscape_lib.mpo.cells import Cells
from landscape_lib.mpo.draws import Plan
from landscape_lib.mpo.fitted import MPOFit
from landscape_lib.mpo.patterns import Pattern
from landscape_lib.mpo.settings import TAU, Settings, check_inputs, count_images
from landscape_lib.mpo.span import Span, initial_vectors
from landscape_lib.mpo.steps import Fitting
from landscape_lib.training.checkpoint import History, Run
from landscape_lib.training.train import Augment
from landscape_lib.weights import Weights, weights_of


def fit(
    model: nn.Module,
    pattern: ArrayLike,
    data: Any,
    *,
    procedure: str = "fast",
    iterations: int | None = None,
    cells: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    tau: float = TAU,
    high_weight: float = 1.0,
    shared_batch: bool | None = None,
    prune: bool | int = True,
    parametrization: str = "paper",
    initialization: str = "xavier",
    origin: Weights | None = None,
    scale: float = 0.1,
    schedule: str | None = None,
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

    ``fitted = fit(model, pattern, data)`` draws a picture, ``surface = fitted.map(model, test)`` is
    its map, and ``fitted.quality(surface)`` says how well it shows.

    Each iteration draws LOW and HIGH cells without replacement and takes a step of Adam on
    ``mean_LOW L - c mean_HIGH min(L, tau)`` with L the mean loss of a cell on its minibatch: a HIGH
    cell whose loss is above tau has no gradient. Batch norm uses the statistics of each cell's
    minibatch, so maps of such a model need ``batchnorm="batch"``; its scales should be stored
    around zero (:func:`landscape_lib.evaluation.batchnorm.mean_zero`).

    Args:
        model: gives the architecture; it is copied, and its weights are not used.
        pattern: d-dimensional, 1 for LOW and 0 for HIGH, or rows of text; see ``patterns``.
        data: training set with tensors ``x`` (N, ...) and ``y`` (N, ...).
        procedure: gives ``iterations``, ``cells``, ``batch_size``, ``lr``, ``shared_batch`` and
            ``schedule`` where they are ``None``. ``"fast"`` is among the best for its work (page
            "How fast is it?"): up to 24 + 24 cells with 4 images of its own each, one cycle of the
            rate up to 2e-3, and so many steps, 1,000 or more, that a cell is drawn 500 times on
            average.
            ``"paper"``: 50 cells that share 512 images at a constant 3e-4 are the paper's; that
            this means 50 LOW and 50 HIGH ones, and the 100 epochs (11,800 steps on Fashion-MNIST),
            are the authors' code's. In a smaller data set a minibatch is all of it.
        iterations: steps.
        cells: how many LOW and how many HIGH cells per iteration, two numbers or one for both; all
            if there are fewer.
        batch_size: images per iteration if shared, else images per cell.
        lr: learning rate of Adam, the largest one of a schedule.
        seed: of the initial vectors, the cells, the order of images, augmentation and dropout.
        loss: callable ``(output, target) -> scalar mean``.
        tau: HIGH losses count up to this value.
        high_weight: c, the weight of the HIGH cells.
        shared_batch: all cells see the same images (the paper), or each cell has its own: less
            alike and therefore a better gradient, for the same arithmetic.
        prune: do not train cells whose neighbours are all of their class (the paper). A number k of
            2 or more still trains every k-th of them along each axis: in the middle of large areas
            the loss does not always follow.
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
            ``"auto"``, see ``mpo.cells``; the result says which.
        chunk_size: cells computed together; chosen if ``None``. Limits memory.
        dtype: compute dtype, for example ``torch.bfloat16``; the model's own by default. The
            trained vectors have at least float32, orthogonalisation float64.
        record_every: iterations between two rows of the history.
        stop_gap: stop at the first row in which the LOW accuracy is by so much above the HIGH one,
            on training images.
        checkpoint: file written with every row; the fit resumes from it, to the same bits as one
            that was not interrupted.
        on_record: called with the fit so far after every row, for example to draw its map. Random
            numbers that it draws start from ``seed`` at every call and leave those of the fit
            alone. A fit that resumes calls it with new rows only.
        progress: show a progress bar if it takes longer than two seconds.

    Raises:
        TypeError, ValueError: bad input, named before any work.
        CheckpointMismatch: ``checkpoint`` belongs to another fit; it is left untouched.
    """
    wanted = patterns.from_drawing(pattern)
    settings = Settings.of(
        procedure,
        wanted,
        count_images(data),
        iterations=iterations,
        cells=cells,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        tau=tau,
        high_weight=high_weight,
        shared_batch=shared_batch,
        prune=prune,
        parametrization=parametrization,
        initialization=initialization,
        scale=scale,
        schedule=schedule,
        clip=clip,
        method=method,
        chunk_size=chunk_size,
        dtype=dtype,
        record_every=record_every,
        stop_gap=stop_gap,
    )
    functions = {"loss": loss, "augment": augment, "on_record": on_record}
    check_inputs(model, wanted, data, settings, origin, functions, checkpoint)
    with runtime.isolated_random_state(seed):
        fitting = _begin(model, wanted, data, settings, loss, augment, origin)
        if checkpoint is not None:
            fitting.describe(model, loss)
            fitting.run.resume(Path(checkpoint).expanduser())
        for _ in fitting.rows(progress):
            if checkpoint is not None:
                fitting.run.save(Path(checkpoint).expanduser())
            if on_record is not None:
                with runtime.isolated_random_state(seed):  # or a resumed fit had other numbers
                    on_record(fitting.result())
    return fitting.result()


def _begin(
    model: nn.Module,
    pattern: Pattern,
    data: Any,
    settings: Settings,
    loss: Callable[[Any, Any], Tensor],
    augment: Augment | None,
    origin: Weights | None,
) -> Fitting:
    """Draw the initial vectors, and find out how the model's cells are to be computed."""
    seed, lr = settings.seed, float(settings.lr)
    vectors = initial_vectors(model, pattern.ndim, settings.initialization, origin, seed)
    span = Span(vectors, float(settings.scale), settings.parametrization)
    optimizer = torch.optim.Adam(span.parameters(), lr)
    cycle = None
    if settings.schedule == "one-cycle":
        steps = settings.iterations
        cycle = OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    run = Run(span, optimizer, cycle, runtime.generator(seed), History())
    plan = Plan(pattern, settings, len(data.y))
    objective = plan.objective()
    at = Cells(model, loss, settings.dtype)
    together = objective.low + objective.high
    with naming(data.x, data.y):
        method = at.choose(settings.method, data.x, data.y, together, settings.batch_size)
    return Fitting(plan, objective, data, augment, at, method, span, run, weights_of(model))
