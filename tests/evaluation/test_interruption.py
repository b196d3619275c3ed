"""Killed at any instant, a computation resumes to the same bits (DESIGN section 3, resume).

A server process imports the library once. For every run it forks a child that sends SIGKILL to
itself and its workers at a given event of the interpreter (a call of a function, or its return), so
that the instants are random, spread over everything that happens, saving included, and the same in
every test run.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from landscape_lib.evaluation.store import SurfaceStore

KILLS = 20
POINTS, WORKERS = 12, 2
CHUNKS = {"loop": 12, "vmap": 4, "reestimated": 12, "pool": 12, "bfloat16": 4, "saved": 12}
EPOCHS, STEPS = 4, 3

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that uses torch")

SERVER = """
import multiprocessing, os, pickle, signal, sys
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation import store as surface_store

torch.set_num_threads(1)
SETTINGS = {
    "loop": {"method": "loop"},
    "vmap": {"method": "vmap", "chunk_size": 3},
    "reestimated": {"batchnorm": "reestimated", "calibration_samples": 10},
    "pool": {"method": "loop"},
    "bfloat16": {"method": "vmap", "chunk_size": 3, "dtype": torch.bfloat16},
    "saved": {"method": "loop"},
}
counter, events, written = None, 0, []  # written: the events at which a chunk was finished
room = os.pipe()  # a byte for each point that the workers of a pool may compute
write = surface_store.SurfaceStore.write


def write_and_make_room(store, indices, values):
    write(store, indices, values)
    written.append(events)
    os.write(room[1], b".")


# As if a point took longer than to take its values: then a worker loses one point at most.
surface_store.SurfaceStore.write = write_and_make_room


def count():
    if multiprocessing.parent_process() is not None:
        os.read(room[0], 1)
    if counter is not None:
        os.write(counter, b".")


def loss(output, target, reduction="mean"):
    if reduction in {"none", "off", "no"}:  # a constant whose order depends on the process
        count()
    return F.cross_entropy(output, target, reduction=reduction)


def training_loss(output, target):
    if torch.is_grad_enabled():
        count()
    return F.cross_entropy(output, target)


def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(48, 3),
    ).double()
    data = SimpleNamespace(x=torch.randn(24, 1, 6, 6).double(), y=torch.arange(24) % 3)
    return model, data


def evaluate(kind, path, executor):
    model, data = build()
    center = ll.weights_of(model)
    pair = ll.random_directions(center, 2, generator=torch.Generator().manual_seed(1))
    plane = ll.Plane(center, pair, [-1.0, -0.5, 0.0, 0.5], [-1.0, 0.0, 1.0])
    got = ll.evaluate(
        model, plane, data, loss=loss, store=path, population=np.inf, training=True,
        executor=executor, progress=False, **SETTINGS[kind],
    )
    return {name: got[name].values for name in got.data_vars}


def train(kind, path, executor):
    model, data = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    history = ll.train(
        model, data, optimizer, epochs=4, batch_size=8, loss=training_loss, schedule=schedule,
        augment=ll.training.crop_and_flip, test=data, record_every=5, checkpoint=path,
        progress=False,
    )
    result = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    result["losses"] = np.array(history.batch_losses)
    result["curves"] = history.curves().to_array().values
    for step, point in zip(history.trajectory_steps, history.trajectory):
        result |= {f"{name} after {step}": tensor.numpy() for name, tensor in point.items()}
    return result


def work(task, kind, path, kill_at, counter_file, result_file):
    global counter, events, room
    counter = os.open(counter_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    room = os.pipe()
    executor, events = None, 0
    written.clear()
    if kind == "saved":  # after every chunk; the others take less time than there is between saves
        surface_store.SECONDS_BETWEEN_SAVES = 0.0
    if kind == "pool":
        os.write(room[1], b"." * (2 if path else 12))
        executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
        executor.submit(int).result()  # now both workers are there

    def watch(frame, event, argument):
        global events
        events += 1
        if events == kill_at:
            os.kill(0, signal.SIGKILL)  # the whole process group

    sys.setprofile(watch)
    result = {"evaluate": evaluate, "train": train}[task](kind, path, executor)
    sys.setprofile(None)
    if executor is not None:
        executor.shutdown()
    with open(result_file, "wb") as file:
        pickle.dump(([events, *written], result), file)


# Once here, so that the events of a child are computing and saving, not importing.
for kind in SETTINGS:
    evaluate(kind, sys.argv[1] + f"/{kind}.nc", None)
train("", sys.argv[1] + "/run.pt", None)
print("ready", flush=True)
for line in sys.stdin:
    task, kind, path, kill_at, *files = line.rstrip("\\n").split("\\t")
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            work(task, kind, path or None, int(kill_at), *files)
            code = 0
        finally:
            os._exit(code)
    os.close(alive)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    os.killpg(child, signal.SIGKILL)  # workers that it left behind, should it have failed
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.read(ended, 1)  # returns when the last process that has the other end is gone
    os.close(ended)
    print(code, flush=True)
"""

Result = dict[str, np.ndarray]


class Server:
    """Runs a task in a process of its own, to the end or to a given event."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def run(
        self, task: str, kind: str, path: Path | None, kill_at: int = 0
    ) -> tuple[int, tuple[list[int], Result] | None]:
        """Return how many times the loss was computed.

        And if it lived: the number of events, followed by those at which a chunk was finished; and
        the result.
        """
        counter, result = self.folder / "counter", self.folder / "result.pkl"
        counter.unlink(missing_ok=True)
        fields = [task, kind, path or "", kill_at, counter, result]
        assert self.process.stdin is not None and self.process.stdout is not None
        print(*fields, sep="\t", file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        count = counter.stat().st_size
        if code == -signal.SIGKILL:
            return count, None
        assert code == 0
        return count, pickle.loads(result.read_bytes())


@contextlib.contextmanager
def started(folder: Path, hash_seed: int) -> Iterator[Server]:
    # A process that has used a GPU cannot fork.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": str(hash_seed)}
    environment["TMPDIR"] = str(folder)  # what the killed leave behind
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield Server(process, folder)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("server"), hash_seed=1) as server:
        yield server


def assert_same_bits(first: Result, second: Result) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].tobytes() == second[name].tobytes(), name


def journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


def read_store(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return which points are done, and values: both files are whole at every instant."""
    fingerprint, variables = {}, ("nothing yet",)
    if path.exists():
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            fingerprint = json.loads(dataset.attrs["fingerprint"])
            variables = tuple(dataset["variable"].values.tolist())
    elif journal_of(path).exists():
        owner, newline, _ = journal_of(path).read_bytes().partition(b"\n")
        if newline:  # else it was killed before the first record
            fingerprint, variables = (json.loads(owner)[n] for n in ("fingerprint", "variables"))
        else:
            path = path.with_name("nothing yet")
    store = SurfaceStore(path, fingerprint, POINTS, tuple(variables))  # reads, and writes nothing
    return store.done, store.values


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_killed_evaluation_resumes_to_the_same_bits(kind, server, tmp_path):
    path = tmp_path / "surface.nc"
    count, whole = server.run("evaluate", kind, None)
    assert whole is not None
    _, expected = whole
    chunks = CHUNKS[kind]
    looks = count - chunks  # how often the loss is tried out before the first point
    assert 0 <= looks <= 8
    _, stored = server.run("evaluate", kind, path)
    assert stored is not None
    (total, *written), result = stored
    assert len(written) == chunks
    assert_same_bits(result, expected)
    path.unlink()

    draw = random.Random(f"evaluate {kind}")
    kills = done_before = 0
    seen: set[int] = set()
    while True:
        # Uniform over a run from start to end, and in turn over its points, which may take a small
        # part of it; a resumed run is shorter and may get through. Where all points are done, only
        # every other run is killed: what is left to do is always the same.
        first, last = (1, total) if kills % 2 else (written[0], written[-1])
        spared = kills == KILLS or (done_before == chunks and draw.random() < 0.5)
        kill_at = 0 if spared else draw.randint(first, last)
        count, finished = server.run("evaluate", kind, path, kill_at)
        computed = max(0, count - looks)
        done, values = read_store(path)
        assert np.isnan(values[~done]).all()
        loss = values[:, 0] / 24
        assert loss[done].tobytes() == expected["loss"].ravel()[done].tobytes()
        done_now = int(done.sum()) * chunks // POINTS
        # What is in the store is not computed again, and a kill costs a worker one chunk at most.
        lost = computed - (done_now - done_before)
        done_before = done_now
        if finished is not None:
            assert_same_bits(finished[1], expected)
            assert lost == 0 and done.all()
            assert path.exists() and not journal_of(path).exists()
            path.unlink()
            done_before = 0
            if kills == KILLS:
                break
            continue
        assert 0 <= lost <= (WORKERS if kind == "pool" else 1)
        kills += 1
        seen.add(done_now)
    assert len(seen) > 2  # it was killed at different stages


def test_a_killed_training_resumes_to_the_same_bits(server, tmp_path):
    path = tmp_path / "run.pt"
    count, whole = server.run("train", "", None)
    assert whole is not None and count == EPOCHS * STEPS
    _, expected = whole
    _, stored = server.run("train", "", path)
    assert stored is not None
    (total,), result = stored
    assert_same_bits(result, expected)
    path.unlink()

    draw = random.Random("train")
    kills = kills_now = computed = 0
    seen: set[int] = set()
    while True:
        kill_at = draw.randint(1, total) if kills < KILLS else 0
        count, finished = server.run("train", "", path, kill_at)
        computed += count
        if finished is not None:
            assert_same_bits(finished[1], expected)
            # A kill costs one epoch at most.
            assert EPOCHS * STEPS <= computed <= (EPOCHS + kills_now) * STEPS
            path.unlink()
            computed = kills_now = 0
            if kills == KILLS:
                break
            continue
        kills += 1
        kills_now += 1
        if path.exists():
            checkpoint = torch.load(path, weights_only=True)
            seen.add(len(checkpoint["history"]["epochs"]))
    assert len(seen) > 1


def test_another_process_goes_on_where_one_was_killed(server, tmp_path):
    # Nothing in a fingerprint depends on the process: not its hash seed, not its addresses.
    surface, run = tmp_path / "surface.nc", tmp_path / "run.pt"
    halfway = {}
    for task, method, path in (("evaluate", "loop", surface), ("train", "", run)):
        count, whole = server.run(task, method, path)
        assert whole is not None
        path.unlink()
        (events, *written), expected = whole
        kill_at = written[len(written) // 2] if written else events * 3 // 4
        first, finished = server.run(task, method, path, kill_at)
        assert finished is None and (path.exists() or journal_of(path).exists())
        halfway[task] = count, first, expected
    (tmp_path / "other").mkdir()
    with started(tmp_path / "other", hash_seed=2) as other:
        for task, method, path in (("evaluate", "loop", surface), ("train", "", run)):
            count, first, expected = halfway[task]
            second, finished = other.run(task, method, path)
            assert finished is not None
            assert_same_bits(finished[1], expected)
            assert second < count and first + second >= count  # it did not start afresh
