"""Optimisers compared: the same budget of passes for each, in the search and in the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape_lib import results, runtime
from landscape_lib.data import Dataset
from landscape_lib.evaluation.batches import Batch, move
from landscape_lib.training.checkpoint import History, Run
from landscape_lib.training.score import mode_given_back, pays_channels_last, score

BACKWARD = 2  # A backward pass takes about the arithmetic of two forward passes.


def cosine(share: float) -> float:
    """Fall from 1 to 0 along half a cosine (Loshchilov and Hutter, 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass(frozen=True)
class Method:
    """An optimiser in a comparison.

    Attributes:
        optimizer: called with the parameters and the settings.
        setting: name of the one that is searched.
        values: of it that are tried.
        fixed: the other settings.
        schedule: factor of ``lr`` when a share of the budget, from 0 to 1, is spent.
    """

    optimizer: Callable[..., Optimizer]
    setting: str
    values: Sequence[float]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    schedule: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        """Refuse functions that a stored result could not tell apart by their names."""
        for name, function in (("optimizer", self.optimizer), ("schedule", self.schedule)):
            called = getattr(function, "__name__", "")
            if function is not None and not called.isidentifier():
                raise ValueError(
                    f"{name}: expected a function or class with a name, got {function}"
                )

    def config(self) -> dict[str, Any]:
        """Return what a stored result of it depends on."""
        names = {"optimizer": self.optimizer.__name__, "setting": self.setting}
        schedule = None if self.schedule is None else self.schedule.__name__
        return names | {"values": list(self.values), "schedule": schedule, **self.fixed}


class Passes:
    """A loss that counts the passes of the network: its calls, and gradients that come back."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> None:
        self.loss, self.forwards, self.backwards = loss, 0, 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        self.forwards += 1
        if output.requires_grad:
            output.register_hook(self._count)
        return self.loss(output, target)

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1

    @property
    def spent(self) -> int:
        """What they cost, in forward passes."""
        return self.forwards + BACKWARD * self.backwards


@dataclass(frozen=True)
class Contest:
    """What all methods of a comparison share.

    A budget of so many epochs is what they cost with one forward and one backward pass per batch;
    a run ends with the step that reaches it.

    Attributes:
        build: ``seed -> module``, on its device.
        load: ``split -> data set``, ``"train"`` and ``"test"``.
        config: what a stored result depends on through ``build``, ``load`` and ``measure``.
        epochs: budget of a run.
        search_epochs: budget of each value in the search.
        validation: training samples held out in the search; the runs have them back.
        seeds: of the runs; the search has seed 0.
        batch_size: samples per batch.
        measure: ``model -> numbers`` by name, taken of each trained model.
    """

    build: Callable[[int], nn.Module]
    load: Callable[[str], Dataset]
    config: Mapping[str, Any]
    epochs: int = 10
    search_epochs: int = 3
    validation: int = 6000
    seeds: Sequence[int] = (1, 2, 3)
    batch_size: int = 128
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None

    def result(self, name: str, method: Method) -> xr.Dataset:
        """Search the method's setting, then run the best value, or load what this has left.

        Args:
            name: of the stored result, as of :func:`landscape_lib.results.cached`.
            method: what competes.

        Returns:
            ``search_loss`` and ``search_accuracy`` (value,), on the held-out samples at the end;
            ``best``, the value of highest accuracy; what :meth:`run` gives over ``seed``.
        """
        numbers = ("epochs", "search_epochs", "validation", "batch_size")
        config = {key: getattr(self, key) for key in numbers} | {"seeds": list(self.seeds)}
        config |= dict(self.config) | method.config()
        place = results.scratch(name, config)

        def compute() -> xr.Dataset:
            data, test = self.load("train"), self.load("test")
            fit, held_out = divide(data, self.validation)
            search = [
                results.kept(place, f"search_{k}", self.run, method, v, 0, fit, held_out, True)
                for k, v in enumerate(method.values)
            ]
            tried = xr.concat(search, "value")[["test_loss", "test_accuracy"]].isel(epoch=-1)
            best = float(method.values[int(np.argmax(tried["test_accuracy"].values))])
            runs = [
                results.kept(place, f"run_{seed}", self.run, method, best, seed, data, test)
                for seed in self.seeds
            ]
            found = xr.concat(runs, "seed").assign_coords(seed=list(self.seeds)).assign(best=best)
            for measure in ("loss", "accuracy"):
                found[f"search_{measure}"] = "value", tried[f"test_{measure}"].values
            return found.assign_coords(value=list(method.values)).assign_attrs(data=data.source)

        return results.cached(name, compute, config=config)

    def run(
        self,
        method: Method,
        value: float,
        seed: int,
        data: Dataset,
        test: Dataset,
        search: bool = False,
    ) -> xr.Dataset:
        """Train one model until the budget is spent.

        Returns:
            Over ``epoch``, an epoch's worth of passes: ``train_loss`` (mean of the batches since
            the one before, NaN if there was none), ``test_loss``, ``test_accuracy``, and the
            ``forwards`` and ``backwards`` so far; and what ``measure`` gave.
        """
        model, passes = self.build(seed), Passes()
        optimizer = method.optimizer(model.parameters(), **{method.setting: value}, **method.fixed)
        run = Run(model, optimizer, None, runtime.generator(seed), History())
        rates = [group.get("lr", 1.0) for group in optimizer.param_groups]
        epochs = self.search_epochs if search else self.epochs
        each = -(-len(data) // self.batch_size) * (1 + BACKWARD)
        rows: list[dict[str, float]] = []
        with runtime.isolated_random_state(seed), mode_given_back(model):
            batches = self._batches(run, data)
            for epoch in range(1, epochs + 1):
                before = len(run.history.batch_losses)
                model.train()
                while passes.spent < epoch * each:
                    if method.schedule is not None:
                        factor = method.schedule(passes.spent / (epochs * each))
                        for group, rate in zip(optimizer.param_groups, rates, strict=True):
                            group["lr"] = factor * rate
                    run.step(batches, passes)
                losses = run.history.batch_losses[before:] or [math.nan]
                row = {"train_loss": float(np.mean(losses))}
                row |= {f"test_{key}": number for key, number in score(model, test).items()}
                rows.append(row | {"forwards": passes.forwards, "backwards": passes.backwards})
            measured = {} if search or self.measure is None else self.measure(model)
        columns = {name: ("epoch", [row[name] for row in rows]) for name in rows[0]}
        return xr.Dataset(columns, {"epoch": np.arange(1, epochs + 1)}).assign(measured)

    def _batches(self, run: Run, data: Dataset) -> Iterator[Batch]:
        """Draw batches without end, in a new order each pass."""
        device = next(run.model.parameters()).device
        last = pays_channels_last(run.model, data.x[:1].to(device))
        for _ in itertools.count():
            for x, y in data.batches(self.batch_size, True, run.generator):
                yield move(Batch(x, y, len(y)), device, None, last)


def divide(data: Dataset, held_out: int) -> tuple[Dataset, Dataset]:
    """Return a data set without a random part of so many samples, and that part."""
    order = torch.randperm(len(data), generator=runtime.generator(0)).to(data.x.device)
    parts = order[held_out:], order[:held_out]
    first, second = (replace(data, x=data.x[part], y=data.y[part]) for part in parts)
    return first, second
