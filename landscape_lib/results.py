"""Results of long runs: loaded where they are committed, computed and saved where they are not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import xarray as xr

from landscape_lib import files, runtime
from landscape_lib.fingerprint import differences, digest
from landscape_lib.provenance import duration, how_computed, provenance, signed

__all__ = [
    "MissingResult",
    "StaleResult",
    "cached",
    "duration",
    "folder",
    "how_computed",
    "provenance",
    "scratch",
]

LARGEST_FILE = 1_000_000  # bytes


class StaleResult(ValueError):
    """A stored result was computed with another configuration than the one asked for."""


class MissingResult(FileNotFoundError):
    """There is no stored result, and computing it takes long enough to be asked for."""


def cached(
    name: str, compute: Callable[[], xr.Dataset], *, config: Mapping[str, Any]
) -> xr.Dataset:
    """Load a stored result, or compute and save it.

    What happens depends on the scale. ``smoke``: always computed, never saved. ``book``: loaded; if
    it is missing, an error says how to compute it. ``paper``: loaded, or computed and saved if it
    is missing. With ``LANDSCAPE_RECOMPUTE=1`` it is computed and saved at ``book`` and
    ``paper`` scale, whatever is there.

    Args:
        name: chapter and name, for example ``"02/mlp"``.
        compute: makes the dataset; it can keep its own progress in :func:`scratch`.
        config: everything the result depends on, as plain values.

    Returns:
        The dataset, with its provenance as attributes.

    Raises:
        TypeError, ValueError: bad input, named before any work; a stored file that cannot be read.
        StaleResult: the stored configuration differs; the message names the keys.
        MissingResult: nothing is stored and nothing says to compute it.
    """
    wanted = _plain(config)
    if not callable(compute):
        raise TypeError(f"compute: expected a callable, got {type(compute).__name__}")
    _check_name(name)
    if runtime.scale() == "smoke":
        return _compute(name, compute, wanted)
    path = (folder() / "paper" if runtime.scale() == "paper" else folder()) / f"{name}.nc"
    if not runtime.recompute():
        if path.exists():
            return _load(path, name, wanted)
        if runtime.scale() == "book":
            raise MissingResult(
                f"result {name!r} is not stored at {path}. Compute it with "
                f"`make results CHAPTER={name.split('/')[0]}`, or set LANDSCAPE_RECOMPUTE=1 "
                f"(real data, possibly hours on two cores, resumable)"
            )
    path = files.local_path("LANDSCAPE_RESULTS", path)
    dataset = _compute(name, compute, wanted)
    _save(path, name, dataset, wanted)
    return dataset


def _save(path: Path, name: str, dataset: xr.Dataset, config: dict[str, Any]) -> None:
    """Put the result in place, or keep it elsewhere if that cannot be."""
    encoding: dict[Any, dict[str, Any]] = {
        variable: {"zlib": True, "complevel": 6, "shuffle": True}
        for variable, array in dataset.variables.items()
        if array.ndim and array.dtype.kind in "fiu"
    }
    try:
        checked = dataset.assign_attrs(digest=_digest_of(dataset))
        content = files.netcdf(checked, encoding)
        if not is_small(content):
            raise ValueError(
                f"result {name!r} takes {len(content):,} bytes; stored results stay below "
                f"{LARGEST_FILE:,}: keep fewer variables or float32"
            )
        files.write(path, content)
    except Exception as error:
        place = scratch(name, config)
        if place is not None:
            with contextlib.suppress(OSError):
                files.write(place / "unsaved.pickle", pickle.dumps(dataset))
                error.add_note(f"landscape_lib: it is kept in {place / 'unsaved.pickle'}")
        raise


def is_small(content: Sized) -> bool:
    """Whether an array or bytes may be stored; results of scale "paper" are nobody's to commit."""
    size = getattr(content, "nbytes", len(content))
    return size <= LARGEST_FILE or runtime.scale() == "paper"


def _digest_of(dataset: xr.Dataset) -> str:
    """Return the digest of all values and of the configuration, the same in every version."""
    state = hashlib.blake2b(dataset.attrs["config"].encode(), digest_size=12)
    for name, variable in sorted(dataset.variables.items(), key=lambda pair: str(pair[0])):
        values = variable.values
        if values.dtype.kind in "fiubc":
            kind, content = values.dtype.name, values.tobytes()
        else:
            kind, content = "text", json.dumps(values.astype(str).tolist()).encode()
        state.update(f"{name} {variable.dims} {values.shape} {kind} ".encode() + content)
    return state.hexdigest()


def scratch(name: str, config: Mapping[str, Any]) -> Path | None:
    """Return a folder for checkpoints and stores of one computation, or ``None`` at smoke scale.

    The folder belongs to this configuration alone, so that another one starts afresh.

    Args:
        name: as in :func:`cached`.
        config: as in :func:`cached`.
    """
    _check_name(name)
    if runtime.scale() == "smoke":
        return None
    path = folder() / ".work" / f"{name}-{digest(json.dumps(_plain(config), sort_keys=True))[:12]}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def kept(
    place: Path | None, name: str, work: Callable[..., xr.Dataset], *arguments: Any
) -> xr.Dataset:
    """Return what a part of a long computation gives, or what it gave before.

    Args:
        place: the folder of the computation, from :func:`scratch`; ``None`` keeps nothing.
        name: of the part.
        work: makes the part; a digest is kept with it.
        arguments: of ``work``.

    Raises:
        ValueError: the kept part is damaged.
    """
    file = None if place is None else place / f"{name}.nc"
    if file is not None and file.exists():
        try:
            content = io.BytesIO(files.unsealed(file.read_bytes()))
        except ValueError as error:
            raise ValueError(f"{file}: {error}; delete it, and it is computed again") from error
        return xr.load_dataset(content, engine="h5netcdf")
    found = work(*arguments)
    if file is not None:
        files.write(file, files.sealed(files.netcdf(found)))
    return found


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+(/[\w-]+)*", name):
        raise ValueError(f"name: expected chapter and name as in '02/mlp', got {name!r}")


def folder() -> Path:
    """Return the folder of stored results.

    It is ``$LANDSCAPE_RESULTS``, or ``results`` of the book that the working directory is in, or
    that of the checkout this library was installed from.

    Raises:
        FileNotFoundError: there is none.
    """
    chosen = os.environ.get("LANDSCAPE_RESULTS")
    if chosen:
        return Path(chosen).expanduser()
    here = Path.cwd()
    homes = [here, *here.parents, Path(__file__).resolve().parent.parent]
    for home in homes:
        for candidate in (home / "book", home):
            if (candidate / "results").is_dir() and (candidate / "references.bib").exists():
                return candidate / "results"
    raise FileNotFoundError(
        f"no folder of stored results at or above {here}: run inside a checkout of the book, or "
        f"set LANDSCAPE_RESULTS"
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise TypeError(f"config: expected a mapping, got {type(config).__name__}")
    try:
        return dict(json.loads(json.dumps(dict(config), sort_keys=True)))
    except TypeError as error:
        raise TypeError(
            f"config: expected plain values (numbers, strings, lists, dicts): {error}"
        ) from error


def _load(path: Path, name: str, wanted: dict[str, Any]) -> xr.Dataset:
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            dataset = stored.load()
        config = json.loads(dataset.attrs["config"])
        if dataset.attrs.pop("digest", None) != _digest_of(dataset):
            raise ValueError("its digest is missing, or its values are not those written")
    except Exception as error:
        raise ValueError(f"result {name!r}: {path} cannot be read: {error}") from error
    changed = differences(
        {k: repr(v) for k, v in config.items()}, {k: repr(v) for k, v in wanted.items()}
    )
    if changed:
        detail = "; ".join(
            f"{k}: stored {config.get(k, 'absent')!r}, asked {wanted.get(k, 'absent')!r}"
            for k in changed
        )
        raise StaleResult(
            f"result {name!r} at {path} was computed with another configuration ({detail}). "
            f"Recompute it with `make results CHAPTER={name.split('/')[0]}`"
        )
    return dataset


def _compute(name: str, compute: Callable[[], xr.Dataset], config: dict[str, Any]) -> xr.Dataset:
    with _stopwatch(name, config) as seconds:
        dataset = compute()
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(
            f"compute: expected it to return an xarray.Dataset, got {type(dataset).__name__}"
        )
    return signed(dataset, name, config, seconds())


@contextlib.contextmanager
def _stopwatch(name: str, config: dict[str, Any]) -> Iterator[Callable[[], float]]:
    """Measure the time of a computation that may be interrupted, or killed, and resumed.

    The time is noted every ten seconds and at the end, so a kill loses ten seconds of it at most.
    """
    place = scratch(name, config)
    file = None if place is None else place / "seconds.txt"
    before = float(file.read_text()) if file is not None and file.exists() else 0.0
    started = time.perf_counter()
    finished = threading.Event()

    def elapsed() -> float:
        return before + time.perf_counter() - started

    def note() -> None:
        if file is not None:
            files.write(file, f"{elapsed():.1f}".encode())

    def keep_noting() -> None:
        while not finished.wait(10):
            note()

    thread = threading.Thread(target=keep_noting, daemon=True)
    thread.start()
    try:
        yield elapsed
    finally:
        finished.set()
        thread.join()
        note()
