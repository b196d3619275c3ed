"""What all benchmarks share: jobs timed in turn, a description of the machine, results as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import landscape_lib as ll
from landscape_lib.files import atomic_path

RESULTS = Path(__file__).parent / "results"


class Case(NamedTuple):
    """A network of ``landscape_lib.models`` with its arguments, image shape, images, points a side.

    The images are random: the time does not depend on them.
    """

    build: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    images: int
    side: int


GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


def sized(case: Case, side: int) -> Case:
    """Return a case with more work where there is a GPU: so many points a side, 10,000 images."""
    return case._replace(images=10_000, side=side) if GPU else case


NETWORKS = {
    "small CNN with pooling": sized(Case("small_cnn", {"pool": True}, (1, 28, 28), 1024, 10), 21),
    "small CNN": sized(Case("small_cnn", {}, (1, 28, 28), 512, 5), 10),
    "VGG-9, quarter width": sized(Case("vgg9", {"width": 0.25}, (3, 32, 32), 512, 5), 10),
    "VGG-9": sized(Case("vgg9", {}, (3, 32, 32), 512, 3), 7),
    "ResNet-20": sized(Case("resnet", {"depth": 20}, (3, 32, 32), 512, 4), 14),
    "MLP": sized(Case("mlp", {}, (1, 28, 28), 4096, 10), 15),
}


class Others:
    """Competitors in a process of their own (see others.py), which waits unless it is asked.

    Args:
        task: what others.py reads; ``build`` and ``arguments`` name the network.
        folder: for the file that hands it over.
    """

    def __init__(self, task: Mapping[str, Any], folder: str) -> None:
        path = Path(folder) / "task.pt"
        torch.save(dict(task) | {"networks": ll.models.__file__}, path)
        command = [sys.executable, str(Path(__file__).with_name("others.py")), str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, job: str) -> list[list[float]]:
        """Return what a job finds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(job, file=self.process.stdin, flush=True)
        values: list[list[float]] = json.loads(self.process.stdout.readline())["values"]
        return values

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()

    def __enter__(self) -> Others:
        return self


def setup(case: Case) -> tuple[nn.Module, ll.Plane, SimpleNamespace]:
    """Return a network, a plane through it and data."""
    model = getattr(ll.models, case.build)(**case.arguments, seed=0).eval().to(DEVICE)
    source = torch.Generator().manual_seed(0)
    weights = ll.weights_of(model)
    directions = ll.random_directions(weights, 2, generator=source)
    axis = np.arange(case.side) / case.side  # where the loss-landscapes package starts and steps
    data = SimpleNamespace(
        x=torch.rand(case.images, *case.shape, generator=source).to(DEVICE),
        y=torch.randint(0, 10, (case.images,), generator=source).to(DEVICE),
    )
    return model, ll.Plane(weights, directions, axis, axis), data


def in_turn(jobs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every job once per round, so that all meet the same disturbances; seconds per round."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for k in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if GPU:
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
            print(f"  round {k + 1}: {name} {seconds[name][-1]:.3f} s", file=sys.stderr)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Return the best and the median of some times, rounded."""
    return {"best": round(min(seconds), 4), "median": round(float(np.median(seconds)), 4)}


def machine() -> dict[str, Any]:
    """Describe where a benchmark ran."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": ll.runtime.device_name(DEVICE),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "landscape_lib": ll.__version__,
        "date": datetime.date.today().isoformat(),
    }


def path_of(name: str) -> Path:
    """Return the file of a result: those of GPUs have their own."""
    return RESULTS / f"{name}{'_gpu' if GPU else ''}.json"


def read(name: str) -> dict[str, Any]:
    """Read a result that was written on a machine of this kind."""
    content: dict[str, Any] = json.loads(path_of(name).read_text())
    return content


def write(name: str, **content: Any) -> None:
    """Write one result."""
    path = path_of(name)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"machine": machine()} | content, indent=1) + "\n")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")
