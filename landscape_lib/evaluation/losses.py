"""What can be known of a loss: its form without the mean, and what each sample weighs in it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_lib.evaluation.nested import map_tensors, tensors_in
from landscape_lib.weights import float64

Measure = Callable[[Any, Any], Tensor]


class Seen(NamedTuple):
    """The output of a model on a batch, at the caller's own weights, with its targets."""

    output: Any
    target: Any
    size: int


class UnevenLoss(Exception):
    """The mean that a loss gives is no weighted mean of its per-sample values."""


def loss_in(loss: Any, dtype: torch.dtype) -> Any:
    """Return a loss of torch's kinds whose own tensors, such as class weights, have a dtype."""
    to = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    if isinstance(loss, partial):
        return partial(loss.func, *loss.args, **map_tensors(to, loss.keywords))
    if isinstance(loss, nn.Module) and any(to(t) is not t for t in loss.buffers()):
        return copy.deepcopy(loss).to(dtype)
    return loss


def unreduced(loss: Any) -> Measure | None:
    """Return a loss's form with one value per sample, if it is known to have one."""
    if isinstance(loss, nn.Module):
        if getattr(loss, "reduction", None) != "mean":
            return None
        loss = copy.copy(loss)
        loss.__dict__["reduction"] = "none"
        return loss
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return None
    return partial(loss, reduction="none") if "reduction" in parameters else None


def weighs_evenly(loss: Any, targets: Any) -> bool:
    """Say whether a loss is one of torch's that gives the mean of its values for these targets."""
    keywords = getattr(loss, "keywords", {})
    function = loss.func if isinstance(loss, partial) else loss
    if keywords.get("weight") is not None or getattr(loss, "weight", None) is not None:
        return False
    if function in (F.mse_loss, F.l1_loss) or type(loss) in (nn.MSELoss, nn.L1Loss):
        return True
    if function is not F.cross_entropy and type(loss) is not nn.CrossEntropyLoss:
        return False
    left_out = ignored_target(loss)
    leaves = tensors_in(targets)
    return not any(bool((t == left_out).any()) for t in leaves if not t.is_floating_point())


def ignored_target(loss: Any) -> int:
    """Return the target that the loss leaves out: torch's default unless it says another."""
    keywords = getattr(loss, "keywords", {})
    value = keywords.get("ignore_index", getattr(loss, "ignore_index", -100))
    return int(value) if isinstance(value, int) else -100


def sample_weights(seen: Seen, each: Measure, mean: Measure) -> tuple[Tensor, bool]:
    """Return what each sample weighs in a loss, shape (size,), and if all weigh the same.

    Where the mean that the loss gives is not that of its values, a sample weighs what its values
    are divided by when it is alone. That is asked at outputs drawn at random: at the model's own a
    sample may have no loss, or one that is not finite, and then nothing is learnt. Two draws have
    to agree, and the model's own outputs, as far as they are finite.

    Raises:
        UnevenLoss: that is not what the loss does.
    """
    values, whole = _values_and_mean(seen, each, mean)
    known = bool(values.isfinite().all()) and bool(whole.isfinite())

    def found(seed: int) -> tuple[Seen, Tensor, Tensor] | None:
        probe = _elsewhere(seen, seed)
        try:
            there = _values_and_mean(probe, each, mean)
        except Exception:  # the loss does not take such outputs
            return None
        fits = there[0].shape == values.shape and there[0].isfinite().all()
        return (probe, *there) if fits else None

    first = found(0) or (seen, values, whole)
    if (not known or close(values.mean(), whole)) and close(first[1].mean(), first[2]):
        return torch.full_like(values[:, 0], values.shape[1]), True
    second = found(1) or first
    weights, again = (_alone(probe, some, mean) for probe, some, _ in (first, second))
    fits = not known or close(values.sum() / weights.sum(), whole)
    if weights.isfinite().all() and close(again, weights) and fits:
        return weights, False
    raise UnevenLoss


def _values_and_mean(seen: Seen, each: Measure, mean: Measure) -> tuple[Tensor, Tensor]:
    values = float64(each(seen.output, seen.target)).reshape(seen.size, -1)
    return values, float64(mean(seen.output, seen.target)).mean()


def _alone(seen: Seen, values: Tensor, mean: Measure) -> Tensor:
    """Return what the values of each sample are divided by when it is alone, shape (size,)."""
    rows = []
    for k in range(seen.size):
        one = samples_of(seen, slice(k, k + 1))
        alone = float64(mean(one.output, one.target)).mean()
        total = values[k].sum()
        # Divided by 0 if nothing of the sample counts.
        none = total.isfinite() & ~alone.isfinite()
        rows.append(torch.where(none, 0.0, total / alone))
    return torch.stack(rows)


def samples_of(seen: Seen, part: slice) -> Seen:
    """Return some samples of what was seen."""
    cut = lambda t: t[part] if t.shape[:1] == (seen.size,) else t  # noqa: E731
    output, target = map_tensors(cut, seen.output), map_tensors(cut, seen.target)
    return Seen(output, target, part.stop - part.start)


def _elsewhere(seen: Seen, seed: int) -> Seen:
    """Return other outputs for the same targets: between 0 and 1, which most losses take."""
    source = torch.Generator("cpu").manual_seed(seed)

    def draw(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        drawn = torch.rand(t.shape, generator=source, dtype=torch.float64, device="cpu")
        return (0.05 + 0.9 * drawn).to(t)

    return seen._replace(output=map_tensors(draw, seen.output))


def close(found: Tensor, expected: Tensor) -> bool:
    """Say whether float64 results of float32 computations agree."""
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
