"""What is measured at a point: loss and metrics, per sample, with their standard errors."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten

from landscape_lib.weights import float64

Measure = Callable[[Any, Any], Tensor]

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


class Measures:
    """Loss and metrics as sums over samples, ready to be accumulated over batches.

    Args:
        loss: callable ``(output, target) -> scalar mean``. If it also takes
            ``reduction="none"``, as the losses of torch do, standard errors are available.
        metrics: name -> callable ``(output, target)`` that returns one value per sample (N,) or
            the mean as a scalar; ``None`` means accuracy where targets are class indices.
        output: the model's output for one batch, on which everything is tried.
        target: the targets of that batch.
        size: N, the number of samples in that batch.
        targets: of all batches. A loss that leaves out some of them (``ignore_index``) or that
            weighs classes is measured by its own mean of each batch, without standard errors.

    Raises:
        TypeError: ``loss`` or a metric is not callable or returns no tensor; ``metrics`` is not a
            mapping.
        ValueError: a measure returns a shape that is neither a scalar nor one value per sample, or
            a metric has a reserved name.
    """

    def __init__(
        self,
        loss: Measure,
        metrics: Mapping[str, Measure] | None,
        output: Any,
        target: Any,
        size: int,
        targets: Sequence[Any] = (),
    ) -> None:
        if metrics is None:
            metrics = {"accuracy": accuracy} if _is_classification(output, target) else {}
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"metrics: expected a mapping from names to callables, got {type(metrics).__name__}"
            )
        for name in metrics:
            if not isinstance(name, str) or _RESERVED.fullmatch(name):
                raise ValueError(f"metrics: expected a name that is not reserved, got {name!r}")
        self._functions: dict[str, tuple[Measure, bool]] = {
            "loss": _choose_loss(
                loss, output, target, size, _weighs(loss) or _ignores(loss, targets)
            )
        }
        for name, metric in metrics.items():
            value = _try(metric, f"metrics[{name!r}]", output, target)
            self._functions[name] = (metric, _is_per_sample(value, size, f"metrics[{name!r}]"))

    @property
    def names(self) -> tuple[str, ...]:
        """``"loss"``, then the names of the metrics."""
        return tuple(self._functions)

    @property
    def per_sample(self) -> bool:
        """Whether every measure gives one value per sample."""
        return all(per_sample for _, per_sample in self._functions.values())

    def values(self, output: Any, target: Any, size: int) -> tuple[Tensor, Tensor]:
        """Return float64 values of one batch: per sample, and the same with NaN for mere means.

        Pure tensor operations, so that it also works inside ``torch.vmap``.

        Returns:
            Two tensors of shape (measures, size). A measure that gives only means has its mean in
            every place of the first, and NaN in the second.
        """
        rows, known = [], []
        for function, per_sample in self._functions.values():
            value = float64(function(output, target))
            if per_sample:
                value = value.reshape(size, -1).mean(dim=1)
                rows.append(value)
                known.append(value)
            else:
                rows.append(value.expand(size))
                known.append(rows[-1] * math.nan)
        return torch.stack(rows), torch.stack(known)

    def sums(self, output: Any, target: Any, size: int, reference: Tensor | None = None) -> Tensor:
        """Return float64 sums over one batch, shape (measures, 2): of values, of squares.

        The sum of squares is NaN for a measure that gives only means. With ``reference``, the
        values of the same samples at another point, as many rows again follow for the differences
        from it.
        """
        values, known = self.values(output, target, size)
        rows = [torch.stack([values.sum(1), known.square().sum(1)], dim=1)]
        if reference is not None:
            # Subtracted sample by sample: what all points have in common cancels.
            apart = torch.stack([(values - reference).sum(1), (known - reference).square().sum(1)])
            rows.append(apart.T)
        return torch.cat(rows)


def mean_and_error(
    sums: NDArray[np.float64], samples: NDArray[np.float64] | float, population: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn sums into means and standard errors of the mean.

    The standard error is ``s / sqrt(n) * sqrt((N - n) / (N - 1))`` with the sample standard
    deviation s: the second factor is the correction for drawing n samples from a finite population
    of N without replacement; it is 0 when all were drawn.

    Args:
        sums: shape (..., 2), as from :meth:`Measures.sums`.
        samples: n, one number or shape (...).
        population: N; ``math.inf`` for the distribution that the data came from.

    Returns:
        Means and standard errors, shape (...). Where a part of the population all has one value,
        as hits of a good model have, its spread says nothing: the error is NaN.
    """
    n = np.asarray(samples, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = sums[..., 0] / n
        correction = 1.0 if math.isinf(population) else (population - n) / max(population - 1, 1)
        variance = (sums[..., 1] - n * mean**2) / (n - 1)
        # Where all samples agree, rounding can leave a tiny variance, negative or positive.
        noise = 1e-13 * mean**2
        variance = np.where(variance <= noise, np.nan, variance)
        error = np.sqrt(variance / n * correction)
    everything = (n >= population) & np.isfinite(mean)
    return mean, np.where(everything, 0.0, np.where(n > 1, error, np.nan))


def _is_classification(output: Any, target: Any) -> bool:
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return False
    if target.is_floating_point() or output.dim() != target.dim() + 1:
        return False
    classes = output.shape[1]
    fits = output.shape[:1] + output.shape[2:] == target.shape
    return fits and classes > 1 and bool((target < classes).all())


def _try(function: Measure, name: str, output: Any, target: Any) -> Tensor:
    if inspect.isclass(function):
        raise TypeError(
            f"{name}: expected a callable (output, target), got the class {function.__name__}: "
            f"call it first, {function.__name__}()"
        )
    if not callable(function):
        raise TypeError(
            f"{name}: expected a callable (output, target), got {type(function).__name__}"
        )
    value = function(output, target)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected it to return a tensor, got {type(value).__name__}")
    return value


def _is_per_sample(value: Tensor, size: int, name: str) -> bool:
    if value.dim() == 0:
        return False
    if value.shape[0] == size:
        return True
    raise ValueError(
        f"{name}: expected a scalar or one value per sample, shape ({size},), "
        f"got shape {tuple(value.shape)}"
    )


def _weighs(loss: Measure) -> bool:
    """Say whether the loss divides by the weights of the classes that it meets."""
    keywords = getattr(loss, "keywords", {})
    by_class = (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss)
    weight = keywords.get("weight", getattr(loss, "weight", None))
    function = getattr(loss, "func", None)
    of_torch = isinstance(loss, by_class) or function in (F.cross_entropy, F.nll_loss)
    return of_torch and weight is not None


def _ignores(loss: Measure, targets: Sequence[Any]) -> bool:
    """Say whether the loss leaves out one of the targets."""
    keywords = getattr(loss, "keywords", {})
    left_out = keywords.get("ignore_index", getattr(loss, "ignore_index", -100))
    leaves = [leaf for leaf in tree_flatten(list(targets))[0] if isinstance(leaf, Tensor)]
    return any(bool((t == left_out).any()) for t in leaves if not t.is_floating_point())


def _choose_loss(
    loss: Measure, output: Any, target: Any, size: int, uneven: bool
) -> tuple[Measure, bool]:
    """Prefer the per-sample form of the loss, if its mean is what the loss itself gives.

    ``uneven`` says that it is not, for targets that may come later.
    """
    keywords = getattr(loss, "keywords", {})
    if keywords.get("reduction", getattr(loss, "reduction", None)) == "sum":
        raise ValueError("loss: expected one that gives the mean, got reduction='sum'")
    mean = _try(loss, "loss", output, target)
    if mean.dim() > 0:
        return loss, _is_per_sample(mean, size, "loss")
    each = None if uneven else unreduced(loss)
    if each is not None:
        values = each(output, target)
        # A loss with class weights or ignored targets averages in another way: then only its own
        # mean is right, and there is no standard error.
        tiny = 1000 * torch.finfo(mean.dtype).eps
        if (
            values.dim() > 0
            and values.shape[0] == size
            and torch.allclose(values.mean(), mean, rtol=tiny, atol=tiny, equal_nan=True)
        ):
            return each, True
    return loss, False


def unreduced(loss: Any) -> Measure | None:
    """Return a loss's form with one value per sample, if it is known to have one."""
    if isinstance(loss, torch.nn.Module):
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
