"""Where a result comes from: written into it when it is computed, and shown beside it."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from landscape_lib import page, runtime


def signed(dataset: xr.Dataset, name: str, config: Mapping[str, Any], seconds: float) -> xr.Dataset:
    """Return a result with what it was computed from, where, by what and in which time.

    Where is its own attribute ``device``, if it has one.
    """
    from landscape_lib import __version__

    return dataset.assign_attrs(
        name=name,
        config=json.dumps(config, sort_keys=True),
        scale=runtime.scale(),
        wall_seconds=round(seconds, 1),
        device=dataset.attrs.get("device") or runtime.device_name(runtime.pick_device()),
        library=__version__,
        commit=_commit(),
        torch=str(torch.__version__),
    )


def provenance(dataset: xr.Dataset) -> None:
    """Print where a result comes from: data, seed, device, time, versions.

    Raises:
        ValueError: the dataset does not come from :func:`cached`.
    """
    print(_in_lines(_source(dataset)))


def how_computed(dataset: xr.Dataset) -> page.Shown:
    """Show where a result comes from: one line, and a fold with what :func:`provenance` prints.

    Raises:
        ValueError: the dataset does not come from :func:`cached`.
    """
    rows = _source(dataset)
    return page.fold(
        f"How this was computed: {rows['computed']}",
        page.Shown(page.table(rows.items(), ["what", "value"]).html, _in_lines(rows)),
    )


def _source(dataset: xr.Dataset) -> dict[str, str]:
    a = dataset.attrs
    if "config" not in a:
        raise ValueError("dataset: expected one from cached(), got one without provenance")
    config = json.loads(a["config"])
    return {
        "result": f"{a['name']} ({a['scale']} scale)",
        "data": a.get("data", "none"),
        "settings": ", ".join(f"{k}={v}" for k, v in config.items()),
        "computed": f"in {duration(float(a['wall_seconds']))} on {a['device']}",
        "versions": f"landscape_lib {a['library']} ({a['commit']}), torch {a['torch']}",
    }


def _in_lines(rows: Mapping[str, str]) -> str:
    return "\n".join(
        textwrap.fill(f"{key:<9} {value}", page.WIDTH, subsequent_indent=" " * 10)
        for key, value in rows.items()
    )


def duration(seconds: float) -> str:
    """Return a time span as a person would say it, for example ``"3 min"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--", "landscape_lib"))
        return (
            f"commit {git('rev-parse', '--short=12', 'HEAD')}{' with changes' if changed else ''}"
        )
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
