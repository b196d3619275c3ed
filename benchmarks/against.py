"""(a) Against the usual loop and the loss-landscapes package, on a GPU if there is one.

Every network is evaluated on one plane, by all in turn, several rounds long. The others run in a
process of their own (see others.py); only one process works at a time. It takes a quarter of an
hour. ``pip install loss-landscapes`` first; without it that column is left out.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import bench
import numpy as np
import torch

import landscape_lib as ll
from landscape_lib.evaluation import precision

ROUNDS = 2 if bench.GPU else 4
OTHERS = ["usual", "package"] if importlib.util.find_spec("loss_landscapes") else ["usual"]
# By default the convolutions of a GPU round float32 to TF32, for everyone.
NO_TF32 = "float32, no TF32"


def task_of(case: bench.Case, plane: ll.Plane, data: Any) -> dict[str, Any]:
    """Return what the others need to know."""
    return {
        "build": case.build,
        "arguments": case.arguments,
        "weights": plane.origin,
        "directions": list(plane.directions),
        "axis": plane.alphas.tolist(),
        "x": data.x,
        "y": data.y,
    }


def compare(case: bench.Case) -> dict[str, Any]:
    """Measure one network."""
    model, plane, data = bench.setup(case)
    found: dict[str, Any] = {}

    def ours(**options: Any) -> Callable[[], None]:
        name = json.dumps({key: str(value) for key, value in options.items()})

        def job() -> None:
            found[name] = ll.evaluate(model, plane, data, progress=False, **options)

        return job

    task = task_of(case, plane, data)
    with tempfile.TemporaryDirectory() as folder, bench.Others(task, folder) as others:

        def theirs(job: str) -> Callable[[], None]:
            return lambda: found.update({job: np.array(others.ask(job))})

        options: dict[str, dict[str, Any]] = {
            "float32": {},
            "float32 loop": {"method": "loop"},
            "bfloat16": {"dtype": torch.bfloat16},
        }
        jobs = {name: theirs(name) for name in OTHERS}
        jobs |= {name: ours(**given) for name, given in options.items()}
        if bench.GPU:  # where the method is "loop" anyway
            del jobs["float32 loop"]
            options[NO_TF32] = {"chunk_size": None}  # the defaults, under another name
            jobs[NO_TF32] = exact(ours(**options[NO_TF32]))
        seconds = bench.in_turn(jobs, ROUNDS)
    truth = ll.evaluate(model, plane, data, dtype=torch.float64, progress=False)
    rows = {}
    for name, times in seconds.items():
        row: dict[str, Any] = bench.summary(times)
        row["speedup"] = round(min(seconds["usual"]) / min(times), 2)
        row["speedup_median"] = round(float(np.median(np.divide(seconds["usual"], times))), 2)
        if name in OTHERS:
            loss = found[name][:, 0].reshape(truth.loss.shape)
        else:
            given = {key: str(value) for key, value in options[name].items()}
            result = found[json.dumps(given)]
            loss = result.loss.values
            row["method"] = result.attrs["method"]
            row["gflops"] = round(result.attrs["flops"] / min(times) / 1e9, 1)
        # loss-landscapes is one step ahead in every other row; the rest is compared.
        rows_right = np.s_[1::2] if name == "package" else np.s_[:]
        apart = np.abs(loss - truth.loss.values) / truth.loss.values
        row["largest_relative_error"] = float(f"{apart[rows_right].max():.1e}")
        if name == "package":
            row["in_all_rows"] = float(f"{apart.max():.1e}")
        rows[name] = row
        print(f"    {name}: {row}")
    return {
        "images": len(data.y),
        "points": len(plane),
        "gflop_per_image": round(truth.attrs["flops"] / len(data.y) / len(plane) / 1e9, 6),
        "rows": rows,
    }


def exact(job: Callable[[], None]) -> Callable[[], None]:
    """Return the job with products of all digits of float32."""

    def run() -> None:
        with precision.multiply_as(precision.EXACT):
            job()

    return run


def main() -> None:
    """Measure all networks, or those named on the command line: the other results then stay."""
    for name in sys.argv[1:] or bench.NETWORKS:
        print(name, flush=True)
        found = {name: compare(bench.NETWORKS[name])}
        known = bench.read("against")["networks"] if bench.path_of("against").exists() else {}
        bench.write("against", rounds=ROUNDS, networks=known | found)


if __name__ == "__main__":
    main()
