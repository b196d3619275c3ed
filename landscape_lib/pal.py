"""PAL: a parabola along the gradient line of each batch, and a step to its minimum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape_lib.closures import (
    Closure,
    ClosureOptimizer,
    check_closure,
    check_number,
    common,
    inner,
    loss_again,
    loss_with_gradient,
    norm,
)
from landscape_lib.replay import Replay

# Rounding errors of the two losses, in units of the last place, below which a line is straight.
# Autocast rounds the factors of products and sums them in float32, which averages over samples: of
# straight lines the largest error seen is 1.3 units.
ROUNDING, AUTOCAST = 16.0, 2.0

# A shorter gradient has no direction that float32 could be multiplied by.
NOTHING = 1e-30

_WHY = "PAL steps along one line"


@dataclass(frozen=True)
class PALStep:
    """What PAL saw and did in one step, for plots: p(s) = ``loss`` + ``b`` s + ``a`` s².

    Attributes:
        case: ``"minimum"``: to that of the parabola (times alpha, at most ``s_max``); ``"mu"``:
            the line bends down or not at all; ``"stay"``: it rises; ``"skipped"``: a loss or the
            gradient was not finite.
        step: the distance s by which the weights moved.
        loss: of the batch before the step.
        loss_at_mu: of the same batch at distance ``mu``; NaN if it was not measured.
        a: half the curvature of the line.
        b: its slope.
        norm: of the direction before it was normalised; ``step / norm`` compares with a learning
            rate.
        mu: where the second loss was measured.
    """

    case: str
    step: float
    loss: float
    loss_at_mu: float
    a: float
    b: float
    norm: float
    mu: float


class PAL(ClosureOptimizer):
    """Parabolic approximation line search (Mutschler and Zell, 2020).

    Each step looks at the loss of one batch along the line d = -v/‖v‖, where v = g + ``beta`` v is
    the gradient with momentum. Loss and slope here and the loss at distance ``mu`` give a parabola;
    the step goes ``alpha`` times the way to its minimum, at most ``s_max``. Where the line bends
    down the step is ``mu``, where it rises there is none. It costs two forward passes and one
    backward pass.

    All groups of parameters make one line, so they share their settings. The second evaluation sees
    the same dropout masks, random augmentation and buffers as the first, and changes neither
    buffers nor the random state: batch norm counts the batch once. A step whose losses or gradient
    are not finite changes no weights, momentum or buffers.

    Weight decay belongs into the closure's loss, or the parabola is that of another function
    (``ll.train(weight_decay=)`` puts it there). A line counts as straight, a = 0, where rounding of
    the losses could have bent it, in the type of weights and loss or, if modules of the closure ran
    in torch's autocast, in its type: there, bends of up to 3 % of the loss do not count. torch's
    ``GradScaler`` refuses closures, and with them PAL. The authors' own decay of ``mu`` and
    ``s_max`` is ``decay``; a torch schedule drives ``lr``, a factor of the step.

    Args:
        params: parameters, or groups of them, as for any torch optimiser.
        mu: distance of the second loss, and the step where the line does not bend up.
        s_max: longest step.
        alpha: factor of the step to the minimum, above 1 to go further.
        beta: share of the last direction that is kept, from 0 to below 1.
        decay: factor of ``mu`` and ``s_max`` after every step.
        lr: factor of the step after all of this, for schedules of torch.

    Attributes:
        last: a :class:`PALStep`, ``None`` before the first; ``step`` 0 where none was taken. Each
            group counts ``steps`` (backward passes) and ``forwards`` (forward passes).

    Raises:
        TypeError, ValueError: bad input, also of a group.
    """

    counters = ("steps", "forwards")
    last: PALStep | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        mu: float = 0.1,
        s_max: float = 3.6,
        alpha: float = 1.0,
        beta: float = 0.4,
        decay: float = 1.0,
        lr: float = 1.0,
    ) -> None:
        settings = {"lr": lr, "mu": mu, "s_max": s_max, "alpha": alpha, "beta": beta}
        super().__init__(params, settings | {"decay": decay, "steps": 0, "forwards": 0})

    def check(self) -> None:
        """Raise a ``ValueError`` if a setting is not possible, or differs between groups."""
        self._settings()

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: returns the loss of a batch, the same one at each call, without ``backward``.

        Returns:
            The loss before the step. Each ``.grad`` holds its gradient.

        Raises:
            TypeError, RuntimeError: the closure is none, or its loss has no gradient.
            ValueError: groups differ in a setting.
        """
        check_closure(closure)
        settings = self._settings()
        everything = [p for group in self.param_groups for p in group["params"]]
        replay = Replay(closure, everything)
        loss = loss_with_gradient(self, replay.first)
        moved = [p for p in everything if p.grad is not None]
        velocity = self._velocity(moved, settings["beta"])
        # float16 cannot hold the factors that make a short direction one of length 1.
        line = [v.float() if v.dtype == torch.float16 else v for v in velocity]
        size = norm(line)
        unit = 1 / size if size > NOTHING else 0.0
        b = -inner([p.grad for p in moved if p.grad is not None], line) * unit
        here, there, forwards = float(loss), math.nan, 1
        if math.isfinite(here + size + b):
            # A copy: to go mu forth and back again changes weights by rounding.
            saved = [p.clone() for p in moved]
            try:
                torch._foreach_add_(moved, line, alpha=-settings["mu"] * unit)
                there, forwards = float(loss_again(self, replay)), 2
            finally:
                torch._foreach_copy_(moved, saved)
        rounding = ROUNDING * max(torch.finfo(tensor.dtype).eps for tensor in (loss, *moved))
        if replay.autocast is not None:
            rounding = max(rounding, AUTOCAST * torch.finfo(replay.autocast).eps)
        self.last = _fit(here, there, b, size, settings, rounding)
        if self.last.case == "skipped":
            replay.undo_buffers()
        else:
            for parameter, direction in zip(moved, velocity, strict=True):
                self.state[parameter]["velocity"] = direction
        if self.last.step:
            torch._foreach_add_(moved, line, alpha=-self.last.step * unit)
        for group in self.param_groups:
            group["steps"] += 1
            group["forwards"] += forwards
        return loss

    def _settings(self) -> dict[str, float]:
        """Return the settings of the line at this step, checked."""
        names = ("lr", "mu", "s_max", "alpha", "beta", "decay")
        settings = {name: common(self.param_groups, name, _WHY) for name in names}
        check_number("lr", settings["lr"], least=0)
        for name in ("mu", "s_max", "alpha"):
            check_number(name, settings[name], above=0)
        check_number("beta", settings["beta"], least=0, most=math.nextafter(1, 0))
        check_number("decay", settings["decay"], above=0, most=1)
        shrunk = settings["decay"] ** self.param_groups[0]["steps"]
        return settings | {"mu": settings["mu"] * shrunk, "s_max": settings["s_max"] * shrunk}

    def _velocity(self, parameters: list[Tensor], beta: float) -> list[Tensor]:
        """Return the direction's tensors, new ones: a step may turn out not to count."""
        old = [
            self.state[p]["velocity"] if p in self.state else torch.zeros_like(p)
            for p in parameters
        ]
        velocity = list(torch._foreach_mul(old, beta))
        torch._foreach_add_(velocity, [p.grad for p in parameters if p.grad is not None])
        return velocity


def _fit(
    here: float, there: float, b: float, norm: float, settings: dict[str, float], rounding: float
) -> PALStep:
    """Fit the parabola to losses here and at mu, exact up to ``rounding``, and choose the step."""
    mu, s_max = settings["mu"], settings["s_max"]
    if not math.isfinite(here + there + b):
        return PALStep("skipped", 0.0, here, there, math.nan, b, norm, mu)
    bend = there - here - b * mu
    if abs(bend) <= rounding * (abs(here) + abs(there) + abs(b) * mu):
        bend = 0.0
    a = bend / mu / mu if bend else 0.0  # a mu that has decayed to 0 measures no bend
    if b >= 0:
        case, step = "stay", 0.0
    elif a > 0:
        case, step = "minimum", min(-settings["alpha"] * b / (2 * a), s_max)
    else:
        case, step = "mu", min(mu, s_max)
    return PALStep(case, settings["lr"] * step, here, there, a, b, norm, mu)
