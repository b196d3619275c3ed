"""A surface on disk while it is being computed: a mask of finished points, and resumption.

The store is one netCDF file, rewritten whole every two seconds at most and put in place by an
atomic rename. A surface is small (251 x 251 points with five variables are 2.5 MB), so that costs
milliseconds; in return there is one readable file at every instant, no lock to hang on, and no
journal to repair. A chunked format such as Zarr would pay only for surfaces too large to rewrite.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from landscape_lib.fingerprint import Fingerprint, differences, from_json, to_json
from landscape_lib.runtime import atomic_path

FORMAT = "landscape_lib surface store 1"
SECONDS_BETWEEN_SAVES = 2.0


class StoreMismatch(ValueError):
    """The store at this path belongs to another computation, or is not a store at all."""


class SurfaceStore:
    """Values of named variables at K points, kept in a file.

    Use it in a ``with`` block: on leaving, also by an error or an interrupt, everything written is
    saved. A process that is killed loses what was written since the last save: two seconds of work,
    or one chunk if that takes longer.

    Args:
        path: the file; it is created by the first save.
        fingerprint: what the surface is computed from, part by part.
        points: K.
        variables: names of the columns.

    Raises:
        StoreMismatch: the file exists and has another fingerprint, or cannot be read. It is left
            as it is.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fingerprint: Fingerprint,
        points: int,
        variables: tuple[str, ...],
    ) -> None:
        self.path = Path(path)
        self.fingerprint = fingerprint
        self.variables = variables
        self.values = np.full((points, len(variables)), np.nan)
        self.done = np.zeros(points, dtype=bool)
        self._saved = time.monotonic()
        self._changed = False
        if self.path.exists():
            self._read()

    def __enter__(self) -> SurfaceStore:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._changed:
            self.save()

    @property
    def pending(self) -> NDArray[np.int64]:
        """Indices of the points that are still to be computed, ascending."""
        return np.flatnonzero(~self.done)

    def write(self, indices: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Take the values of some points; save if the last save is two seconds ago.

        Args:
            indices: shape (k,).
            values: shape (k, number of variables); NaN and inf are kept as they are.
        """
        self.values[indices] = values
        self.done[indices] = True
        self._changed = True
        if time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write the file and put it in place."""
        dataset = xr.Dataset(
            {
                "values": (("point", "variable"), self.values),
                "done": ("point", self.done.astype(np.int8)),
            },
            coords={"variable": list(self.variables)},
            attrs={"format": FORMAT, "fingerprint": to_json(self.fingerprint)},
        )
        with atomic_path(self.path) as temporary:
            # With checksums, so that a bit that has flipped on the disk is found.
            checked = {name: {"fletcher32": True} for name in ("values", "done")}
            dataset.to_netcdf(temporary, engine="h5netcdf", encoding=checked)
        self._saved = time.monotonic()
        self._changed = False

    def _read(self) -> None:
        try:
            with xr.open_dataset(self.path, engine="h5netcdf") as dataset:
                dataset.load()
            if dataset.attrs.get("format") != FORMAT:
                raise ValueError("it is not a surface store")
            stored = from_json(dataset.attrs["fingerprint"])
            values, done = dataset["values"].values, dataset["done"].values
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
        self.values, self.done = values, done.astype(bool)
