"""(b) How near an evaluation comes to the speed of the machine's own convolutions.

The units that multiply matrices in 16 bits may be shared with other machines on the same processor:
their speed changes threefold within a second. So short pieces are timed in turn, and only what
is measured in the same round is compared. An evaluation is timed at one point and at several: the
difference is what points cost, the rest is set-up. It takes a quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.evaluation.batches import channels_last_pays
from landscape_lib.evaluation.workload import fastest_batch, workload

ROUNDS = 3 if bench.GPU else 10
IMAGES, POINTS = (16_384, 25) if bench.GPU else (1024, 6)


def plain_convolution(
    channels: int, side: int, dtype: torch.dtype
) -> tuple[Callable[[], Any], float]:
    """Return a 3x3 convolution of one of VGG-9's shapes, and its operations."""
    images = 2048 if bench.GPU else 64
    x = torch.randn(images, channels, side, side, device=bench.DEVICE)
    w = torch.randn(channels, channels, 3, 3, device=bench.DEVICE)
    layout = layout_of(dtype)
    x, w = (t.to(dtype, memory_format=layout) for t in (x, w))
    repeats = 20 if bench.GPU else 1

    def job() -> None:
        for _ in range(repeats):
            F.conv2d(x, w, padding=1)

    return job, repeats * 2 * images * side**2 * channels**2 * 9


def layout_of(dtype: torch.dtype) -> torch.memory_format:
    """Return the layout in which convolutions are fastest."""
    last = channels_last_pays(bench.DEVICE, dtype)
    return torch.channels_last if last else torch.contiguous_format


def own_layers(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Return a job that runs a network's convolutions and matrix products on x, nothing between."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        calls.append((module, inputs[0].clone(memory_format=torch.preserve_format)))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()

    def job() -> None:
        for _ in range((POINTS - 1) * IMAGES // len(x)):
            for layer, inputs in calls:
                layer(inputs)

    return job


def compare(case: bench.Case, dtype: torch.dtype) -> dict[str, Any]:
    """Measure one network."""
    model, plane, data = bench.setup(case._replace(images=IMAGES))

    line = ll.Line(plane.origin, plane.directions[0], np.linspace(0, 1, 64))

    def evaluation(points: int) -> Callable[[], Any]:
        options = {"points": range(points), "dtype": dtype, "method": "loop", "progress": False}
        return lambda: ll.evaluate(model, line, data, **options)

    flops = evaluation(1)().attrs["flops"] * (POINTS - 1)
    network = getattr(ll.models, case.build)(**case.arguments, seed=0).eval()
    network.to(bench.DEVICE, dtype, memory_format=layout_of(dtype))
    inputs = data.x.to(dtype)
    last = torch.empty_like(inputs, memory_format=layout_of(dtype)).copy_(inputs)
    batch = fastest_batch(workload(network, last), last.device)
    convolutions = {
        f"{c} to {c} channels, {s}x{s}": plain_convolution(c, s, dtype)
        for c, s in ((64, 32), (128, 16), (256, 8))
    }
    jobs: dict[str, Callable[[], Any]] = {
        "several points": evaluation(POINTS),
        "one point": evaluation(1),
        "own layers": own_layers(network, last[:batch]),
    }
    jobs |= {name: job for name, (job, _) in convolutions.items()}
    with torch.no_grad():
        seconds = bench.in_turn(jobs, ROUNDS)
    times = {name: np.array(found) for name, found in seconds.items()}
    one = times.pop("one point")
    times["evaluation"] = times.pop("several points") - one
    set_up = one - times["evaluation"] / (POINTS - 1)
    work = dict.fromkeys(times, flops) | {n: f for n, (_, f) in convolutions.items()}
    rates = {name: work[name] / found / 1e9 for name, found in times.items()}
    fastest = np.max([rates[name] for name in convolutions], axis=0)
    return {
        "gflops": {name: [round(float(rate)) for rate in found] for name, found in rates.items()},
        "set_up_seconds": round(float(np.median(set_up)), 3),
        "share_of_own_layers": round(
            float(np.median(rates["evaluation"] / rates["own layers"])), 3
        ),
        "share_of_fastest": round(float(np.median(rates["evaluation"] / fastest)), 3),
    }


def main() -> None:
    """Measure all networks in both formats."""
    networks: dict[str, Any] = {}
    for name, case in bench.NETWORKS.items():
        if case.build == "mlp":
            continue
        for dtype in (torch.float32, torch.bfloat16):
            row = compare(case, dtype)
            networks.setdefault(name, {})[str(dtype)[6:]] = row
            print(name, dtype, {k: v for k, v in row.items() if k != "gflops"})
    bench.write("rates", rounds=ROUNDS, images=IMAGES, points=POINTS, networks=networks)


if __name__ == "__main__":
    main()
