"""What is measured at a point: loss and metrics as sums over samples, with their standard errors.

A mean over samples is a ratio: of a sum of values and a sum of weights. For most losses every
sample has the weight 1. A loss with class weights, or that leaves out some targets, gives each
sample another one, and batches must not be averaged as if it did not: both sums are kept.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from landscape_lib.evaluation.batches import Group
from landscape_lib.evaluation.losses import (
    Measure,
    Seen,
    UnevenLoss,
    close,
    ignored_target,
    loss_in,
    sample_weights,
    samples_of,
    unreduced,
    weighs_evenly,
)
from landscape_lib.evaluation.nested import tensors_in
from landscape_lib.evaluation.sums import five_sums
from landscape_lib.weights import float64

# The names that a dataset of evaluate(), or its store, has anyway.
_RESERVED = re.compile(
    r"loss|samples|alpha|beta|point|c\d+|.*_se|.*_difference|values|done|variable"
)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 for each sample whose largest output is its class, else 0; NaN if it has NaN.

    Args:
        output: shape (N, C) or (N, C, ...), one score per class.
        target: shape (N,) or (N, ...), class indices.

    Returns:
        Shape (N,) or (N, ...).
    """
    correct = (output.argmax(dim=1) == target).to(output.dtype)
    return torch.where(output.isnan().any(dim=1), torch.nan, correct)


@dataclass(frozen=True)
class _One:
    """One measure: of samples or batches, weighed from outside or not, a target left out."""

    function: Measure
    per_sample: bool
    weighed: bool = False
    left_out: int | None = None

    def values_and_weights(self, output: Any, group: Group) -> tuple[Tensor, Tensor]:
        """Return float64 values and weights of the samples; a mean of a batch in every place."""
        value = float64(self.function(output, group.y))
        if not self.per_sample:
            return value.expand(group.size), torch.ones_like(value).expand(group.size)
        value = value.reshape(group.size, -1)
        if self.left_out is not None:
            counts = (group.y != self.left_out).reshape(group.size, -1)
            # Of the mean over what counts in a sample, so that a sample is what is drawn.
            return torch.where(counts, value, 0.0).sum(1), counts.to(value.dtype).sum(1)
        if self.weighed and group.weights is not None:
            return value.sum(1), group.weights
        return value.mean(dim=1), torch.ones_like(value[:, 0])


class Measures:
    """Loss and metrics as sums over samples, ready to be accumulated over batches.

    Args:
        loss: callable ``(output, target) -> scalar mean``. If it also takes
            ``reduction="none"``, as the losses of torch do, standard errors are available.
        metrics: name -> callable ``(output, target)`` that returns one value per sample (N,) or
            the mean as a scalar; ``None`` means accuracy where targets are class indices, those
            that the loss ignores left out.
        seen: one batch, on which everything is tried.

    Raises:
        TypeError: ``loss`` or a metric is not callable or returns no tensor; ``metrics`` is not a
            mapping.
        ValueError: a measure returns a shape that is neither a scalar nor one value per sample, or
            a metric has a reserved name.
    """

    def __init__(self, loss: Measure, metrics: Mapping[str, Measure] | None, seen: Seen) -> None:
        for tensor in tensors_in(seen.output)[:1]:
            loss = loss_in(loss, tensor.dtype) if tensor.is_floating_point() else loss
        self._mean = loss
        self._ones = {"loss": _choose_loss(loss, seen)}
        if metrics is None:
            left_out = ignored_target(loss)
            if _is_classification(seen, left_out):
                self._ones["accuracy"] = _One(accuracy, True, left_out=left_out)
            metrics = {}
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"metrics: expected a mapping from names to callables, got {type(metrics).__name__}"
            )
        for name, metric in metrics.items():
            if not isinstance(name, str) or _RESERVED.fullmatch(name):
                raise ValueError(f"metrics: expected a name that is not reserved, got {name!r}")
            if not name or not name.isprintable() or "/" in name:
                raise ValueError(
                    f"metrics: expected a name of printable characters without '/', got {name!r}"
                )
            self._ones[name] = _tried(metric, f"metrics[{name!r}]", seen)

    @property
    def names(self) -> tuple[str, ...]:
        """``"loss"``, then the names of the metrics."""
        return tuple(self._ones)

    @property
    def per_sample(self) -> bool:
        """Whether every measure gives one value per sample."""
        return all(one.per_sample for one in self._ones.values())

    def keep_apart(self, seen: Seen) -> bool:
        """Take those that see the batch for means of batches; say if outputs may be joined."""
        if seen.size < 2:
            return False
        for name, one in self._ones.items():
            if not one.per_sample:
                continue
            try:
                parts = [_values(one, samples_of(seen, part)) for part in _halves(seen.size)]
            except Exception:  # the output holds samples in some other way
                return False
            if not close(torch.cat(parts), _values(one, seen)):
                function = self._mean if name == "loss" else partial(_mean_of, one.function)
                self._ones[name] = replace(one, function=function, per_sample=False)
        return self.per_sample

    def is_mean(self, seen: Seen) -> bool:
        """Say whether the loss of a batch is the mean of those of its halves, where that is known.

        It is not if classes weigh differently, targets are left out, or it is a sum.
        """
        if seen.size < 2:
            return True
        try:
            halves = [samples_of(seen, part) for part in _halves(seen.size)]
            parts = [h.size * float64(self._mean(h.output, h.target)).mean() for h in halves]
        except Exception:  # the output holds samples in some other way
            return True
        whole = float64(self._mean(seen.output, seen.target)).mean()
        return close(torch.stack(parts).sum() / seen.size, whole)

    def weigh(self, batches: Iterable[Seen], targets: Any) -> list[Tensor] | None:
        """Return what samples weigh in the loss, batch by batch; ``None`` where all weigh the same.

        From then on these weights are expected. A loss that hides them is from then on measured by
        its own mean of each batch, without standard errors.

        Args:
            batches: seen one by one, and only if ``targets`` do not tell.
            targets: of all batches.
        """
        loss = self._ones["loss"]
        if not loss.per_sample or weighs_evenly(self._mean, targets):
            return None
        try:
            found = [sample_weights(seen, loss.function, self._mean) for seen in batches]
        except UnevenLoss:
            self._ones["loss"] = _One(self._mean, False)
            return None
        if all(even for _, even in found):
            return None
        self._ones["loss"] = replace(loss, weighed=True)
        return [weights for weights, _ in found]

    def values(self, output: Any, group: Group) -> tuple[Tensor, Tensor]:
        """Return float64 values and weights of one group, shape (measures, size) each."""
        pairs = [one.values_and_weights(output, group) for one in self._ones.values()]
        values, weights = zip(*pairs, strict=True)
        return torch.stack(values), torch.stack(weights)

    def sums(self, output: Any, group: Group) -> Tensor:
        """Return float64 sums over one group, shape (measures, 5), see ``SUMS``.

        Pure tensor operations, so that it also works inside ``torch.vmap``. The sum of squares is
        NaN for a measure that gives only means. If the group has a reference, as many rows again
        follow for the differences from it.
        """
        values, w = self.values(output, group)
        known = values.new_tensor([0.0 if o.per_sample else math.nan for o in self._ones.values()])
        rows = [five_sums(values, w, known)]
        if group.reference is not None:
            # Subtracted sample by sample: what all points have in common cancels.
            rows.append(five_sums(values - group.reference, w, known))
        return torch.cat(rows)


def _is_classification(seen: Seen, left_out: int) -> bool:
    output, target = seen.output, seen.target
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return False
    if target.is_floating_point() or output.dim() != target.dim() + 1:
        return False
    classes = output.shape[1]
    fits = output.shape[:1] + output.shape[2:] == target.shape
    known = (target < classes) | (target == left_out)
    return fits and classes > 1 and bool(known.all())


def _tried(function: Measure, name: str, seen: Seen) -> _One:
    if inspect.isclass(function):
        raise TypeError(
            f"{name}: expected a callable (output, target), got the class {function.__name__}: "
            f"call it first, {function.__name__}()"
        )
    if not callable(function):
        raise TypeError(
            f"{name}: expected a callable (output, target), got {type(function).__name__}"
        )
    try:
        value = function(seen.output, seen.target)
    except Exception as error:
        error.add_note(f"landscape_lib: {name} was tried on a few samples")
        raise
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected it to return a tensor, got {type(value).__name__}")
    if value.dim() > 0 and value.shape[0] != seen.size:
        raise ValueError(
            f"{name}: expected a scalar or one value per sample, shape ({seen.size},), "
            f"got shape {tuple(value.shape)}"
        )
    return _One(function, per_sample=value.dim() > 0)


def _choose_loss(loss: Measure, seen: Seen) -> _One:
    """Prefer the per-sample form of the loss, if it has one."""
    keywords = getattr(loss, "keywords", {})
    if keywords.get("reduction", getattr(loss, "reduction", None)) == "sum":
        raise ValueError("loss: expected one that gives the mean, got reduction='sum'")
    found = _tried(loss, "loss", seen)
    each = None if found.per_sample else unreduced(loss)
    if each is None:
        return found
    values = each(seen.output, seen.target)
    fits = values.dim() > 0 and values.shape[0] == seen.size
    return _One(each, True) if fits else found


def _mean_of(function: Measure, output: Any, target: Any) -> Tensor:
    return float64(function(output, target)).mean()


def _values(one: _One, seen: Seen) -> Tensor:
    return float64(one.function(seen.output, seen.target)).reshape(seen.size, -1).sum(1)


def _halves(size: int) -> tuple[slice, slice]:
    return slice(0, size // 2), slice(size // 2, size)
