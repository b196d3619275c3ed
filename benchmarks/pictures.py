"""Multi-point optimisation: a step and a whole fit against the authors' procedure; alternatives.

It measures one part after another; name some of ``step``, ``digits`` and ``alternatives`` on the
command line to measure only these, the other results then stay.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import bench
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import landscape_lib as ll
from landscape_lib.mpo import draws
from landscape_lib.mpo.cells import Cells
from landscape_lib.mpo.draws import Objective
from landscape_lib.mpo.span import Span, initial_vectors

AUTHORS = {"procedure": "paper", "cells": 50, "batch_size": 512, "lr": 3e-4, "clip": 100.0} | {
    "parametrization": "code",
    "initialization": "pytorch",
}
OURS = {"shared_batch": False, "lr": 2e-3, "schedule": "one-cycle"}
GAP = 0.5


# --- one step -------------------------------------------------------------------------------------


def step_of(
    model: torch.nn.Module, data: Any, cells: list[tuple[float, float, bool]], dtype: torch.dtype
) -> tuple[Callable[[], Tensor], str]:
    """Return the work of one iteration of ``ll.mpo.fit`` without the data's order, and its method.

    All cells share the data if it has as many images as the authors' batch.
    """
    span = Span(initial_vectors(model, 2, "pytorch", None, 0), 0.1, "code")
    optimizer = torch.optim.Adam(span.parameters(), 3e-4)
    half = len(cells) // 2
    images = len(data.y) if len(data.y) == AUTHORS["batch_size"] else len(data.y) // len(cells)
    objective = Objective(half, half, 1.0, 2.5)
    at = Cells(model, F.cross_entropy, dtype)
    method = at.choose("auto", data.x, data.y, len(cells), images)
    places = torch.tensor([[1.0, alpha, beta] for alpha, beta, _ in cells], dtype=torch.float64)

    def step() -> Tensor:
        batch = at.lay_out(data.x, data.y)
        basis = span()
        found = at.step(basis, places, batch, images, objective.terms, method)
        optimizer.zero_grad()
        basis.backward(found.gradient)
        torch.nn.utils.clip_grad_norm_(span.parameters(), 100.0)
        optimizer.step()
        return found.losses

    return step, method


def draw_places(cells: int) -> list[tuple[float, float, bool]]:
    """Draw so many cells of a 50 x 50 pattern, LOW cells first."""
    places = np.random.default_rng(0).integers(-25, 25, (cells, 2))
    return [(float(a), float(b), k < cells // 2) for k, (a, b) in enumerate(places)]


def compare_step(pool: bool, cells: int) -> dict[str, Any]:
    """Time a step of the authors' loop and of ours on the same cells and the same 512 images."""
    case = bench.Case("small_cnn", {"pool": pool}, (1, 28, 28), 512, 1)
    model, _, data = bench.setup(case)
    places = draw_places(cells)
    vectors = initial_vectors(model, 2, "pytorch", None, 0)
    task = {"build": case.build, "arguments": case.arguments, "x": data.x, "y": data.y} | {
        "vectors": vectors,
        "cells": places,
    }
    found: dict[str, Any] = {}
    methods: dict[str, str] = {}
    jobs: dict[str, Callable[[], Any]] = {}
    for dtype in ("float32", "bfloat16"):
        step, methods[dtype] = step_of(model, data, places, getattr(torch, dtype))
        jobs[dtype] = lambda name=dtype, step=step: found.setdefault(name, step())
    many = draw_places(512)
    own = bench.setup(case._replace(images=4 * len(many)))[2]
    name = "bfloat16, 512 cells with 4 images each"
    jobs[name], methods[name] = step_of(model, own, many, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder, bench.Others(task, folder) as others:
        jobs = {"authors": lambda: found.setdefault("authors", others.ask("authors"))} | jobs
        # The first call of each job, at the initial vectors, is kept: all see the same weights.
        seconds = bench.in_turn(jobs, 5)
    first, _ = step_of(model, data, places, torch.float64)
    exact = first().numpy()
    rows = {}
    for job, times in seconds.items():
        pairs = len(own.y) if job == name else cells * 512
        rows[job] = bench.summary(times) | {
            "microseconds_per_cell_image": round(min(times) / pairs * 1e6, 1),
            "method": methods.get(job, "plain loop"),
        }
        speed = min(seconds["authors"]) / (cells * 512) / (min(times) / pairs)
        rows[job]["speedup"] = round(speed, 2)
        if job != name:
            losses = np.ravel(found[job])
            apart = np.abs(losses - exact) / exact
            rows[job]["largest_relative_error"] = float(f"{apart.max():.1e}")
        print(job, rows[job])
    return {"cells": cells, "images": 512, "rows": rows}


def measure_steps() -> dict[str, Any]:
    """Compare steps on the paper's network, with and without pooling."""
    return {
        "small CNN with pooling": compare_step(pool=True, cells=20),
        "small CNN": compare_step(pool=False, cells=4),
    }


# --- whole fits -----------------------------------------------------------------------------------


def operations(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    """Count the operations of one cell for one image, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    return counter.get_total_flops() / len(y)


def effort(fit: ll.mpo.MPOFit, settings: dict[str, Any], per_image: float) -> dict[str, Any]:
    """Say what it took until the mean gap of a row of the history reached ``GAP``."""
    rows = fit.history.epochs
    last = next((row for row in rows if row["gap"] >= GAP), rows[-1])
    cells = settings["cells"]
    low, high = (min(cells, n) for n in trained(fit.pattern))
    images = (low + high) * settings["batch_size"] * last["iteration"]
    times = 3 if fit.method == "basis" else 1  # three products for one
    return {
        "iterations": int(last["iteration"]),
        "gap": round(last["gap"], 3),
        "reached": bool(last["gap"] >= GAP),
        "cell_images": int(images),
        "tflop": round(images * per_image / 1e12, 4),
        "tflop_with_method": round(times * images * per_image / 1e12, 4),
        "method": fit.method,
    }


def trained(pattern: ll.patterns.Pattern) -> tuple[int, int]:
    """Count the LOW and the HIGH cells that pruning leaves."""
    classes = ll.patterns.prune(pattern)
    return int((classes == 1).sum()), int((classes == -1).sum())


def compare_digits() -> dict[str, Any]:
    """Fit a 16 x 16 picture with an MLP on digits, by both procedures, to the same gap."""
    data = ll.data.load("digits", "train")
    pattern = ll.patterns.draw("smiley", 16)
    model = ll.models.mlp(64, seed=0)
    per_image = operations(model, data.x[:64], data.y[:64])
    procedures = {
        "authors": AUTHORS | {"iterations": 20_000},
        "ours": OURS | {"cells": 96, "batch_size": 4, "iterations": 1500},
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, settings in procedures.items():
        for seed in range(1 if name == "authors" else 3):  # theirs takes a quarter of an hour
            settings |= {"seed": seed, "record_every": 10, "stop_gap": GAP, "progress": False}
            fit = ll.mpo.fit(model, pattern, data, **settings)
            found.setdefault(name, []).append(effort(fit, settings, per_image))
            print(name, found[name][-1])
    return {"pattern": "smiley, 16 x 16", "network": "MLP", "data": "digits"} | found


# --- alternatives ---------------------------------------------------------------------------------


class DrawHard:
    """Cells in proportion to how badly they are fitted, in the place of uniform draws."""

    def __init__(self) -> None:
        self.drawn = torch.empty(0, dtype=torch.long)
        self.badness = torch.ones(0)

    def draw(
        self, groups: tuple[Tensor, ...], amounts: tuple[int, ...], seed: int
    ) -> Iterator[Tensor]:
        """Draw without end, as ``mpo.draws.draw_cells``."""
        source = ll.runtime.generator(seed + 1)
        self.badness = torch.ones(1 + max(int(group.max()) for group in groups))
        while True:
            chosen = [
                group[torch.multinomial(self.badness[group], n, generator=source)]
                for group, n in zip(groups, amounts, strict=True)
            ]
            self.drawn = torch.cat(chosen)
            yield self.drawn

    def watch(self, objective: Objective, losses: Tensor, accuracies: Tensor) -> Tensor:
        """Note how bad the drawn cells are, and go on as ``Objective.summary``."""
        high = torch.arange(len(losses)) >= objective.low
        bad = torch.where(high, objective.tau - losses, losses).clamp(0.05, objective.tau)
        self.badness[self.drawn] = 0.5 * self.badness[self.drawn] + 0.5 * bad.float()
        return SUMMARY(objective, losses, accuracies)


SUMMARY = Objective.summary

# All take the same number of cell-images: few enough that a better use of them shows.
ALTERNATIVES: dict[str, dict[str, Any]] = {
    "96 + 96 cells, 4 images each, one-cycle 2e-3": {},
    "one-cycle 5e-4": {"lr": 5e-4},
    "one-cycle 5e-3": {"lr": 5e-3},
    "constant 2e-3": {"schedule": "constant"},
    "constant 3e-4 (the paper's)": {"schedule": "constant", "lr": 3e-4},
    "24 + 24 cells, 4 images each": {"cells": 24, "batch_size": 4},
    "24 + 24 cells, 16 images each": {"cells": 24, "batch_size": 16},
    "48 + 48 cells, 8 images each": {"cells": 48, "batch_size": 8},
    "96 + 96 cells, 1 image each": {"batch_size": 1},
    "96 + 96 cells, 16 images each": {"batch_size": 16},
    "96 + 96 cells, 4 shared images": {"shared_batch": True},
    "50 + 50 cells, 512 shared images (the paper's)": {
        "cells": 50,
        "batch_size": 512,
        "shared_batch": True,
    },
    "without pruning": {"prune": False},
    "badly fitted cells more often": {"hard": True},
    "the code's parametrisation": {"parametrization": "code"},
    "PyTorch's initialisation": {"initialization": "pytorch"},
}
CELL_IMAGES = 460_800


def try_alternative(change: dict[str, Any], seed: int) -> ll.mpo.Quality:
    """Fit the digits' smiley with a change and map it on all test images."""
    data, test = ll.data.load("digits", "train"), ll.data.load("digits", "test")
    model, pattern = ll.models.mlp(64, seed=0), ll.patterns.draw("smiley", 16)
    settings = OURS | {"cells": 96, "batch_size": 4} | change
    hard = DrawHard() if settings.pop("hard", False) else None
    iterations = CELL_IMAGES // (2 * settings["cells"] * settings["batch_size"])
    settings |= {"iterations": iterations, "seed": seed, "progress": False}
    draw = hard.draw if hard else draws.draw_cells
    watch = (lambda *a: hard.watch(*a)) if hard else SUMMARY
    with (
        mock.patch.object(draws, "draw_cells", draw),
        mock.patch.object(Objective, "summary", watch),
    ):
        fit = ll.mpo.fit(model, pattern, data, **settings)
    return ll.mpo.quality(ll.evaluate(model, fit.plane(), test, progress=False), pattern)


def compare_alternatives() -> dict[str, Any]:
    """Measure every alternative with three seeds, a fit on each core: none of it is timed."""
    rows = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, torch.set_num_threads, (1,)) as pool:
        tasks = {
            name: [pool.submit(try_alternative, change, seed) for seed in range(3)]
            for name, change in ALTERNATIVES.items()
        }
        for name, three in tasks.items():
            found = [task.result() for task in three]
            rows[name] = {key: [round(getattr(q, key), 3) for q in found] for key in ("gap", "iou")}
            print(name, rows[name], flush=True)
    return {"cell_images": CELL_IMAGES, "rows": rows}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "step": measure_steps,
    "digits": compare_digits,
    "alternatives": compare_alternatives,
}


def main() -> None:
    """Measure the parts named on the command line, or all."""
    for part in sys.argv[1:] or PARTS:
        content = bench.read("pictures") if (bench.RESULTS / "pictures.json").exists() else {}
        content.pop("machine", None)
        bench.write("pictures", **content | {part: PARTS[part]()})


if __name__ == "__main__":
    main()
