"""One training loop for any optimiser: curves, trajectory, and checkpoints that resume."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from landscape_lib import files, runtime
from landscape_lib.evaluation.batches import Batch, is_whole, move
from landscape_lib.fingerprint import digest
from landscape_lib.training.checkpoint import History, Run
from landscape_lib.training.score import mode_given_back, pays_channels_last, score
from landscape_lib.training.settings import Settings, check_optimizer, count_samples
from landscape_lib.training.trajectory import Place
from landscape_lib.weights import check_model, weights_of

Augment = Callable[[Tensor, torch.Generator], Tensor]


def train(
    model: nn.Module,
    data: Any,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int = 128,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    test: Any = None,
    schedule: LRScheduler | None = None,
    schedule_every: str = "step",
    augment: Augment | None = None,
    record_every: int | None = None,
    record_to: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    weight_decay: float = 0.0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> History:
    """Train ``model`` in place.

    Minibatches are drawn without replacement, in a new order every epoch; the last one may be
    short. Shuffling, augmentation and dropout follow ``seed``; the global random state is given
    back as it was.

    Args:
        model: any module, to whose device batches are moved; its weights and buffers change.
        data: training set with ``x`` (N, ...) and ``y`` (N, ...).
        optimizer: built on the model's parameters; called as ``step(closure)``. :class:`PAL` and
            :class:`EntropySGD` get closures without ``backward``; a step of the latter takes as
            many batches as it asks for, and where the last step of an epoch lacks some, they come
            from another pass.
        epochs: passes over ``data``.
        batch_size: samples per step.
        loss: callable ``(output, target) -> scalar mean``.
        test: data set on which loss and accuracy are measured after every epoch, in eval mode.
        schedule: learning-rate schedule of ``optimizer``.
        schedule_every: ``"step"`` or ``"epoch"``: when the schedule advances.
        augment: ``(x, generator) -> x``, applied to each batch, for example
            :func:`crop_and_flip`.
        record_every: record the weights every so many steps. The progress bar says what that
            takes, and a warning before the first step if it is more than 1 GiB.
        record_to: where: on the model's device (``None``), ``"cpu"``, or a folder, in which every
            point is a file that is read when it is used, and that checkpoints do not repeat.
        dtype: ``torch.bfloat16`` runs forward passes in torch's autocast: layers that gain from it
            compute in that type; weights, their gradients and the loss stay as they are.
        weight_decay: adds ``weight_decay / 2`` times the squared norm of all trained parameters to
            the loss of each batch. For optimisers that look at the loss itself; others have a decay
            of their own.
        checkpoint: file written after every epoch; training resumes from it, to the same bits as
            an uninterrupted run.
        progress: show a progress bar if it takes longer than two seconds.
        seed: of the order of samples, augmentation and dropout.

    Returns:
        The history; the model and each of its modules end in the mode they began in.

    Raises:
        TypeError, ValueError: bad input, named before any weight changes.
        CheckpointMismatch: ``checkpoint`` belongs to another run; it is left untouched.
    """
    settings = Settings(epochs, batch_size, schedule_every, record_every, dtype, seed, weight_decay)
    if not callable(loss):
        raise TypeError(f"loss: expected a callable (output, target), got {type(loss).__name__}")
    if augment is not None and not callable(augment):
        raise TypeError(
            f"augment: expected a callable (x, generator), got {type(augment).__name__}"
        )
    if test is not None and not is_whole(test) and not isinstance(test, Iterable):
        raise TypeError(
            f"test: expected a data set with x and y, or batches, got {type(test).__name__}"
        )
    path = Path() if checkpoint is None else files.local_path("checkpoint", checkpoint)
    check_model(model)
    check_optimizer(model, optimizer, schedule)
    batches = -(-count_samples(data) // batch_size)
    steps = -(-batches // getattr(optimizer, "batches_per_step", 1))
    with runtime.isolated_random_state(seed), mode_given_back(model):
        device = next(model.parameters()).device
        channels_last = pays_channels_last(model.eval(), data.x[:1].to(device))
        run = Run(model, optimizer, schedule, runtime.generator(seed), History(), dtype)
        run.targets = data.y
        training = _Training(run, settings, data, test, loss, augment, channels_last)
        if checkpoint is not None:
            run.describe(data, test, loss, augment, vars(settings))
        mine = digest(run.fingerprint) if run.fingerprint else uuid.uuid4().hex
        run.place = Place.of(record_to, device, mine)
        if checkpoint is not None:
            run.resume(path)
        done, total = len(run.history.batch_losses), epochs * steps
        label = None
        if record_every is not None:
            points = len({*range(0, total, record_every), total}) - len(run.history.trajectory)
            label = f"trajectory of {run.place.cost(weights_of(model), points)}"
            if not run.history.trajectory:
                run.record(0)
        bar = runtime.progress_bar(progress, desc=label, total=total, initial=done, unit="step")
        with bar:
            for epoch in range(len(run.history.epochs), epochs):
                row = training.epoch(epoch + 1, steps, bar)
                bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if "_" in k}, refresh=False)
                if checkpoint is not None:
                    run.save(path)
    return run.history


@dataclass(frozen=True)
class _Training:
    """A training run under way; all but ``channels_last`` as for :func:`train`."""

    run: Run
    settings: Settings
    data: Any
    test: Any
    loss: Callable[[Any, Any], Tensor]
    augment: Augment | None
    channels_last: bool

    def epoch(self, number: int, steps: int, bar: tqdm) -> dict[str, float]:
        """Train for one epoch of so many steps, and return its row of the history."""
        started, history = time.perf_counter(), self.run.history
        rate = self.run.optimizer.param_groups[0].get("lr", float("nan"))
        every, last = self.settings.record_every, self.settings.epochs * steps
        self.run.model.train()
        # Passes are drawn when their first batch is needed.
        batches = itertools.chain.from_iterable(self.batches() for _ in itertools.count())
        for _ in range(steps):
            self.run.step(batches, self.loss, self.settings.weight_decay)
            self.advance("step")
            done = len(history.batch_losses)
            if every is not None and (done % every == 0 or done == last):
                self.run.record(done)
            bar.update()
        self.advance("epoch")
        row = {
            "epoch": number,
            "learning_rate": float(rate),
            "train_loss": float(np.mean(history.batch_losses[-steps:])),
        }
        if self.test is not None:
            with self.run.autocast():
                found = score(self.run.model, self.test, loss=self.loss)
            row |= {f"test_{name}": value for name, value in found.items()}
        history.epochs.append(row)
        history.seconds += time.perf_counter() - started
        return row

    def batches(self) -> Iterator[Batch]:
        """Draw the minibatches of one pass."""
        data, device = self.data, next(self.run.model.parameters()).device
        order = torch.randperm(len(data.x), generator=self.run.generator)
        for chosen in order.split(self.settings.batch_size):
            chosen = chosen.to(data.x.device)
            x, y = data.x[chosen], data.y[chosen]
            if self.augment is not None:
                x = self.augment(x, self.run.generator)
            yield move(Batch(x, y, len(y)), device, None, self.channels_last)

    def advance(self, after: str) -> None:
        """Advance the schedule after a step or an epoch, whichever it counts."""
        if self.run.schedule is not None and self.settings.schedule_every == after:
            self.run.schedule.step()


def crop_and_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image by up to ``pad`` pixels and mirror half of them, on the device.

    The usual CIFAR-10 augmentation (zero padding, random crop, horizontal flip), for a whole batch
    at once.

    Args:
        x: images, shape (N, C, H, W).
        generator: CPU generator of the shifts and flips.
        pad: largest shift in pixels.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: ``x`` has other than four dimensions, or ``pad`` is below 0.
    """
    if x.dim() != 4:
        raise ValueError(f"x: expected images (N, C, H, W), got shape {tuple(x.shape)}")
    if pad < 0:
        raise ValueError(f"pad: expected 0 or more pixels, got {pad}")
    n, channels, height, width = x.shape
    shifts = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
    flips = (torch.rand(n, generator=generator) < 0.5).to(x.device)
    rows = shifts[0][:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(n, width)
    columns = torch.where(flips[:, None], columns.flip(1), columns) + shifts[1][:, None]
    padded = F.pad(x, (pad, pad, pad, pad))
    sample = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
