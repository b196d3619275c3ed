"""How a plane is evaluated, or fitted, without this library; runs in a process of its own.

Of landscape_lib it loads one file, that of the networks: importing the library would set the memory
allocator for everyone. It reads the name of a job per line and answers with its result and time.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def usual_loop(model: nn.Module, task: dict[str, Any], batch: int = 512) -> list[list[float]]:
    """Copy the weights in, loop over batches, add up: the loop that everyone writes."""
    found = []
    with torch.no_grad():
        for a in task["axis"]:
            for b in task["axis"]:
                for name, parameter in model.named_parameters():
                    first, second = (d[name] for d in task["directions"])
                    parameter.copy_(task["weights"][name] + a * first + b * second)
                loss = correct = 0.0
                for x, y in zip(task["x"].split(batch), task["y"].split(batch), strict=True):
                    output = model(x)
                    loss += F.cross_entropy(output, y).item() * len(y)
                    correct += (output.argmax(1) == y).sum().item()
                found.append([loss / len(task["y"]), correct / len(task["y"])])
    return found


def package(model: nn.Module, task: dict[str, Any]) -> list[list[float]]:
    """Use loss-landscapes 3 from PyPI as its examples do: one batch of all images, loss only."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    def at(vector: dict[str, Tensor]) -> nn.Module:
        copied = networks_model(task)
        copied.load_state_dict(model.state_dict() | vector)
        return copied

    weights = task["weights"]
    ends = [at({n: weights[n] + d[n] for n in weights}) for d in task["directions"]]
    metric = Loss(F.cross_entropy, task["x"], task["y"])
    steps = len(task["axis"])
    values = loss_landscapes.planar_interpolation(
        at(weights), *ends, metric, steps, deepcopy_model=True
    )
    return [[float(value)] for value in values.reshape(-1)]


class AuthorsPlane(nn.Module):
    """The plane of multi-point optimisation as its authors wrote it.

    Right is a vector less the origin; up is made orthogonal to it, in float64, at every cell.
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.origin, self.right, self.up = (nn.Parameter(vector.clone()) for vector in vectors)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, alpha: float, beta: float) -> Tensor:
        """Return the weights of a cell, shape (n,)."""
        right = (self.right - self.origin).double()
        up = self.up.double()
        up = up - (up @ right) / (right @ right) * right
        up = up * (right.norm() / up.norm())
        return self.origin + self.scale * (beta * up.float() + alpha * right.float())


def authors_step(model: nn.Module, task: dict[str, Any]) -> list[list[float]]:
    """Take one step of multi-point optimisation, cell after cell, each with its own backward."""
    if "plane" not in task:
        task["plane"] = AuthorsPlane(task["vectors"])
        task["optimizer"] = torch.optim.Adam(task["plane"].parameters(), 3e-4)
    plane, optimizer, losses = task["plane"], task["optimizer"], []
    names, parameters = zip(*model.named_parameters(), strict=True)
    optimizer.zero_grad()
    for alpha, beta, low in task["cells"]:
        parts = plane(alpha, beta).split([p.numel() for p in parameters])
        weights = {n: v.view_as(p) for n, v, p in zip(names, parts, parameters, strict=True)}
        loss = F.cross_entropy(torch.func.functional_call(model, weights, (task["x"],)), task["y"])
        losses.append([loss.item()])
        term = loss if low else -loss.clamp(max=2.5)
        (2 * term / len(task["cells"])).backward()
    nn.utils.clip_grad_norm_(plane.parameters(), 100.0)
    optimizer.step()
    return losses


def networks_model(task: dict[str, Any]) -> nn.Module:
    """Build the network of a task, from the library's file of networks alone."""
    spec = importlib.util.spec_from_file_location("networks", task["networks"])
    assert spec is not None and spec.loader is not None
    networks = importlib.util.module_from_spec(spec)
    sys.modules["networks"] = networks
    spec.loader.exec_module(networks)
    built: nn.Module = getattr(networks, task["build"])(**task["arguments"], seed=0)
    return built.eval().to(task["x"].device)


def main(path: str) -> None:
    """Answer one line of JSON per line read."""
    task = torch.load(Path(path), weights_only=True)
    model = networks_model(task)
    jobs = {"usual": usual_loop, "package": package, "authors": authors_step}
    for line in sys.stdin:
        started = time.perf_counter()
        values = jobs[line.strip()](model, task)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "values": values}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
