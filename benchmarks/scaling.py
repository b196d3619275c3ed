"""(c) Cost against points, images and parameters, and peak memory against points. Five minutes."""

from __future__ import annotations

import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import bench
import numpy as np
import torch

import landscape_lib as ll

SIZES = {"points": [8, 16, 32, 64, 128], "images": [256, 512, 1024, 2048, 4096]}
if bench.GPU:
    SIZES = {"points": [64, 128, 256, 512, 1024], "images": [4096, 8192, 16384, 32768, 65536]}
WIDTHS = [0.5, 0.75, 1.0, 1.5, 2.0, 3.0]
MEMORY_POINTS = [16, 256, 4096]
ROUNDS = 4


def job(
    points: int = 256 if bench.GPU else 32,
    images: int = 8192 if bench.GPU else 1024,
    width: float = 1.0,
    method: str = "loop",
) -> Any:
    """Return a function that evaluates the small CNN (with pooling) on a line."""
    model = ll.models.small_cnn(pool=True, width=width, seed=0).to(bench.DEVICE)
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(images, 1, 28, 28), torch.arange(images) % 10
    data = SimpleNamespace(x=x.to(bench.DEVICE), y=y.to(bench.DEVICE))
    direction = ll.random_direction(ll.weights_of(model), generator=source)
    line = ll.Line(ll.weights_of(model), direction, np.linspace(-1, 1, points))
    return lambda: ll.evaluate(model, line, data, method=method, progress=False)


def sweep(name: str, values: list[Any]) -> dict[str, Any]:
    """Vary one thing; the exponent is the slope of the best times in logarithms."""
    seconds = bench.in_turn({str(value): job(**{name: value}) for value in values}, ROUNDS)
    best = [min(seconds[str(value)]) for value in values]
    work = [job(**{name: value})().attrs["flops"] for value in values]
    slope = np.polyfit(np.log(work), np.log(best), 1)[0]
    return {
        name: values,
        "seconds": [round(s, 4) for s in best],
        "gflop": [round(w / 1e9, 3) for w in work],
        "exponent": round(float(slope), 3),
    }


def peak_memory(points: int, method: str) -> float:
    """Evaluate a tiny set at many points in a process of its own; its peak memory in MiB.

    On a GPU that of the tensors there.
    """
    command = [sys.executable, __file__, "memory", str(points), method]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure everything, or, in the child, the memory of one evaluation."""
    if sys.argv[1:2] == ["memory"]:
        job(points=int(sys.argv[2]), images=64, width=0.5, method=sys.argv[3])()
        if bench.GPU:
            print(torch.cuda.max_memory_allocated() / 2**20)
        else:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    memory = {
        method: [round(peak_memory(k, method), 1) for k in MEMORY_POINTS]
        for method in ("loop", "vmap")
    }
    print(memory)
    bench.write(
        "scaling",
        network="small CNN with pooling",
        points=sweep("points", SIZES["points"]),
        images=sweep("images", SIZES["images"]),
        parameters=sweep("width", WIDTHS),
        memory={"points": MEMORY_POINTS, "peak_mib": memory},
    )


if __name__ == "__main__":
    main()
