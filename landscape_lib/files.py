"""Files that are whole or not there: paths checked before work, digests inside."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

# Of a temporary file: whose it is, so that nobody else's is taken for abandoned.
_HOST = re.sub(r"\W", "_", platform.node())
_CHECK = hashlib.blake2b().digest_size


def local_path(name: str, value: Any) -> Path:
    """Return the path of a file that can be written, "~" expanded and missing folders made.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        TypeError, ValueError: it is no path of a file on this machine.
        OSError: its folder cannot be written to.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected the path of a file, got {type(value).__name__}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text or re.match(r"\w+:(//|:)", text):
        raise ValueError(f"{name}: expected the path of a file on this machine, got {text!r}")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}: expected the path of a file, got {text!r}: {error}") from error
    if path.is_dir():
        raise IsADirectoryError(f"{name}: expected the path of a file, got the folder {path}")
    if path.exists() and not path.is_file():  # reading /dev/full would never end
        raise ValueError(f"{name}: expected the path of a file, got the device or pipe {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise type(error)(f"{name}: {path.parent} cannot be written to: {error}") from error
    return path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and rename it to ``path`` when the block succeeds.

    A reader, or a process killed at any instant, meets the old file or the new one, never half of
    one. Missing parent folders are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    temporary = target.with_name(f".{target.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Put a file in place that holds so much, or leave the one that was there.

    Raises:
        OSError: the disk is full, or the folder gone; the file that was there is untouched.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        error.add_note(f"landscape_lib: {path} could not be written; what it held before is safe")
        raise


def netcdf(dataset: xr.Dataset, encoding: Mapping[Any, Any] | None = None) -> bytes:
    """Return what a NetCDF file of a dataset holds.

    In memory: on a full disk HDF5 ends the process. How a dataset was once stored says nothing of
    what it holds now: kept from a file, the length of a text would cut longer ones.
    """
    dask = sys.modules.get("dask")
    # Beside a Dask client, xarray asks the cluster for a lock that it does not know.
    with dask.config.set(scheduler="threads") if dask else contextlib.nullcontext():
        return bytes(dataset.drop_encoding().to_netcdf(engine="h5netcdf", encoding=encoding))


def sealed(content: bytes) -> bytes:
    """Return bytes with their digest behind them, for :func:`unsealed`."""
    return content + hashlib.blake2b(content).digest()


def unsealed(content: bytes) -> bytes:
    """Return the bytes of :func:`sealed`.

    Raises:
        ValueError: a bit is not as it was, or some are missing.
    """
    found = content[:-_CHECK]
    if hashlib.blake2b(found).digest() != content[-_CHECK:]:
        raise ValueError("its digest is missing or another: damaged, or of an older version")
    return found


def remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Remove what processes of this machine that were killed have left beside ``path``."""
    target = Path(path)
    for left in target.parent.glob(f".{glob.escape(target.name)}.{_HOST}.*.tmp"):
        if _is_dead(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def parcel(content: bytes) -> Iterator[Path]:
    """Give a temporary file of such content, for other processes to read."""
    folder = Path(tempfile.gettempdir())
    for left in folder.glob(f"landscape-{_HOST}-*.task"):
        if _is_dead(left.name.split("-")[-2]):
            left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(".task", f"landscape-{_HOST}-{os.getpid()}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _is_dead(process: str) -> bool:
    """Say whether no process of this machine has the number."""
    if os.name != "posix" or not process.isdecimal():
        return False  # on Windows the question would end it
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False
