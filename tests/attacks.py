"""Attacks on what is kept on disk: kills, flipped bits, a full disk, another computation.

``python tests/attacks.py [KILLS] [FLIPS]`` prints a table: kind, tried, survived. An attack is
survived if what is read afterwards is refused, or is to the bit what an undisturbed run gives.
``tests/test_attacks.py`` runs a part of it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.evaluation import store as surface_store
from landscape_lib.evaluation.store import StoreMismatch
from landscape_lib.training import CheckpointMismatch

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
DATA = SimpleNamespace(x=X, y=torch.arange(12) % 3)
REFUSED = (StoreMismatch, CheckpointMismatch, ll.results.StaleResult)
PATTERN = ["#.", ".#"]

Bits = dict[str, bytes]


def network(seed: int = 0, middle: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), middle or nn.Tanh(), nn.Linear(4, 3))


def sgd(model: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, **options)


# --- four computations that keep something, each as bits ----------------------------------------


def evaluate(
    folder: Path, model: Any = None, data: Any = DATA, at: float = 1, **options: Any
) -> Bits:
    model = model or network()
    weights = ll.weights_of(model)
    direction = ll.random_direction(weights, generator=torch.Generator().manual_seed(1))
    line = ll.Line(weights, direction, np.linspace(-1, at, 9))
    kept = {"store": folder / "x.nc", "method": "loop", "progress": False}
    got = ll.evaluate(model, line, data, **kept | options)
    return {name: got[name].values.tobytes() for name in got.data_vars}


def train(
    folder: Path, model: Any = None, build: Any = sgd, data: Any = DATA, **options: Any
) -> Bits:
    model = model or network()
    given = {"epochs": 6, "batch_size": 4, "checkpoint": folder / "run.pt", "progress": False}
    optimizer = build(model)
    if "schedule" in options:
        options["schedule"] = options["schedule"](optimizer)
    history = ll.train(model, data, optimizer, **given | options)
    state = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    return state | {"losses": np.array(history.batch_losses).tobytes()}


def fit(
    folder: Path, model: Any = None, pattern: Any = PATTERN, data: Any = DATA, **options: Any
) -> Bits:
    given = {"iterations": 8, "record_every": 2, "cells": 2, "batch_size": 4, "lr": 1e-3}
    kept = {"checkpoint": folder / "fit.pt", "method": "loop", "progress": False}
    got = ll.mpo.fit(model or network(), pattern, data, **given | kept | options)
    vectors = [got.origin, *got.directions]
    bits = {f"{k} {n}": t.numpy().tobytes() for k, w in enumerate(vectors) for n, t in w.items()}
    return bits | {"losses": np.array(got.history.batch_losses).tobytes()}


def cached(folder: Path, **config: Any) -> Bits:
    def compute() -> xr.Dataset:
        values = np.random.default_rng(0).normal(size=(40, 40))
        return xr.Dataset({"loss": (("alpha", "beta"), values)})

    os.environ |= {"LANDSCAPE_RESULTS": str(folder), "LANDSCAPE_SCALE": "paper"}
    got = ll.results.cached("a/b", compute, config={"data": "digits", "seeds": [0]} | config)
    return {"loss": got.loss.values.tobytes()}


COMPUTATIONS = {"store": evaluate, "journal": evaluate, "checkpoint": train, "fit": fit}
COMPUTATIONS |= {"result": cached}
FILES = {"store": "x.nc", "journal": "x.nc.journal", "checkpoint": "run.pt", "fit": "fit.pt"}
FILES |= {"result": "paper/a/b.nc"}


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def forked(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Do some work in a process of its own, killed after so many seconds; return how it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except OSError:
            code = 2
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def often(kind: str) -> None:
    """Save a store after each point, or only its journal."""
    surface_store.SECONDS_BETWEEN_SAVES = 0.0 if kind == "store" else 1e9


# --- the attacks: each returns how many were tried, and how many survived -----------------------


def kills(kind: str, count: int, source: random.Random) -> tuple[int, int]:
    """Kill the process at random instants, resume, compare."""
    often(kind)
    compute, tried, survived = COMPUTATIONS[kind], 0, 0
    with a_folder() as folder:
        expected = compute(folder)
    with a_folder() as folder:
        started = time.perf_counter()
        forked(lambda: compute(folder))
        lasts = time.perf_counter() - started
    while tried < count:
        with a_folder() as folder, a_folder() as copy:
            while tried < count and forked(lambda f=folder: compute(f), source.uniform(0, lasts)):
                tried += 1
                shutil.rmtree(copy)
                shutil.copytree(folder, copy)
                survived += compute(copy) == expected and not list(copy.rglob("*.tmp"))
    return tried, survived


def flips(kind: str, count: int, source: random.Random) -> tuple[int, int]:
    """Flip a bit of the file and compute again."""
    often(kind)
    compute, survived = COMPUTATIONS[kind], 0
    with a_folder() as whole, a_folder() as folder:
        expected = compute(whole)
        if kind == "journal":  # as a kill leaves it: no store yet

            class Dying(surface_store.SurfaceStore):
                def save(self) -> None:
                    os._exit(0)

            def die() -> None:
                sys.modules["landscape_lib.evaluation.task"].SurfaceStore = Dying
                compute(whole)

            (whole / "x.nc").unlink()
            forked(die)
            assert (whole / FILES[kind]).exists() and not (whole / "x.nc").exists()
        content = (whole / FILES[kind]).read_bytes()
        for _ in range(count):
            bit = source.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            shutil.rmtree(folder)
            (folder / FILES[kind]).parent.mkdir(parents=True)
            (folder / FILES[kind]).write_bytes(flipped)
            try:
                survived += compute(folder) == expected
            except (*REFUSED, ValueError):
                survived += 1
    return count, survived


def full_disk(kind: str, count: int, source: random.Random) -> tuple[int, int]:
    """Let no file grow beyond so many bytes; then there is room again."""
    often(kind)
    compute, survived = COMPUTATIONS[kind], 0
    with a_folder() as folder:
        expected = compute(folder)
        size = (folder / FILES["store" if kind == "journal" else kind]).stat().st_size

    def limited(folder: Path, most: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        compute(folder)

    for _ in range(count):
        with a_folder() as folder:
            most = source.randrange(size)
            ended = forked(lambda f=folder, m=most: limited(f, m))
            survived += ended == 2 and compute(folder) == expected
    return count, survived


# --- another computation, and the same one in a new process -------------------------------------


def closure(held: Any, at: Callable[[Any], float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, target: F.cross_entropy(output, target) * at(held)


def written(source: str) -> Any:
    names = {"torch": torch, "F": F, "nn": nn, "__name__": "written"}
    exec(compile(source, "written", "exec"), names)
    return names["f"]


class Slots:
    __slots__ = ("k",)

    def __init__(self, k: float) -> None:
        self.k = k

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * self.k


class Scaled(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held, self._hidden = held, held

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


def hooked(k: int) -> nn.Module:
    model = network()
    model[0].register_forward_hook(lambda module, given, output: output * k)
    return model


def momentum(k: int) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = sgd(model, momentum=0.9)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.0)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.step()
        for p, old in zip(model.parameters(), before, strict=True):
            optimizer.state[p]["momentum_buffer"] += k
            p.data.copy_(old)
        return optimizer

    return build


LOSSES: dict[str, Callable[[int], Any]] = {
    "closure over a dict": lambda k: closure({"a": k}, lambda held: held["a"]),
    "closure over an object": lambda k: closure(SimpleNamespace(a=k), lambda held: held.a),
    "closure over tensors": lambda k: closure([torch.tensor(k)], lambda held: held[0]),
    "closure over a function": lambda k: closure(lambda: k, lambda held: held()),
    "a global": lambda k: written(f"a = {k}\ndef f(o, t): return F.cross_entropy(o, t) * a"),
    "decorated": lambda k: written(
        f"@torch.enable_grad()\ndef f(o, t): return F.cross_entropy(o, t) * {k}"
    ),
    "slots": Slots,
    "partial of an object": lambda k: partial(Slots.__call__, Slots(k)),
    "weights of classes": lambda k: nn.CrossEntropyLoss(weight=torch.tensor([1.0, k, 1.0])),
    "a default": lambda k: written(f"def f(o, t, a={k}): return F.cross_entropy(o, t) * a"),
}
MODELS: dict[str, Callable[[int], Any]] = {
    "attribute that is a dict": lambda k: network(middle=Scaled({"a": [k]})),
    "attribute that is an object": lambda k: network(middle=Scaled(SimpleNamespace(a=k))),
    "hook": hooked,
    "activation": lambda k: network(middle=(nn.Tanh(), nn.ReLU())[k % 2]),
}
TARGETS: dict[str, Callable[[int], Any]] = {
    "targets": lambda k: SimpleNamespace(x=X, y=torch.arange(12) // k % 3),
    "one bit of x": lambda k: SimpleNamespace(x=X + (k - 1) * 1e-6 * torch.eye(12, 3), y=DATA.y),
}
RUNS: dict[str, Callable[[int], dict[str, Any]]] = {
    "seed": lambda k: {"seed": k},
    "momentum held": lambda k: {"build": momentum(k)},
    "rate": lambda k: {"build": partial(sgd, lr=k / 10)},
    "augment over a list": lambda k: {"augment": (lambda held: lambda x, g: x * held[0])([k])},
    "factor of a schedule": lambda k: {
        "schedule": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: k * 0.5**epoch)
    },
    "layers trained": lambda k: {"build": lambda model: sgd(model[2 * (k - 1)])},
    "weights": lambda k: {"model": network(k)},
}
FITS: dict[str, Callable[[int], dict[str, Any]]] = {
    "seed": lambda k: {"seed": k},
    "pattern": lambda k: {"pattern": [PATTERN, ["##", ".#"]][k - 1]},
    "tau": lambda k: {"tau": float(k)},
    "iterations": lambda k: {"iterations": 8 * k},
    "origin": lambda k: {"origin": ll.weights_of(network(k))},
}
TRIES: dict[str, tuple[Callable[..., Bits], Callable[[int], dict[str, Any]]]] = {}
for name, make in LOSSES.items():
    TRIES[f"store, loss: {name}"] = evaluate, lambda k, make=make: {"loss": make(k)}
    TRIES[f"fit, loss: {name}"] = fit, lambda k, make=make: {"loss": make(k)}
    TRIES[f"checkpoint, loss: {name}"] = train, lambda k, make=make: {"loss": make(k)}
for name, make in MODELS.items():
    for kind, compute in (("store", evaluate), ("checkpoint", train), ("fit", fit)):
        TRIES[f"{kind}, model: {name}"] = compute, lambda k, make=make: {"model": make(k)}
for name, make in TARGETS.items():
    for kind, compute in (("store", evaluate), ("checkpoint", train), ("fit", fit)):
        TRIES[f"{kind}, data: {name}"] = compute, lambda k, make=make: {"data": make(k)}
TRIES |= {f"checkpoint: {name}": (train, make) for name, make in RUNS.items()}
TRIES |= {f"fit: {name}": (fit, make) for name, make in FITS.items()}
TRIES["store: slice"] = evaluate, lambda k: {"at": k}
TRIES["result: seeds"] = cached, lambda k: {"seeds": [k]}


def begin(home: Path) -> None:
    """Compute everything once, for another process to meet."""
    for number, (compute, make) in enumerate(TRIES.values()):
        folder = home / str(number)
        folder.mkdir()
        (home / f"{number}.pickle").write_bytes(pickle.dumps(compute(folder, **make(1))))


def _state(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths if "seconds" not in path.name}


def meet(home: Path) -> dict[str, tuple[int, int]]:
    """Meet what another process computed: with another computation, and with the same."""
    refused = resumed = 0
    for number, (name, (compute, make)) in enumerate(TRIES.items()):
        folder = home / str(number)
        before = _state(folder)
        try:
            compute(folder, **make(2))
            print("not refused:", name, flush=True)
        except REFUSED:
            refused += _state(folder) == before
        again = compute(folder, **make(1))
        same = again == pickle.loads((home / f"{number}.pickle").read_bytes())
        same = same and _state(folder) == before  # what is finished is not computed again
        resumed += same
        if not same:
            print("not resumed:", name, flush=True)
    tries = len(TRIES)
    return {"another computation": (tries, refused), "the same, new process": (tries, resumed)}


def strangers() -> dict[str, tuple[int, int]]:
    """Try :data:`TRIES` over two processes of different hash seeds."""
    with a_folder() as home:
        for seed, name in enumerate(("begin", "meet")):
            code = "import sys, pickle, attacks\nfrom pathlib import Path\n"
            code += f"found = attacks.{name}(Path({str(home)!r}))\n"
            code += f"Path({str(home / 'found')!r}).write_bytes(pickle.dumps(found))"
            paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
            environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": paths}
            run = [sys.executable, "-W", "ignore", "-c", code]
            subprocess.run(run, env=environment, check=True)
        found: dict[str, tuple[int, int]] = pickle.loads((home / "found").read_bytes())
    return found


def main(killed: int = 60, flipped: int = 300) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'attack':34} {'tried':>6} {'survived':>9}")

    def show(name: str, result: tuple[int, int]) -> None:
        print(f"{name:34} {result[0]:6} {result[1]:9}", flush=True)

    for kind in COMPUTATIONS:
        show(f"bits flipped, {kind}", flips(kind, flipped, random.Random(kind)))
    for kind in COMPUTATIONS:
        show(f"full disk, {kind}", full_disk(kind, 20, random.Random(kind)))
    for kind in COMPUTATIONS:
        show(f"kill -9, {kind}", kills(kind, killed, random.Random(kind)))
    for name, result in strangers().items():
        show(name, result)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
