"""The state of a training run: its history, and the file from which it resumes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map

from landscape_lib import files
from landscape_lib.evaluation.batches import Batch, is_whole
from landscape_lib.evaluation.given import check_classes, naming
from landscape_lib.evaluation.nested import map_tensors
from landscape_lib.evaluation.precision import at_least_float32
from landscape_lib.fingerprint import (
    Fingerprint,
    differences,
    digest,
    digest_without_weights,
    warn_of_unknown,
)
from landscape_lib.training.trajectory import Entry, Place
from landscape_lib.weights import Weights, weights_of

FORMAT = "landscape_lib checkpoint 2"

# A cell of a notebook that was interrupted, and is run again.
AGAIN = (
    ". If the model was trained before this call, build model, optimizer and schedule anew, as "
    "they were when that training began: it goes on where it stopped"
)


class CheckpointMismatch(ValueError):
    """The checkpoint at this path belongs to another run, or cannot be read."""


@dataclass
class History:
    """What happened during training.

    Attributes:
        batch_losses: loss of each minibatch, one per step, before the step was taken.
        epochs: per-epoch records: ``epoch`` (1, 2, ...), ``learning_rate``, ``train_loss`` (mean of
            the epoch's minibatch losses) and, with a test set, ``test_loss`` and metrics.
        trajectory: weights every ``record_every`` steps, the initial and the last ones included.
        trajectory_steps: the step after which each point of the trajectory was recorded.
        seconds: time spent, summed over all resumed parts.
    """

    batch_losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    trajectory: list[Weights] = field(default_factory=list)
    trajectory_steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def curves(self) -> xr.Dataset:
        """Return the per-epoch records as a dataset over ``epoch``.

        Raises:
            ValueError: there are none.
        """
        if not self.epochs:
            raise ValueError("epochs: expected at least one finished epoch, got none")
        columns = {name: [row[name] for row in self.epochs] for name in self.epochs[0]}
        epoch = np.array(columns.pop("epoch"), dtype=int)
        return xr.Dataset(
            {name: ("epoch", np.array(column)) for name, column in columns.items()},
            coords={"epoch": epoch},
        )


@dataclass
class Run:
    """One training run: everything that a checkpoint must hold."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None
    generator: torch.Generator
    history: History
    dtype: torch.dtype | None = None
    fingerprint: Fingerprint = field(default_factory=dict)
    place: Place = Place(torch.device("cpu"))
    targets: Tensor | None = None  # all of them, to be looked at once, before the first step
    entries: list[Entry] = field(default_factory=list)  # the trajectory, as checkpoints hold it

    def step(
        self, batches: Iterator[Batch], loss: Callable[[Any, Any], Tensor], weight_decay: float = 0
    ) -> None:
        """Let the optimiser take one step, and note the first batch's loss before it.

        Its closure is evaluated on one batch, or on a fresh one at each call if the optimiser says
        how many it takes (``batches_per_step``). One that has ``closure_without_backward`` calls
        ``backward`` itself.
        """
        optimizer = self.optimizer
        fresh = hasattr(optimizer, "batches_per_step")
        source = batches if fresh else itertools.repeat(next(batches))
        backward = not getattr(optimizer, "closure_without_backward", False)

        def closure() -> Tensor:
            batch = next(source)
            if backward:
                optimizer.zero_grad()
            with naming(batch.x, batch.y):
                with self.autocast():
                    output = self.model(batch.x)
                if self.targets is not None:
                    check_classes(loss, output, self.targets)
                    self.targets = None
                # In float32 for the loss, as autocast itself does.
                value = loss(map_tensors(at_least_float32, output), batch.y)
            if not isinstance(value, Tensor) or value.dim() > 0:
                given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"loss: expected it to return a scalar tensor, got {given}")
            if weight_decay:
                squares = [p.square().sum() for p in self.model.parameters() if p.requires_grad]
                value = value + 0.5 * weight_decay * torch.stack(squares).sum()
            if backward:
                value.backward()
            return value

        # Some optimisers evaluate the closure several times; the first value is the loss at the
        # weights before the step, and that is what step() returns.
        take_step: Callable[..., Any] = self.optimizer.step
        value = take_step(closure)
        self.history.batch_losses.append(float(value.detach()))

    def autocast(self) -> torch.autocast:
        """Return torch's autocast in the run's type, or one that does nothing."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, self.dtype, enabled=self.dtype is not None)

    def record(self, step: int) -> None:
        """Add the present weights to the trajectory."""
        self._keep(*self.place.keep(weights_of(self.model), step), step)

    def _keep(self, point: Weights, entry: Entry, step: int) -> None:
        self.history.trajectory.append(point)
        self.history.trajectory_steps.append(step)
        self.entries.append(entry)

    def describe(
        self, data: Any, test: Any, loss: Any, augment: Any, settings: dict[str, Any]
    ) -> None:
        """Take the fingerprint of all that the run depends on; ask before the first step."""
        own = {id(p): name for name, p in self.model.named_parameters()}
        groups = [
            group | {"params": [own.get(id(p), "not of the model") for p in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        optimizer = [type(self.optimizer), groups, self.optimizer.state_dict()["state"]]
        trained = {name: [p.requires_grad, *_hooks(p)] for name, p in self.model.named_parameters()}
        self.fingerprint = {
            "initial weights": digest(dict(self.model.state_dict())),
            "architecture": digest_without_weights(self.model),
            "trained parameters": digest(trained),
            "data": digest([data.x, data.y]),
            "test": digest([test.x, test.y] if is_whole(test) else test),
            "loss": digest(loss),
            "augment": digest(augment),
            "optimizer": digest([*optimizer, _own(self.optimizer)]),
            "schedule": digest(_described(self.schedule)),
        } | {name: repr(value) for name, value in settings.items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint and put it in place."""
        files.write(path, files.sealed(self._content()))

    def _content(self) -> bytes:
        """Return the checkpoint as bytes.

        Raises:
            TypeError: optimiser or schedule hold something that a checkpoint cannot.
        """
        state = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "random_state": torch.get_rng_state(),
            "cuda_random_state": torch.cuda.get_rng_state_all(),
            "history": vars(self.history) | {"trajectory": self.entries},
        }
        # A learning rate of numpy's, say from np.geomspace, could be written but not read again.
        state = tree_map(lambda v: v.item() if isinstance(v, np.generic) else v, state)
        if len(self.history.epochs) <= 1:  # before the first step, and what it has left behind
            for name in ("optimizer", "schedule"):
                _check_readable(name, state[name])
        return _saved(state)

    def resume(self, path: Path) -> None:
        """Go back to the checkpoint, if there is one.

        Raises:
            CheckpointMismatch: it cannot be read, or belongs to another run.
        """
        warn_of_unknown(self.fingerprint, f"checkpoint: {path}")
        if not path.exists():
            self._content()  # what it cannot hold is found before the first step
            return
        try:
            device = next(self.model.parameters()).device
            # Random states must stay on the CPU; tensors of the model are copied into place.
            content = io.BytesIO(files.unsealed(path.read_bytes()))
            state = torch.load(content, map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise ValueError(f"its format is {state['format']!r}, not {FORMAT!r}")
            steps = state["history"]["trajectory_steps"]
            entries = zip(state["history"]["trajectory"], steps, strict=True)
            history = History(**state["history"] | {"trajectory": [], "trajectory_steps": []})
            changed = differences(state["fingerprint"], self.fingerprint)
            kept = [] if changed else [(*self.place.found(e, step), step) for e, step in entries]
        except Exception as error:
            raise CheckpointMismatch(
                f"checkpoint: {path} cannot be read ({error}); it was left untouched: "
                f"move it away or choose another path"
            ) from error
        if changed:
            raise CheckpointMismatch(
                f"checkpoint: {path} belongs to another run: {', '.join(changed)} differ(s); "
                f"it was left untouched: move it away or choose another path"
                + (AGAIN if "initial weights" in changed else "")
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random_state"])
        if device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_random_state"])
        self.history = history
        for point in kept:
            self._keep(*point)


def _saved(state: Any) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _check_readable(name: str, state: Any) -> None:
    """Raise a ``TypeError`` unless a state can be written, and read without running its code."""
    try:
        torch.load(io.BytesIO(_saved(state)), map_location="cpu", weights_only=True)
    except Exception as error:
        raise TypeError(
            f"checkpoint: expected a {name} of numbers, text, tensors, lists and dictionaries, got "
            f"one that cannot be kept in a file (see above). The functions of a LambdaLR may be "
            f"lambdas, but not objects that hold one; or train without a checkpoint"
        ) from error


def _hooks(held: Any) -> list[Any]:
    """Return the functions that torch calls for a parameter or an optimiser, keys left out."""
    names = ["_backward_hooks", "_post_accumulate_grad_hooks"]
    if not isinstance(held, Tensor):
        names = sorted(name for name in vars(held) if "hooks" in name)
    return [list(hooks.values()) for name in names if (hooks := getattr(held, name))]


def _own(optimizer: Optimizer) -> list[Any]:
    """Return what an optimiser holds beside its groups and its state: hooks, and a user's own."""
    common = vars(torch.optim.SGD([torch.zeros(1)])).keys() | {"step", "_opt_called"}
    own = {name: value for name, value in vars(optimizer).items() if name not in common}
    return [own, _hooks(optimizer)]


def _described(schedule: Any) -> Any:
    """Return what a schedule is made of, functions and inner schedules included."""
    if isinstance(schedule, (list, tuple)):
        return [_described(part) for part in schedule]
    if not isinstance(schedule, LRScheduler):
        return schedule
    held = {name: value for name, value in vars(schedule).items() if name != "optimizer"}
    return [type(schedule), {name: _described(value) for name, value in held.items()}]
