"""Chunks of points on any ``concurrent.futures.Executor``: processes, threads, Dask, MPI.

The model and the data travel once per worker, through a file that every worker of the same machine
or of a shared file system reads on its first chunk; on a Dask cluster through Dask's own
``scatter``. After that a task is a handful of indices.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from landscape_lib import files

Indices = NDArray[np.int64]
Values = NDArray[np.float64]


class Runnable(Protocol):
    """What a task must be able to do."""

    def run(self, indices: Indices) -> Values:
        """Return the values at some points."""


# Chunks that are with the executor at a time: enough for dozens of workers, and so few that little
# is finished, but not yet stored, when the process is killed.
WINDOW = 64

_local = threading.local()

# Callers of one process take turns, and so do workers that are threads of one: tracing a model and
# drawing random numbers both change what is the whole process's.
TURN = threading.RLock()
_parcels: set[Path] = set()  # that this worker has opened
_turn = threading.Lock()


def run_chunks(
    executor: Executor, task: Runnable, chunks: list[Indices]
) -> Iterator[tuple[Indices, Values]]:
    """Run a task on chunks of points and yield ``(indices, values)`` as they finish.

    Each worker uses one thread: with as many workers as cores that is the fastest, and a point's
    numbers do not depend on how many workers there are. Workers that are threads of one process
    take turns. A worker that dies is a ``BrokenExecutor``, which a process pool cannot replace.
    """
    with _shipped(executor, task) as (key, parcel):
        waiting: set[Future[Values]] = set()
        at: dict[Future[Values], Indices] = {}
        try:
            ahead = iter(chunks)
            while True:
                for chunk in islice(ahead, WINDOW - len(waiting)):
                    future = executor.submit(_run_on_worker, key, parcel, chunk)
                    at[future] = chunk
                    waiting.add(future)
                if not waiting:
                    break
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield at.pop(future), future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise BrokenExecutor(
                "executor: a worker died, or the scheduler, and it cannot go on. Points that were "
                "finished are in the store, if one was given: call again with a new executor"
            ) from error
        finally:
            for future in waiting:
                future.cancel()
            if isinstance(executor, ThreadPoolExecutor):
                wait(waiting)  # before the caller gets the random state back


@contextlib.contextmanager
def _shipped(executor: Executor, task: Runnable) -> Iterator[tuple[str, Any]]:
    """Put the task where workers can fetch it; give its key and the parcel to send with chunks."""
    try:
        import cloudpickle as pickler
    except ImportError:
        pickler = pickle
    try:
        content = pickler.dumps(task)
    except Exception as error:
        raise TypeError(
            f"executor: model, loss, metrics and data must be picklable to travel to workers: "
            f"{error}. Define them in a module, or install cloudpickle"
        ) from error
    key = f"{os.getpid()}-{id(task)}-{os.urandom(8).hex()}"
    client = getattr(executor, "_client", None)
    if client is not None and hasattr(client, "scatter"):  # distributed.cfexecutor.ClientExecutor
        yield key, client.scatter(content, broadcast=True)
        return
    with files.parcel(content) as path:
        yield key, path


def _run_on_worker(key: str, parcel: Any, indices: Indices) -> Values:
    """Run a chunk; the task is unpacked once per thread of each worker and then kept."""
    with _turn, on_worker():
        try:
            if getattr(_local, "key", None) != key:
                if isinstance(parcel, Path):
                    _parcels.add(parcel)
                content = parcel.read_bytes() if isinstance(parcel, Path) else parcel
                _local.task, _local.key = pickle.loads(content), key
            values: Values = _local.task.run(indices)
        except Exception as error:
            raise _portable(error) from None
    return values


@contextlib.contextmanager
def on_worker() -> Iterator[None]:
    """Let a worker use one thread, and end it once its parent was killed.

    A process that was forked hangs in its first step on several threads, if its parent had some.
    """
    _end_with_parent()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _end_with_parent() -> None:
    """End this worker of a pool once its parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        for parcel in _parcels:
            parcel.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _portable(error: Exception) -> Exception:
    """Return an error that survives the way back: one that cannot be unpickled breaks the pool."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            plain.add_note(note)
        return plain
    return error
