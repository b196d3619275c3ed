"""A surface on disk while it is being computed: a mask of finished points, and resumption.

The store is one netCDF file, rewritten whole every two seconds at most and put in place by an
atomic rename. A surface is small (251 x 251 points with five variables are 2.5 MB), so that costs
milliseconds; in return the file can be opened at every instant, and shows the surface as far as it
is known, and there is no lock to hang on. What was written since is in a journal beside it,
``NAME.journal``, which every save makes empty: when a run has ended there is the one file. A
chunked format such as Zarr would pay only for surfaces too large to rewrite.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from landscape_lib import files
from landscape_lib.evaluation.journal import Journal
from landscape_lib.fingerprint import (
    Fingerprint,
    differences,
    digest,
    from_json,
    to_json,
    warn_of_unknown,
)

FORMAT = "landscape_lib surface store 2"
SECONDS_BETWEEN_SAVES = 2.0


class StoreMismatch(ValueError):
    """The store or its journal belongs to another computation, or is none at all."""


class SurfaceStore:
    """Values of named variables at K points, kept in a file.

    Use it in a ``with`` block: on leaving, also by an error or an interrupt, everything written is
    saved and the journal is gone. A process that is killed loses nothing that was written. Two
    processes that write to one store at once are not kept apart.

    Args:
        path: the file; it is created by the first save.
        fingerprint: what the surface is computed from, part by part.
        points: K.
        variables: names of the columns.
        surface: makes of the values what a reader of the file wants to see beside them; their
            variables and attributes are not read again.

    Raises:
        StoreMismatch: the file or its journal exists and has another fingerprint, or cannot be
            read. Both are left as they are.
        OSError: on entering the block: the folder cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fingerprint: Fingerprint,
        points: int,
        variables: tuple[str, ...],
        surface: Callable[[NDArray[np.float64]], xr.Dataset] | None = None,
    ) -> None:
        self.path = files.local_path("store", path)
        self._surface = surface
        self.fingerprint = fingerprint
        self.variables = variables
        self.values = np.full((points, len(variables)), np.nan)
        self.done = np.zeros(points, dtype=bool)
        self._saved = time.monotonic()
        journal = self.path.with_name(f"{self.path.name}.journal")
        self._journal = Journal(journal, fingerprint, points, variables)
        if self.path.exists():
            self._read()
        # What a kill between a save and the end of the journal has left is in both: the same bits.
        self._changed = journal.exists()
        self._read_journal()

    def __enter__(self) -> SurfaceStore:
        warn_of_unknown(self.fingerprint, f"store: {self.path}")
        files.remove_abandoned(self.path)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._changed:
                self.save()
        finally:
            self._journal.close()

    def write(self, indices: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Keep values (k, variables) of some points: from now on they outlive the process."""
        self._journal.append(indices, values)
        self.values[indices] = values
        self.done[indices] = True
        self._changed = True
        if time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write the file and put it in place; then the journal can go."""
        dataset = self._surface(self.values) if self._surface else xr.Dataset()
        dataset = dataset.assign_coords(variable=list(self.variables)).assign(
            values=(("point", "variable"), self.values),
            done=("point", self.done.astype(np.int8)),
        )
        dataset.attrs |= {
            "format": FORMAT,
            "fingerprint": to_json(self.fingerprint),
            "digest": digest([self.values, self.done]),
        }
        # With checksums, so that a bit that has flipped is found.
        checked = {name: {"fletcher32": True} for name in dataset.data_vars}
        files.write(self.path, files.netcdf(dataset, checked))
        self._journal.remove()
        self._saved = time.monotonic()
        self._changed = False

    def _read(self) -> None:
        try:
            with xr.open_dataset(self.path, engine="h5netcdf") as dataset:
                dataset.load()
            if dataset.attrs.get("format") != FORMAT:
                raise ValueError("it is not a surface store")
            stored = from_json(dataset.attrs["fingerprint"])
            values, done = dataset["values"].values, dataset["done"].values.astype(bool)
            if dataset.attrs["digest"] != digest([values, done]):
                raise ValueError("its values are not those that were written")
            variables = tuple(dataset["variable"].values.tolist())
        except Exception as error:
            raise StoreMismatch(
                f"store: {self.path} cannot be read as a surface store ({error}); "
                f"it was left untouched: move it away or choose another path"
            ) from error
        changed = differences(stored, self.fingerprint)
        if changed or variables != self.variables or values.shape != self.values.shape:
            raise StoreMismatch(
                f"store: {self.path} belongs to another computation: "
                f"{', '.join(changed) or 'variables'} differ(s); "
                f"it was left untouched: move it away or choose another path"
            )
        self.values, self.done = values, done

    def _read_journal(self) -> None:
        try:
            records = self._journal.read()
        except (OSError, ValueError) as error:
            raise StoreMismatch(
                f"store: {self._journal.path} {error}; it was left untouched: move it away (what "
                f"is in {self.path.name} is kept) or choose another path"
            ) from error
        for indices, values in records:
            self.values[indices] = values
            self.done[indices] = True
