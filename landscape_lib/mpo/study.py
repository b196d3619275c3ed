"""Random masks with and without batch norm: the study of the MPO paper, section 4.2, as a grid.

Each cell of the grid is one fit, kept on its own as soon as it is finished, so that a killed study
goes on where it was, and any executor may share the fits out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from landscape_lib import models, results, runtime
from landscape_lib.closures import check_number
from landscape_lib.data import Dataset
from landscape_lib.evaluation import batchnorm
from landscape_lib.evaluation.batches import check_count
from landscape_lib.evaluation.distribute import TURN, on_worker
from landscape_lib.fingerprint import digest
from landscape_lib.mpo import patterns
from landscape_lib.mpo.fit import fit
from landscape_lib.mpo.fitted import MPOFit
from landscape_lib.mpo.patterns import Pattern
from landscape_lib.mpo.settings import check_tau

NORMS = ("none", "mean-zero", "standard")
POLICIES = ("batch", "reestimated", "frozen")
MEANS = ("low_loss", "high_loss", "low_accuracy", "high_accuracy", "gap", "iou")
RECORDS = 20  # at most so many rows of the history of each fit


@dataclass(frozen=True)
class MaskFit:
    """One fit of a random mask.

    Attributes:
        fill: the probability of a LOW cell.
        norm: batch norm of the network: ``"none"``, ``"mean-zero"`` (scales stored around zero, as
            in the paper) or ``"standard"`` (as PyTorch stores them).
        seed: of the mask, the initial vectors, the cells and the order of images. The arms share
            all of it but the vectors with mean-zero scales, which take random numbers of their own.
        frame: whether the mask has the two easy rings of the authors' code.
        size: cells along each side of the mask.
        iterations: steps.
        cells: how many LOW and how many HIGH cells in each step.
        batch_size: images of a cell in each step, its own; its batch norm sees these alone.
        lr: the largest learning rate of the one cycle.
        tau: HIGH losses count up to this value: 5 in the authors' code of this study.
        width: of the network, a factor of the paper's 8, 8, 32, 32, 64, 64 channels.
        pool: after which convolutions the picture is halved (in the paper after none).
        images: of each split, for the maps.
        version: changed whenever the code behind a fit changes what it computes.

    Raises:
        TypeError, ValueError: no fit has such settings, or all cells of the mask are of one kind.
    """

    fill: float
    norm: str
    seed: int
    frame: bool = False
    size: int = 16
    iterations: int = 1000
    cells: int = 24
    batch_size: int = 32
    lr: float = 2e-3
    tau: float = 5.0
    width: float = 1.0
    pool: tuple[int, ...] = (1, 3, 5)
    images: int = 1000
    version: int = 1

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm: expected one of {NORMS}, got {self.norm!r}")
        check_number("fill", self.fill, least=0, most=1)
        check_number("seed", self.seed, least=0)
        runtime.generator(self.seed)  # a whole number
        for name in ("iterations", "cells", "batch_size", "images"):
            check_count(name, getattr(self, name))
        check_number("lr", self.lr, above=0)
        check_tau(self.tau)
        self.mask()

    @property
    def name(self) -> str:
        """What the fit is called among those of its study: no other one is called so."""
        return f"{self.norm}_{self.fill:g}_{self.seed}_{digest(asdict(self))[:12]}"

    def network(self, in_channels: int = 1) -> nn.Module:
        """Build the network; the arms of the study differ in nothing but batch norm.

        Raises:
            ValueError: ``pool`` or ``width`` are not possible.
        """
        model = models.small_cnn(
            in_channels,
            channels=(8, 8, 32, 32, 64, 64),
            pool=self.pool,
            batchnorm=self.norm != "none",
            width=self.width,
            seed=self.seed,
        )
        return batchnorm.mean_zero(model) if self.norm == "mean-zero" else model

    @property
    def record_every(self) -> int:
        """Steps between two rows of the history."""
        return -(-self.iterations // RECORDS)

    def mask(self) -> Pattern:
        """Draw the mask, the same for all networks."""
        return patterns.random_mask(self.size, self.fill, frame=self.frame, seed=self.seed)


def fit_mask(wanted: MaskFit, load: Callable[[str], Dataset], place: Path | None) -> xr.Dataset:
    """Fit one mask, draw its maps and measure how well they show it.

    Args:
        wanted: the fit.
        load: gives the data set of ``"train"`` and of ``"test"``.
        place: a folder for the checkpoint and the outcome, from which a finished fit is read and
            an interrupted one resumed; for one data set alone, as :func:`results.scratch` gives it.

    Returns:
        The fields of :class:`MaskFit`; ``pattern`` over ``row`` and ``column``; ``loss`` and
        ``accuracy`` over ``split`` as well, and their means over the LOW and the HIGH cells,
        ``low_loss`` to ``high_accuracy``, ``gap`` and ``iou``, all cells counted; ``policy_loss``
        and ``policy_accuracy`` of the test images over ``policy``, NaN without batch norm:
        ``"batch"``, the statistics of all images of the map together, is that of ``loss``;
        ``"frozen"`` are those of a new network, mean 0 and variance 1 (the authors' trainer);
        ``train_gap`` at every ``step``, of the images and cells drawn since the one before; the
        scale s, and the ``seconds`` that the fit took.
    """
    place = None if place is None else Path(place).expanduser()
    with TURN:  # random numbers are shared by the threads of a process
        try:
            return results.kept(place, wanted.name, _fit_mask, wanted, load, place)
        except Exception as error:
            error.add_note(f"landscape_lib: in the fit {wanted.name}")
            raise


def _fit_on_worker(
    wanted: MaskFit, load: Callable[[str], Dataset], place: Path | None
) -> xr.Dataset:
    with TURN, on_worker():
        return fit_mask(wanted, load, place)


def _fit_mask(wanted: MaskFit, load: Callable[[str], Dataset], place: Path | None) -> xr.Dataset:
    data = {split: load(split) for split in ("train", "test")}
    images = data["train"]
    model = wanted.network(images.x.shape[1]).to(images.x.device)
    fitted = fit(
        model,
        wanted.mask(),
        images,
        iterations=wanted.iterations,
        cells=wanted.cells,
        batch_size=min(wanted.batch_size, len(images)),
        lr=wanted.lr,
        tau=wanted.tau,
        schedule="one-cycle",
        shared_batch=False,
        record_every=wanted.record_every,
        checkpoint=None if place is None else place / f"{wanted.name}.pt",
        seed=wanted.seed,
    )
    found = _maps(fitted, model, data, wanted)
    rows = fitted.history.epochs
    found["step"] = ("record", [int(row["iteration"]) for row in rows])
    found["train_gap"] = ("record", np.array([row["gap"] for row in rows], dtype=np.float32))
    found = found.assign(asdict(wanted) | {"pool": str(wanted.pool)})
    found = found.assign(scale=float(fitted.scale), seconds=fitted.history.seconds)
    return found.assign_attrs(data=images.source)


def _maps(
    fitted: MPOFit, model: nn.Module, data: Mapping[str, Dataset], wanted: MaskFit
) -> xr.Dataset:
    drawn = {split: few.subset(min(wanted.images, len(few))) for split, few in data.items()}
    cells = ("row", "column")

    def draw(images: Dataset, **options: Any) -> xr.Dataset:
        surface = fitted.map(model, images, batch_size=len(images), progress=False, **options)
        q = fitted.quality(surface)
        measured = {name: getattr(q, name) for name in MEANS}
        maps = {name: (cells, np.float32(surface[name])) for name in ("loss", "accuracy")}
        return xr.Dataset(maps | measured)

    splits = [draw(images) for images in drawn.values()]
    found = xr.concat(splits, xr.IndexVariable("split", list(drawn)))
    found["pattern"] = (cells, fitted.pattern)
    others = [] if wanted.norm == "none" else POLICIES[1:]
    tested = [splits[-1], *(draw(drawn["test"], batchnorm=policy) for policy in others)]
    measured = xr.concat(tested, xr.IndexVariable("policy", list(POLICIES[: len(tested)])))
    policies = measured.reindex(policy=list(POLICIES))[["loss", "accuracy", "gap"]]
    return found.merge(policies.rename({name: f"policy_{name}" for name in policies}))


def run(
    grid: Iterable[MaskFit],
    load: Callable[[str], Dataset],
    place: Path | None = None,
    *,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Do all fits of a study that are not done yet, and put them into one table.

    Args:
        grid: the fits.
        load: as in :func:`fit_mask`; it must be picklable if the workers are processes.
        place: as in :func:`fit_mask`.
        executor: runs the fits, for example ``ProcessPoolExecutor(2)``; in turn if ``None``.
            Each worker uses one thread, and threads of one process take turns.

    Returns:
        What :func:`fit_mask` returns, over ``fit``.

    Raises:
        ValueError: there are no fits, or they make no one table; before any work.
    """
    wanted = list(grid)
    _check(wanted)
    if executor is None:
        bar = runtime.progress_bar(iterable=wanted, unit="fit")
        done = [fit_mask(one, load, place) for one in bar]
    else:
        done = list(executor.map(partial(_fit_on_worker, load=load, place=place), wanted))
    return xr.concat(done, "fit", combine_attrs="override")


def _check(grid: list[MaskFit]) -> None:
    if not grid:
        raise ValueError("grid: expected at least one fit, got none")
    for one in grid:
        one.network()
    shapes = sorted({(one.size, -(-one.iterations // one.record_every)) for one in grid})
    if len(shapes) > 1:
        raise ValueError(
            f"grid: expected fits of one size whose histories have as many rows (up to {RECORDS}), "
            f"got sizes and rows {shapes}: run them apart"
        )
