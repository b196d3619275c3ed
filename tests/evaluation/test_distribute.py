"""Points on executors: the same numbers for any number of workers, also when one dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from cases import CASES
from test_evaluate import make_plane

import landscape_lib as ll
from landscape_lib.evaluation import distribute


def pool(workers: int) -> ProcessPoolExecutor:
    # "spawn": forked workers inherit torch's thread pool and can hang.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def deadly(output, target, reduction="mean"):
    """Cross-entropy that kills its worker the first time it is asked there."""
    marker = Path(os.environ["LANDSCAPE_TEST_MARKER"])
    if multiprocessing.parent_process() is not None and marker.exists():
        marker.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(output, target, reduction=reduction)


@pytest.mark.parametrize("name", ["cnn with batch norm", "tied weights", "dropout"])
def test_any_number_of_workers_gives_the_same_bits(name):
    case = CASES[name]
    model, data = case.build()
    runs = []
    for executor in (pool(1), pool(2), ThreadPoolExecutor(2)):
        with executor:
            runs.append(
                ll.evaluate(model, make_plane(model), data, loss=case.loss, executor=executor)
            )
    alone = ll.evaluate(model, make_plane(model), data, loss=case.loss)
    for run in runs:
        assert run.equals(runs[0])
        np.testing.assert_allclose(run.loss, alone.loss, rtol=1e-12)


def test_a_task_travels_without_the_data_of_its_neighbours(monkeypatch):
    sizes = []
    import pickle

    from landscape_lib.evaluation import distribute

    kept = distribute._shipped

    def measuring(executor, task):
        sizes.append(len(pickle.dumps(task)))
        return kept(executor, task)

    monkeypatch.setattr(distribute, "_shipped", measuring)
    model, data = CASES["mlp"].build()
    data.x, data.y = data.x.repeat(500, 1), data.y.repeat(500)
    with ThreadPoolExecutor(1) as executor:
        ll.evaluate(model, make_plane(model), data, batch_size=100, executor=executor)
    exact = data.x.numel() * 8 + data.y.numel() * 8
    assert exact < sizes[0] < 1.5 * exact + 50_000


def test_a_killed_worker_loses_nothing_that_was_finished(tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    monkeypatch.setenv("LANDSCAPE_TEST_MARKER", str(marker))
    model, data = CASES["mlp"].build()
    plane = make_plane(model, np.linspace(0, 1, 9), np.linspace(0, 1, 7))
    expected = ll.evaluate(model, plane, data, loss=deadly, method="loop")
    marker.touch()
    store = tmp_path / "surface.nc"
    options = {"loss": deadly, "method": "loop", "store": store}
    with pool(2) as executor, pytest.raises(BrokenExecutor) as caught:
        ll.evaluate(model, plane, data, executor=executor, **options)
    assert "are in the store, if one was given: call again" in str(caught.value)
    with pool(2) as executor:
        resumed = ll.evaluate(model, plane, data, executor=executor, **options)
    np.testing.assert_allclose(resumed.loss, expected.loss, rtol=1e-12)


def test_what_cannot_travel_is_said_before_any_work():
    model, data = CASES["mlp"].build()

    class Stubborn:
        def __reduce__(self):
            raise RuntimeError("I stay here")

    data.x = {"x": data.x}
    model.note = Stubborn()
    with ThreadPoolExecutor(1) as executor, pytest.raises(Exception, match="I stay here"):
        ll.evaluate(model, make_plane(model), data, executor=executor)


def test_no_file_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, data = CASES["mlp"].build()
    with ThreadPoolExecutor(1) as executor:
        ll.evaluate(model, make_plane(model), data, executor=executor)
    assert not list(tmp_path.glob("landscape-*"))  # torch makes folders of its own


KILLED = """
import multiprocessing, os, signal
import test_distribute as t
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    model, data = t.CASES["mlp"].build()
    plane = t.make_plane(model, t.np.linspace(0, 1, 9), t.np.linspace(0, 1, 7))
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(2, mp_context=context)
    for chunk in t.distribute._shipped(executor, t.Echo()).gen:
        executor.submit(t.distribute._run_on_worker, *chunk, t.np.arange(3)).result()
        workers = [process.pid for process in multiprocessing.active_children()]
        print(*workers, chunk[1], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills")
def test_a_killed_parent_leaves_neither_workers_nor_files(tmp_path):  # CASES K11
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    paths = [str(Path(ll.__file__).parents[1]), str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path)}
    # Its output ends when the last process that holds it has ended; else this would wait for ever.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        timeout=1800,
    )
    assert done.returncode == -signal.SIGKILL
    *workers, parcel = done.stdout.split()
    assert workers and not Path(parcel).exists()


def test_dask_cluster_survives_a_killed_worker(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    marker = tmp_path / "marker"
    monkeypatch.setenv("LANDSCAPE_TEST_MARKER", str(marker))
    model, data = CASES["mlp"].build()
    plane = make_plane(model, np.linspace(0, 1, 9), np.linspace(0, 1, 7))
    expected = ll.evaluate(model, plane, data, loss=deadly, method="loop")
    marker.touch()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        got = ll.evaluate(model, plane, data, loss=deadly, method="loop", executor=executor)
    assert not marker.exists()
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-12)


@pytest.mark.parametrize("end", ["none", "workers", "scheduler"])
def test_dask_with_a_store_whatever_dies(tmp_path, end):
    """CASES K11: with all workers or the scheduler killed, what was finished is in the store."""
    pytest.importorskip("distributed")
    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster

    def slow(output, target):  # in here, since workers cannot import this file
        time.sleep(0.05)
        return F.cross_entropy(output, target)

    model = ll.models.mlp(64, hidden=(8,), seed=0)
    data = ll.data.load("digits", "test", samples=40, device="cpu")
    plane = make_plane(model, np.linspace(0, 1, 9), np.linspace(0, 1, 7))
    options = {"loss": slow, "method": "loop", "progress": False}
    expected = ll.evaluate(model, plane, data, **options)
    options["store"] = tmp_path / "s.nc"
    with contextlib.ExitStack() as stack:
        cluster = SubprocessCluster(worker_kwargs={"nthreads": 1})
        client = stack.enter_context(Client(cluster))
        if end != "scheduler":
            stack.callback(cluster.close)
        executor = client.get_executor()

        def kill():
            while not (tmp_path / "s.nc.journal").exists():
                time.sleep(0.01)
            if end == "workers":
                for number in client.run(os.getpid).values():
                    os.kill(number, signal.SIGKILL)
            elif end == "scheduler":
                cluster.scheduler.process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        if end != "none":
            with pytest.raises(BrokenExecutor, match="in the store"):
                ll.evaluate(model, plane, data, executor=executor, **options)
        else:
            ll.evaluate(model, plane, data, executor=executor, **options)
        killer.join()
    got = ll.evaluate(model, plane, data, **options)
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-12)


class Echo:
    """A task whose values are the indices."""

    def run(self, indices):
        return indices.astype(float)[:, None]


class AtOnce(Executor):
    """Runs what is submitted at once, and counts it."""

    def __init__(self):
        self.submitted = 0

    def submit(self, function, /, *args, **kwargs):
        self.submitted += 1
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def test_few_chunks_are_with_the_executor_at_a_time():
    """What is submitted and not yet taken is what a kill can cost."""
    executor, taken = AtOnce(), []
    chunks = [np.array([k]) for k in range(5 * distribute.WINDOW // 2)]
    for indices, values in distribute.run_chunks(executor, Echo(), chunks):
        assert executor.submitted - len(taken) <= distribute.WINDOW
        assert values.tolist() == [[float(indices[0])]]
        taken.append(int(indices[0]))
    assert sorted(taken) == list(range(len(chunks)))
