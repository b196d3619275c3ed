"""One training loop for any optimiser: curves, trajectory, and checkpoints that resume."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from landscape_lib import runtime
from landscape_lib.evaluation.batches import (
    Batch,
    channels_last_pays,
    check_count,
    move,
    read_batches,
    reads_channels_last,
)
from landscape_lib.evaluation.measures import SUMS, Measures, Seen, mean_and_error
from landscape_lib.training.checkpoint import History, Run

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
    dtype: torch.dtype | None = None,
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
        optimizer: built on the model's parameters; called as ``step(closure)``.
        epochs: passes over ``data``.
        batch_size: samples per step.
        loss: callable ``(output, target) -> scalar mean``.
        test: data set on which loss and accuracy are measured after every epoch, in eval mode.
        schedule: learning-rate schedule of ``optimizer``.
        schedule_every: ``"step"`` or ``"epoch"``: when the schedule advances.
        augment: ``(x, generator) -> x``, applied to each batch, for example
            :func:`crop_and_flip`.
        record_every: record the weights every so many steps.
        dtype: ``torch.bfloat16`` runs forward passes in torch's autocast: layers that gain from it
            compute in that type; weights, their gradients and the loss stay as they are.
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
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    if record_every is not None:
        check_count("record_every", record_every)
    if schedule_every not in ("step", "epoch"):
        raise ValueError(f"schedule_every: expected 'step' or 'epoch', got {schedule_every!r}")
    if augment is not None and not callable(augment):
        raise TypeError(
            f"augment: expected a callable (x, generator), got {type(augment).__name__}"
        )
    _check_model(model)
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"dtype: expected None or torch.bfloat16, got {dtype!r}")
    size = _size(data)
    _check_optimizer(model, optimizer, schedule)
    with runtime.isolated_random_state(seed), _mode_given_back(model):
        device = next(model.parameters()).device
        channels_last = _channels_last(model.eval(), data.x[:1].to(device))
        run = Run(model, optimizer, schedule, runtime.generator(seed), History(), dtype)
        if checkpoint is not None:
            settings = {
                "dtype": dtype,
                "epochs": epochs,
                "batch_size": batch_size,
                "schedule_every": schedule_every,
                "record_every": record_every,
                "seed": seed,
            }
            run.describe(data, test, loss, augment, settings)
            run.resume(Path(checkpoint))
        if record_every is not None and not run.history.trajectory:
            run.record(0)
        steps = -(-size // batch_size)
        with tqdm(
            total=epochs * steps,
            initial=len(run.history.batch_losses),
            unit="step",
            delay=2,
            disable=not progress,
        ) as bar:
            for epoch in range(len(run.history.epochs), epochs):
                started = time.perf_counter()
                model.train()
                rate = optimizer.param_groups[0].get("lr", float("nan"))
                order = torch.randperm(size, generator=run.generator)
                for chosen in order.split(batch_size):
                    chosen = chosen.to(data.x.device)
                    x, y = data.x[chosen], data.y[chosen]
                    if augment is not None:
                        x = augment(x, run.generator)
                    batch = move(Batch(x, y, len(y)), device, None, channels_last)
                    run.step(batch.x, batch.y, loss)
                    if schedule is not None and schedule_every == "step":
                        schedule.step()
                    done = len(run.history.batch_losses)
                    if record_every is not None and (
                        done % record_every == 0 or done == epochs * steps
                    ):
                        run.record(done)
                    bar.update()
                if schedule is not None and schedule_every == "epoch":
                    schedule.step()
                row = {
                    "epoch": epoch + 1,
                    "learning_rate": float(rate),
                    "train_loss": float(np.mean(run.history.batch_losses[-steps:])),
                }
                if test is not None:
                    with run.autocast():
                        scores = score(model, test, loss=loss)
                    row |= {f"test_{name}": value for name, value in scores.items()}
                run.history.epochs.append(row)
                run.history.seconds += time.perf_counter() - started
                bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if "_" in k}, refresh=False)
                if checkpoint is not None:
                    run.save(Path(checkpoint))
    return run.history


def score(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    batch_size: int = 512,
) -> dict[str, float]:
    """Return a model's mean loss and accuracy on a data set, in eval mode.

    Args:
        model: its mode is given back afterwards, and so is the global random state.
        data: anything that :func:`landscape_lib.evaluate` takes.
        loss: callable ``(output, target) -> scalar mean``.
        batch_size: samples per forward pass.

    Raises:
        TypeError, ValueError: bad input, named before any work.
    """
    _check_model(model)
    check_count("batch_size", batch_size)
    device = next(model.parameters()).device
    with runtime.isolated_random_state(0), _mode_given_back(model), torch.no_grad():
        model.eval()
        batches, _ = read_batches(data, None, batch_size, 0)
        channels_last = _channels_last(model, move(batches[0], device, None).x)
        first = move(batches[0], device, None, channels_last)
        measures = Measures(loss, None, Seen(model(first.x), first.y, first.size))
        even = measures.is_even([batch.y for batch in batches])
        if not even:
            measures.weigh()
        sums = torch.zeros(len(measures.names), SUMS, dtype=torch.float64, device=device)
        for batch in batches:
            batch = move(batch, device, None, channels_last)
            seen = Seen(model(batch.x), batch.y, batch.size)
            weights = None if even else measures.weights(seen)[0]
            sums += measures.sums(*seen, weights)
    means, _ = mean_and_error(sums.cpu().numpy(), 1, 1)
    return dict(zip(measures.names, means.tolist(), strict=True))


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


@contextlib.contextmanager
def _mode_given_back(model: nn.Module) -> Iterator[None]:
    """Give every module back in the mode it had: a caller may have frozen some of them."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _channels_last(model: nn.Module, x: Any) -> bool:
    first = next(model.parameters())
    return channels_last_pays(first.device, first.dtype) and reads_channels_last(model, x)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def _check_optimizer(model: nn.Module, optimizer: Optimizer, schedule: LRScheduler | None) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer: expected one built on the model's parameters, got one that has none of them"
        )
    if schedule is None:
        return
    if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
        raise TypeError(
            f"schedule: expected a torch LRScheduler that steps without a metric, "
            f"got {type(schedule).__name__}"
        )
    if schedule.optimizer is not optimizer:
        raise ValueError("schedule: expected one of the given optimizer, got one of another")


def _size(data: Any) -> int:
    if not (hasattr(data, "x") and hasattr(data, "y")):
        raise TypeError(f"data: expected a data set with x and y, got {type(data).__name__}")
    if len(data.x) != len(data.y) or len(data.x) == 0:
        raise ValueError(
            f"data: x and y must have one common length above 0, got {len(data.x)} and "
            f"{len(data.y)}"
        )
    return len(data.x)
