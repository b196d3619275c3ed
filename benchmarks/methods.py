"""Where `vmap` over points beats the loop on this machine: the rule behind method="auto"."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import bench
import numpy as np
import torch

import landscape_lib as ll
from landscape_lib.evaluation.task import SMALL_CONVOLUTIONS, SMALL_LAYERS, SMALL_PRODUCTS

MODELS = {
    "MLP 64-32-10": ("mlp", {"inputs": 64, "hidden": (32,)}, (1, 8, 8)),
    "MLP 64-128-64-10": ("mlp", {"inputs": 64, "hidden": (128, 64)}, (1, 8, 8)),
    "MLP 784-256-128-10": ("mlp", {}, (1, 28, 28)),
    "CNN 4-8-8, 8x8": ("small_cnn", {"channels": (4, 8, 8), "hidden": 16}, (1, 8, 8)),
    "LeNet 4-8, 8x8": (
        "lenet",
        {"image_size": 8, "padding": 2, "channels": (4, 8), "hidden": 32},
        (1, 8, 8),
    ),
    "small LeNet": ("lenet", {"channels": (10, 20), "hidden": 128}, (1, 28, 28)),
    "small CNN with pooling": ("small_cnn", {"pool": True}, (1, 28, 28)),
}
if bench.GPU:
    MODELS |= {
        "small CNN": ("small_cnn", {}, (1, 28, 28)),
        "ResNet-20": ("resnet", {"depth": 20}, (3, 32, 32)),
    }
IMAGES = [64, 256, 1024, 4096]


def compare(build: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Time both methods for one model, for more and more images."""
    model = getattr(ll.models, build)(**arguments, seed=0).to(bench.DEVICE)
    source = torch.Generator().manual_seed(0)
    direction = ll.random_direction(ll.weights_of(model), generator=source)
    line = ll.Line(ll.weights_of(model), direction, np.linspace(-1, 1, 33))
    rows = []
    for images in IMAGES:
        x, y = torch.rand(images, *shape), torch.arange(images) % 10
        data = SimpleNamespace(x=x.to(bench.DEVICE), y=y.to(bench.DEVICE))
        jobs = {
            m: lambda m=m: ll.evaluate(model, line, data, method=m, progress=False)  # noqa: B023
            for m in ("loop", "vmap")
        }
        seconds = bench.in_turn(jobs, 3)
        result = ll.evaluate(model, line, data, progress=False)
        largest = images if bench.GPU else min(512, images)
        per_pass = result.attrs["flops"] / len(line) / images * largest
        gain = min(seconds["loop"]) / min(seconds["vmap"])
        rows.append(
            {
                "images": images,
                "mflop_per_pass": round(per_pass / 1e6, 3),
                "vmap_gain": round(gain, 2),
                "auto": result.attrs["method"],
            }
        )
        print(build, rows[-1])
        if min(seconds["loop"]) > 5:
            break
    return rows


def main() -> None:
    """Measure all models."""
    rows = {name: compare(*model) for name, model in MODELS.items()}
    rule = {"convolutions_mflop": SMALL_CONVOLUTIONS / 1e6, "products_mflop": SMALL_PRODUCTS / 1e6}
    if bench.GPU:
        rule = {"mflop_per_layer": SMALL_LAYERS / 1e6}
    bench.write("methods", rule=rule, models=rows)


if __name__ == "__main__":
    main()
