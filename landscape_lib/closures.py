"""What our optimisers share: groups, and the loss of a batch with its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from landscape_lib.replay import Replay

Closure = Callable[[], Tensor]


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Raise a ``ValueError`` unless ``value`` is a finite number above one, or at least another."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and abs(value) < math.inf and value > above and least <= value <= most):
        bounds = f"above {above:g}" if above > -math.inf else f"of at least {least:g}"
        bounds += "" if most == math.inf else f", at most {most:g}"
        raise ValueError(f"{name}: expected a finite number {bounds}, got {value!r}")


def common(groups: Sequence[dict[str, Any]], name: str, why: str) -> Any:
    """Return the one value that a setting has in all groups.

    Raises:
        ValueError: groups differ.
    """
    values = [group[name] for group in groups]
    if any(value != values[0] for value in values[1:]):
        raise ValueError(f"{name}: expected one value for all groups ({why}), got {values}")
    return values[0]


class ClosureOptimizer(Optimizer):
    """An optimiser that evaluates its closure several times a step and calls ``backward`` itself.

    All groups are at the same step, also one that was added later.
    """

    closure_without_backward = True
    counters: tuple[str, ...] = ("steps",)

    def check(self) -> None:
        """Raise a ``TypeError`` or ``ValueError`` if a setting of a group is not possible."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, or raise an error and have the groups of before."""
        super().add_param_group(param_group)
        first, group = self.param_groups[0], self.param_groups[-1]
        group.update({counter: first[counter] for counter in self.counters})
        try:
            _check_group(group)
            self.check()
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise


def _check_group(group: dict[str, Any]) -> None:
    """Raise an error unless a group's parameters can be trained, and it asks for nothing else."""
    for parameter in group["params"]:
        if not parameter.is_floating_point() or parameter.is_sparse or parameter.is_meta:
            raise TypeError(
                f"params: expected dense tensors of real numbers, got {parameter.layout} of "
                f"{parameter.dtype} on {parameter.device}"
            )
    for name in ("weight_decay", "maximize"):
        if group.get(name):
            raise ValueError(f"{name}: expected it in the closure's loss, got {group[name]!r}")


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the norm of all tensors as one vector, in float64: squares of large ones overflow."""
    return math.hypot(*_numbers(torch._foreach_norm(list(tensors), 2, dtype=torch.float64)))


def inner(first: Iterable[Tensor], second: Iterable[Tensor]) -> float:
    """Return the inner product of two lists of tensors as vectors, in float64."""
    pairs = [
        (a.flatten().double(), b.flatten().double()) for a, b in zip(first, second, strict=True)
    ]
    return math.fsum(_numbers([torch.dot(a, b) for a, b in pairs]))


def _numbers(scalars: Iterable[Tensor]) -> list[float]:
    """Read scalar tensors in one transfer."""
    scalars = list(scalars)
    return torch.stack([s.to(scalars[0].device) for s in scalars]).tolist() if scalars else []


def check_closure(closure: Any) -> None:
    """Raise a ``TypeError`` unless an optimiser was given a closure."""
    if not callable(closure):
        raise TypeError(
            f"closure: expected a callable that returns the loss of a batch, "
            f"got {type(closure).__name__}"
        )


def loss_with_gradient(optimizer: Optimizer, closure: Closure) -> Tensor:
    """Evaluate a closure and let autograd put the gradient of its loss into ``.grad``.

    Gradients that were there before are cleared.

    Args:
        optimizer: whose parameters those are.
        closure: returns the loss of a batch, a scalar, without calling ``backward``.

    Returns:
        The loss, without its graph.

    Raises:
        TypeError: the closure returns no scalar tensor.
        RuntimeError: it called ``backward``, its loss depends on no parameter, or a gradient is
            sparse.
    """
    optimizer.zero_grad()
    with torch.enable_grad():
        loss = _scalar(closure())
        if _gradients(optimizer):
            raise RuntimeError(_backward(optimizer))
        if loss.requires_grad:
            try:
                loss.backward()
            except RuntimeError as error:
                if "second time" in str(error):
                    raise RuntimeError(_backward(optimizer)) from error
                raise
    gradients = _gradients(optimizer)
    if not gradients:
        raise RuntimeError(
            "closure: expected a loss that depends on the optimizer's parameters, got one without "
            "a gradient there (computed under no_grad, or detached?)"
        )
    for gradient in gradients:
        if gradient.layout != torch.strided:
            raise RuntimeError(f"closure: expected dense gradients, got {gradient.layout}")
    return loss.detach()


def loss_again(optimizer: Optimizer, replay: Replay) -> Tensor:
    """Evaluate a closure once more, and keep the gradients of its first evaluation."""
    held = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
    try:
        for parameter, _ in held:
            parameter.grad = None  # a closure may clear what it finds
        loss = _scalar(replay.again())
        if _gradients(optimizer):
            raise RuntimeError(_backward(optimizer))
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise RuntimeError(_backward(optimizer)) from error
        raise
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient
    return loss


def _backward(optimizer: Optimizer) -> str:
    name = type(optimizer).__name__
    return f"closure: expected no call of backward, which {name} makes itself, got one"


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.grad for p in parameters if p.grad is not None]


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() > 0:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"closure: expected it to return the loss, a scalar tensor, got {given}")
    return loss
