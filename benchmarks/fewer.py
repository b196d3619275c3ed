"""(d) What `tolerance=` and `refine` save, at 1 % of the surface's range. Five minutes.

A small CNN is trained for one epoch on Fashion-MNIST; the surface around it is evaluated in full,
and then with fewer images, at fewer points, and both. Work is counted in forward passes.
"""

from __future__ import annotations

from typing import Any

import bench
import numpy as np
import torch
import xarray as xr

import landscape_lib as ll

SIDE, SHARE = 33, 0.01


def trained() -> torch.nn.Module:
    """Train the network for one epoch."""
    model = ll.models.small_cnn(pool=True, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    ll.train(model, ll.data.load("fashion_mnist", "train"), optimizer, epochs=1, batch_size=128)
    return model


def describe(name: str, found: xr.Dataset, full: xr.Dataset, samples: int) -> dict[str, Any]:
    """Compare with the full surface."""
    span = float(full.loss.max() - full.loss.min())
    apart = np.abs(found.loss - full.loss) / span
    measured = found.samples.where(found.measured) if "measured" in found else found.samples
    row = {
        "points_measured": int((measured > 0).sum()),
        "images_per_measured_point": round(float(measured.where(measured > 0).mean()), 1),
        "less_work": round(full.loss.size * samples / float(measured.sum()), 1),
        "less_time": round(full.attrs["seconds"] / found.attrs["seconds"], 1),
        "error_rms": round(float(np.sqrt((apart**2).mean())), 5),
        "error_largest": round(float(apart.max()), 5),
    }
    print(name, row)
    return row


def main() -> None:
    """Measure the surface four times."""
    model, data = trained(), ll.data.load("fashion_mnist", "test", samples=4_000)
    weights, axis = ll.weights_of(model), np.linspace(-1, 1, SIDE)
    source = torch.Generator().manual_seed(1)
    plane = ll.Plane(weights, ll.random_directions(weights, 2, generator=source), axis, axis)
    full = ll.evaluate(model, plane, data)
    tolerance = SHARE * float(full.loss.max() - full.loss.min())
    found = {
        "fewer images": ll.evaluate(model, plane, data, metrics={}, tolerance=tolerance),
        "fewer points": ll.refine(model, plane, data, metrics={}, error=tolerance),
        "both": ll.refine(model, plane, data, metrics={}, error=tolerance, tolerance=tolerance),
    }
    rows = {name: describe(name, f, full, len(data)) for name, f in found.items()}
    bench.write(
        "fewer",
        network="small CNN with pooling, one epoch on Fashion-MNIST",
        data=data.source,
        points=len(plane),
        images=len(data),
        share_of_range=SHARE,
        tolerance=tolerance,
        rows=rows,
        alphas=plane.alphas.tolist(),
        loss=np.round(full.loss.values, 4).tolist(),
        measured=found["both"].measured.values.astype(int).tolist(),
        refined=np.round(found["both"].loss.values, 4).tolist(),
    )


if __name__ == "__main__":
    main()
