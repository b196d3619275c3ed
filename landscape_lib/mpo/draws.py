"""The cells of a pattern: where they are, which ones an iteration draws, what their losses count.

Draws follow from the seed alone, so a resumed fit gets the same by leaving out those that are done.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape_lib import runtime
from landscape_lib.mpo import patterns
from landscape_lib.mpo.patterns import Pattern
from landscape_lib.mpo.settings import Settings
from landscape_lib.slices import FloatArray


def coordinates(pattern: Pattern) -> FloatArray:
    """Return the whole-number coordinates of all cells, shape (cells, d), in the pattern's order.

    Coordinate k counts along axis ``-1 - k`` of the pattern, from the middle cell: in a plane alpha
    is the column less W // 2, and beta the row less H // 2.
    """
    axes = [np.arange(side) - side // 2 for side in pattern.shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(pattern.size, -1)
    return grid[:, ::-1].astype(np.float64)


def trained_cells(pattern: Pattern, prune: bool | int) -> tuple[Tensor, Tensor]:
    """Return the indices of the LOW and of the HIGH cells that are trained."""
    classes = patterns.trained(pattern, prune)
    low, high = (torch.from_numpy(np.flatnonzero(classes == kind)) for kind in (1, -1))
    return low, high


def draw_cells(groups: tuple[Tensor, ...], amounts: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    """Draw cells without end: so many of each group, without replacement, the groups in order."""
    source = runtime.generator(seed + 1)  # the order of images has the seed itself
    while True:
        orders = [torch.randperm(len(group), generator=source) for group in groups]
        yield torch.cat([g[o[:n]] for g, o, n in zip(groups, orders, amounts, strict=True)])


def draw_images(total: int, amount: int, seed: int) -> Iterator[Tensor]:
    """Draw images without end: all in random order, then all in another order, and so on."""
    source = runtime.generator(seed)
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < amount:
            waiting = torch.cat([waiting, torch.randperm(total, generator=source)])
        yield waiting[:amount]
        waiting = waiting[amount:]


@dataclass(frozen=True)
class Objective:
    """What is minimised: ``mean_LOW L - c mean_HIGH min(L, tau)`` (MPO paper, eq. 3, appendix A).

    L is the mean loss of a cell on its minibatch. The paper writes the two signs the other way
    round, and calls the cells white and black; what it minimises is this.

    Attributes:
        low: number of LOW cells, which come first.
        high: number of HIGH cells.
        high_weight: c.
        tau: HIGH losses count up to this value, and have no gradient above it.
    """

    low: int
    high: int
    high_weight: float
    tau: float

    def terms(self, losses: Tensor, part: slice) -> Tensor:
        """Return what the cells of a part, of all cells in order, add to the objective."""
        is_low = torch.arange(self.low + self.high, device=losses.device)[part] < self.low
        highs = losses.clamp(max=self.tau) * (-self.high_weight / max(1, self.high))
        return torch.where(is_low, losses / self.low, highs)

    def summary(self, losses: Tensor, accuracies: Tensor) -> Tensor:
        """Return objective, LOW and HIGH loss, LOW and HIGH accuracy: means over the cells."""
        means = [
            side.mean() for v in (losses, accuracies) for side in (v[: self.low], v[self.low :])
        ]
        return torch.stack([self.terms(losses, slice(None)).sum(), *means])


@dataclass(frozen=True)
class Plan:
    """Which cells and which images every iteration of a fit sees.

    Attributes:
        pattern: the pattern.
        settings: of the fit.
        total: number of images in the training set.
    """

    pattern: Pattern
    settings: Settings
    total: int

    def objective(self) -> Objective:
        """Return what is minimised: of as many cells as asked for, or all if there are fewer."""
        groups = trained_cells(self.pattern, self.settings.prune)
        low, high = map(min, map(len, groups), self.settings.cells)
        return Objective(low, high, self.settings.high_weight, self.settings.tau)

    def iterations(self, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the iterations after those that are done.

        Yields:
            Coefficients of the cells (K, 1 + d), LOW cells first, and the indices of the images.
        """
        settings, objective = self.settings, self.objective()
        amounts = objective.low, objective.high
        images = settings.batch_size * (1 if settings.shared_batch else sum(amounts))
        places = torch.from_numpy(np.insert(coordinates(self.pattern), 0, 1.0, axis=1))
        draws = zip(
            draw_cells(trained_cells(self.pattern, settings.prune), amounts, settings.seed),
            draw_images(self.total, images, settings.seed),
            strict=True,
        )
        for cells, chosen in itertools.islice(draws, done, settings.iterations):
            yield places[cells], chosen
