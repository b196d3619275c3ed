"""Where the recorded points of a training run are kept, and what they take there."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from landscape_lib import files, runtime
from landscape_lib.weights import Weights

LARGE = 1 << 30  # bytes of which more than the progress bar tells

# A point as it stands in a checkpoint: itself, or its file and that file's digest.
Entry = Weights | tuple[str, str]


@dataclass(frozen=True)
class Place:
    """Where points are kept: on a device, or each in a file of a folder, read when it is used.

    Attributes:
        device: of the points, unless they are in a folder.
        folder: of the files, if there is one.
        run: of whom the files are, so that another run's are never written over.
    """

    device: torch.device
    folder: Path | None = None
    run: str = ""

    @classmethod
    def of(cls, given: Any, device: torch.device, run: str) -> Place:
        """Return the place that the argument ``record_to`` of ``train`` names.

        Raises:
            TypeError, ValueError, OSError: it is no folder that can be written to.
        """
        if given is None or str(given) == "cpu":
            return cls(device if given is None else torch.device("cpu"))
        if not isinstance(given, (str, os.PathLike)):
            raise TypeError(f"record_to: expected None, 'cpu' or a folder, got {given!r}")
        return cls(
            device, files.local_path("record_to", Path(given) / "x.pt").parent.resolve(), run
        )

    def cost(self, weights: Weights, points: int) -> str:
        """Say what so many more points take here; a warning says it from 1 GiB on.

        Raises:
            ValueError: there is less room.
        """
        each = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        taken = points * each
        said = f"{points:,} points of {each / 1e6:,.1f} MB, {taken / 1e9:,.2f} GB on "
        said += str(self.folder or self.device)
        free = None
        if self.folder is not None:
            free = shutil.disk_usage(self.folder).free
        elif self.device.type == "cuda":
            free = runtime.free_memory(self.device)
        other = "record less often, or choose another record_to: 'cpu', or a folder"
        if free is not None and taken > free:
            raise ValueError(f"record_every: {said}, where {free / 1e9:,.2f} GB are free; {other}")
        if taken > LARGE:
            warnings.warn(f"record_every: the trajectory takes {said}; {other}", stacklevel=3)
        return said

    def keep(self, point: Weights, step: int) -> tuple[Weights, Entry]:
        """Keep a point; return it as it is there, and as a checkpoint is to hold it."""
        if self.folder is None:
            kept = {name: tensor.to(self.device) for name, tensor in point.items()}
            return kept, kept
        content = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in point.items()}, content)
        path = self.folder / f"{self.run}-{step:09d}.pt"
        files.write(path, content.getvalue())
        return _read(path), (str(path), hashlib.blake2b(content.getbuffer()).hexdigest())

    def found(self, entry: Entry, step: int) -> tuple[Weights, Entry]:
        """Return a point of a checkpoint, wherever it was kept.

        Raises:
            ValueError, OSError: its file is gone, or not as it was written.
        """
        if not isinstance(entry, tuple):
            return self.keep(entry, step)
        path, digest = entry
        if hashlib.blake2b(Path(path).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path} is not as it was written")
        if self.folder is None:
            return self.keep(_read(Path(path)), step)
        return _read(Path(path)), entry


def _read(path: Path) -> Weights:
    found: Weights = torch.load(path, mmap=True, weights_only=True)
    return found
