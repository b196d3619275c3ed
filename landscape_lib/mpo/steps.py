"""A fit under way: its steps, the rows of its history, and the slice so far."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape_lib.fingerprint import digest, digest_without_weights
from landscape_lib.mpo.cells import Cells
from landscape_lib.mpo.draws import Objective, Plan
from landscape_lib.mpo.fitted import MPOFit
from landscape_lib.mpo.span import Span
from landscape_lib.runtime import progress_bar
from landscape_lib.training.checkpoint import History, Run
from landscape_lib.training.train import Augment
from landscape_lib.weights import Weights, unflatten


@dataclass(frozen=True)
class Fitting:
    """A fit under way.

    Attributes:
        plan: the cells and images of every iteration.
        objective: what is minimised.
        data: the training set.
        augment: as for ``fit``.
        at: the model at many cells.
        method: how they are computed.
        span: what is trained.
        run: its optimiser, its history, and the checkpoint of all that.
        shapes: weights of the model, for their shapes.
    """

    plan: Plan
    objective: Objective
    data: Any
    augment: Augment | None
    at: Cells
    method: str
    span: Span
    run: Run
    shapes: Weights

    def describe(self, model: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        """Take the fingerprint of all that the fit depends on."""
        network = digest_without_weights(model)
        extra = {"pattern": digest(self.plan.pattern), "network": network, "method": self.method}
        self.run.describe(self.data, None, loss, self.augment, vars(self.plan.settings) | extra)

    def rows(self, progress: bool) -> Iterator[None]:
        """Take the steps that are left, and pause after every row of the history."""
        settings, history = self.plan.settings, self.run.history
        done, seen, started = len(history.batch_losses), list[Tensor](), time.perf_counter()
        total = settings.iterations
        bar = progress_bar(progress, total=total, initial=done, unit="step")
        with bar:
            for cells, chosen in self.plan.iterations(done):
                if self._is_reached():
                    break
                rate = self.run.optimizer.param_groups[0]["lr"]
                seen.append(self.step(cells, chosen))
                done += 1
                bar.update()
                if done % settings.record_every == 0 or done == total:
                    row = _record(history, torch.stack(seen), done)
                    row |= {"scale": float(self.span.scale.detach()), "learning_rate": float(rate)}
                    history.seconds += time.perf_counter() - started
                    bar.set_postfix(gap=f"{row['gap']:.3f}", loss=f"{row['loss']:.3f}")
                    yield
                    seen, started = [], time.perf_counter()

    def step(self, cells: Tensor, chosen: Tensor) -> Tensor:
        """Take a step on cells and images, and return the objective's summary before it."""
        settings, run = self.plan.settings, self.run
        x, y = (side[chosen.to(side.device)] for side in (self.data.x, self.data.y))
        if self.augment is not None:
            x = self.augment(x, run.generator)
        basis = self.span()
        batch, terms = self.at.lay_out(x, y), self.objective.terms
        images, chunk = settings.batch_size, settings.chunk_size
        found = self.at.step(basis, cells, batch, images, terms, self.method, chunk)
        run.optimizer.zero_grad()
        basis.backward(found.gradient)  # through Gram-Schmidt, once for all cells
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self.span.parameters(), settings.clip)
        run.optimizer.step()
        if run.schedule is not None:
            run.schedule.step()
        return self.objective.summary(found.losses, found.accuracies)

    def result(self) -> MPOFit:
        """Return the fit so far, independent of what becomes of the span."""
        with torch.no_grad():
            directions = self.span.directions().to(self.span.vectors)
        vectors = (self.span.vectors.detach()[0], *directions)
        origin, *others = (unflatten(vector.clone(), self.shapes) for vector in vectors)
        scale, history = float(self.span.scale.detach()), copy.deepcopy(self.run.history)
        tau = float(self.plan.settings.tau)
        return MPOFit(self.plan.pattern, origin, tuple(others), scale, self.method, history, tau)

    def _is_reached(self) -> bool:
        gap, rows = self.plan.settings.stop_gap, self.run.history.epochs
        return gap is not None and bool(rows) and rows[-1]["gap"] >= gap


def _record(history: History, seen: Tensor, done: int) -> dict[str, float]:
    """Add a row of means over the iterations since the last row, and return it."""
    names = ("loss", "low_loss", "high_loss", "low_accuracy", "high_accuracy")
    row: dict[str, float] = {"epoch": len(history.epochs) + 1, "iteration": done}
    row |= dict(zip(names, seen.double().mean(dim=0).tolist(), strict=True))
    row["gap"] = row["low_accuracy"] - row["high_accuracy"]
    if math.isnan(row["loss"]):
        raise FloatingPointError(
            f"the objective became NaN at or before iteration {done}; try a smaller lr, or clip"
        )
    history.batch_losses.extend(seen[:, 0].tolist())
    history.epochs.append(row)
    return row
