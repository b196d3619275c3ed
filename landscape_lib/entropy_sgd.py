"""Entropy-SGD: gradient descent on the local entropy of a loss, which prefers wide valleys."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape_lib.closures import (
    Closure,
    ClosureOptimizer,
    check_closure,
    check_number,
    common,
    loss_with_gradient,
    norm,
)

OUTER = ("dropped-gamma", "gamma")


@dataclass(frozen=True)
class EntropySGDStep:
    """What Entropy-SGD saw and did in one step, for plots.

    Attributes:
        losses: of each batch of the inner loop; the first was measured at the weights before the
            step.
        gamma: of the first group.
        distance: of the inner loop's mean from the weights before the step; NaN if it is not
            finite, and then the weights stayed.
    """

    losses: tuple[float, ...]
    gamma: float
    distance: float


class EntropySGD(ClosureOptimizer):
    """Entropy-SGD (Chaudhari et al., 2017): descent on the negative local entropy of the loss.

    One step has an inner loop of ``inner_steps`` steps of Langevin dynamics around the weights x:

        y ← y - inner_lr (∇f(y) - gamma (x - y)) + √inner_lr noise N(0, 1)
        mean ← (1 - averaging) mean + averaging y

    from y = mean = x, each on the gradient of a fresh batch. The gradient of the negative local
    entropy is then gamma (x - mean), and there are two conventions for the outer step:

        "gamma":          x ← x - lr gamma (x - mean), the paper's formula
        "dropped-gamma":  x ← x - lr (x - mean), what the authors run, so that scoping does not
                          work against the schedule of ``lr``

    In the t-th step, t = 0, 1, ..., gamma is gamma (1 + scoping)^t, for groups that were added
    later as well. The loop is stable where
    inner_lr (λ + gamma) < 2 for each curvature λ of f. No inner steps is plain SGD, with one batch
    a step and Nesterov momentum.

    The authors' codes differ: their noise is √2 larger, their averaging weight .75 is that of the
    old mean (``averaging=.25`` here), and one of them never lets gamma grow.

    Running statistics of batch norm accumulate at y, near x but not at it: estimate them anew
    before testing (``evaluate(batchnorm="reestimated")``). Dropout draws a new mask at each call.
    A step with a loss, gradient or mean that is not finite leaves the weights as they were, and
    counts; buffers keep what the model did to them. Weight decay is part of f and belongs into the
    closure's loss (``ll.train(weight_decay=)``).

    Args:
        params: parameters, or groups of them, as for any torch optimiser; groups may differ in all
            but ``inner_steps`` and ``seed``.
        lr: outer learning rate, for schedules of torch.
        inner_lr: step size of the inner loop.
        inner_steps: gradients of one step, 0 for SGD.
        gamma: strength of the pull towards x at the first step.
        scoping: growth of gamma per step.
        noise: standard deviation of the Langevin noise; the temperature is noise²/2.
        averaging: weight of the newest sample in the mean, as in the paper; above 0, at most 1.
        momentum: Nesterov momentum on ∇f in the inner loop, started anew in each; the authors'
            codes have .9.
        outer: ``"dropped-gamma"`` or ``"gamma"``.
        seed: of the noise, which does not touch the global random state. Step t draws the same
            noise also after a resumption.

    Attributes:
        last: an :class:`EntropySGDStep`, ``None`` before the first. Each group counts ``steps`` and
            ``gradients``, the evaluations of loss and gradient.

    Raises:
        TypeError, ValueError: bad input, also of a group; in a step, a gamma that has overgrown.
    """

    counters = ("steps", "gradients")
    last: EntropySGDStep | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1.0,
        inner_lr: float = 0.1,
        inner_steps: int = 20,
        gamma: float = 0.03,
        scoping: float = 1e-3,
        noise: float = 1e-4,
        averaging: float = 0.75,
        momentum: float = 0.0,
        outer: str = "dropped-gamma",
        seed: int = 0,
    ) -> None:
        settings: dict[str, Any] = {
            "lr": lr,
            "inner_lr": inner_lr,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
            "noise": noise,
            "averaging": averaging,
            "momentum": momentum,
            "outer": outer,
            "seed": seed,
        }
        super().__init__(params, settings | {"steps": 0, "gradients": 0})

    @property
    def batches_per_step(self) -> int:
        """How many batches one step takes."""
        return max(1, self.param_groups[0]["inner_steps"])

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take one step: all of the inner loop, and one outer step.

        Args:
            closure: returns the loss of a fresh batch at each call, without ``backward``.

        Returns:
            The loss of the first batch, at the weights before the step.

        Raises:
            TypeError, RuntimeError: the closure is none, or its loss has no gradient.
        """
        check_closure(closure)
        self.check()
        first = self.param_groups[0]
        loops = [_Loop(group, self.state) for group in self.param_groups if group["params"]]
        noise = _Noise(first["seed"], first["steps"])
        losses = []
        try:
            for _ in range(self.batches_per_step):
                losses.append(loss_with_gradient(self, closure))
                for loop in loops:
                    loop.step(noise)
            values = tuple(float(loss) for loss in losses)
            distance = norm(part for loop in loops for part in loop.offsets)
        finally:
            for loop in loops:
                loop.go_back()
        if math.isfinite(distance + sum(values)):
            for loop in loops:
                loop.move()
        else:
            distance = math.nan
        self.last = EntropySGDStep(values, _gamma(first), distance)
        for group in self.param_groups:
            group["steps"] += 1
            group["gradients"] += len(values)
        return losses[0]

    def check(self) -> None:
        """Raise a ``ValueError`` if a setting is not possible, or if gamma has outgrown floats."""
        for name in ("inner_steps", "seed"):
            value = common(self.param_groups, name, "they share the batches and their noise")
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
                raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
        for group in self.param_groups:
            check_number("lr", group["lr"], least=0)
            check_number("inner_lr", group["inner_lr"], above=0)
            for name in ("gamma", "scoping", "noise"):
                check_number(name, group[name], least=0)
            check_number("averaging", group["averaging"], above=0, most=1)
            check_number("momentum", group["momentum"], least=0, most=math.nextafter(1, 0))
            if group["outer"] not in OUTER:
                raise ValueError(f"outer: expected one of {OUTER}, got {group['outer']!r}")
            most = min((torch.finfo(p.dtype).max for p in group["params"]), default=math.inf)
            if _gamma(group) * max(1.0, group["lr"]) > most:
                raise ValueError(
                    f"scoping: expected a gamma that numbers of the weights' type can hold, got "
                    f"{_gamma(group):.3g} at step {group['steps']} with {group['scoping']!r}"
                )


def _gamma(group: dict[str, Any]) -> float:
    """Return the gamma of a group's present step."""
    start, growth = float(group["gamma"]), 1 + float(group["scoping"])
    try:
        return start * growth ** group["steps"] if start else 0.0
    except OverflowError:
        return math.inf


class _Noise:
    """Normal noise of one step: another for each seed and step, the same after a resumption."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
        self.generators: dict[torch.device, torch.Generator] = {}

    def like(self, tensor: Tensor) -> Tensor:
        device = tensor.device
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        generator = self.generators[device]
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=device)


class _Loop:
    """The inner loop of one group: its weights are the y; x is kept, and the mean less x."""

    def __init__(self, group: dict[str, Any], state: dict[Tensor, Any]) -> None:
        self.group, self.state, self.inner = group, state, group["inner_steps"] > 0
        self.ys: list[Tensor] = group["params"]
        self.xs = [y.clone() for y in self.ys]
        self.offsets = [torch.zeros_like(y) for y in self.ys]
        self.velocities = [torch.zeros_like(y) for y in self.ys] if group["momentum"] else self.ys
        if group["momentum"] and not self.inner:
            for y, velocity in zip(self.ys, self.velocities, strict=True):
                velocity.copy_(state.get(y, {}).get("velocity", velocity))

    def step(self, noise: _Noise) -> None:
        """Move those y that have a gradient, and their means."""
        group = self.group
        chosen = [k for k, y in enumerate(self.ys) if y.grad is not None]
        if not chosen:
            return
        ys, xs, offsets, velocities = (
            [tensors[k] for k in chosen]
            for tensors in (self.ys, self.xs, self.offsets, self.velocities)
        )
        slope = [y.grad for y in ys if y.grad is not None]
        if group["momentum"]:
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, slope)
            slope = list(torch._foreach_add(slope, velocities, alpha=group["momentum"]))
        if not self.inner:
            torch._foreach_sub_(offsets, slope)
            return
        move = torch._foreach_add(slope, torch._foreach_sub(ys, xs), alpha=_gamma(group))
        torch._foreach_add_(ys, move, alpha=-group["inner_lr"])
        if group["noise"]:
            scale = math.sqrt(group["inner_lr"]) * group["noise"]
            torch._foreach_add_(ys, [noise.like(y) for y in ys], alpha=scale)
        torch._foreach_lerp_(offsets, torch._foreach_sub(ys, xs), group["averaging"])

    def go_back(self) -> None:
        """Set the weights to x again, to the bit."""
        torch._foreach_copy_(self.ys, self.xs)

    def move(self) -> None:
        """Take the outer step."""
        dropped = self.group["outer"] == "dropped-gamma" or not self.inner
        rate = self.group["lr"] * (1.0 if dropped else _gamma(self.group))
        torch._foreach_add_(self.ys, self.offsets, alpha=rate)
        if self.group["momentum"] and not self.inner:
            for y, velocity in zip(self.ys, self.velocities, strict=True):
                self.state[y]["velocity"] = velocity
