"""Where and how code runs: device, random state, scale, memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

T = TypeVar("T")

SCALES = ("smoke", "book", "paper")


def scale() -> str:
    """Return the scale of the computation: ``"smoke"``, ``"book"`` or ``"paper"``.

    It is read from the environment variable ``LANDSCAPE_SCALE`` at each call, so that the first
    cell of a notebook can set it. ``book`` is the default.

    Raises:
        ValueError: the variable holds anything else.
    """
    value = os.environ.get("LANDSCAPE_SCALE") or "book"
    if value not in SCALES:
        raise ValueError(f"LANDSCAPE_SCALE: expected one of {SCALES}, got {value!r}")
    return value


def at_scale(*, smoke: T, book: T, paper: T) -> T:
    """Return the one of three settings that belongs to the present :func:`scale`."""
    return {"smoke": smoke, "book": book, "paper": paper}[scale()]


def recompute() -> bool:
    """Say whether stored results are to be computed anew (``LANDSCAPE_RECOMPUTE=1``)."""
    return os.environ.get("LANDSCAPE_RECOMPUTE", "") not in ("", "0")


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return ``device``, or the best one present: CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: the named device does not exist or is not available here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"device: {device!r} is not available here: {error}") from error
    return chosen


def device_name(device: torch.device) -> str:
    """Return a name that a person recognises, for the provenance of a result."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU ({_processor()}, {threads} thread{'s' if threads > 1 else ''})"
    return device.type


def free_memory(device: torch.device) -> int:
    """Return the free memory of an accelerator in bytes; 4 GiB where it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return 4 << 30


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def generator(seed: int) -> torch.Generator:
    """Return a CPU random generator started at ``seed``; the global state is not touched.

    Raises:
        TypeError: ``seed`` is not a whole number.
    """
    _check_seed(seed)
    return torch.Generator("cpu").manual_seed(int(seed))


@contextlib.contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Run a block on its own random stream and give the caller's back afterwards.

    Args:
        seed: the global generators (torch's on the CPU and every CUDA device, numpy's, Python's)
            start from it inside the block.

    Raises:
        TypeError: ``seed`` is not a whole number.
    """
    _check_seed(seed)
    before = random_state(torch.device("cuda", k) for k in range(torch.cuda.device_count()))
    try:
        here = torch.accelerator.current_accelerator(check_available=True)
        restart_random_numbers(here or torch.device("cpu"), seed)
        yield
    finally:
        set_random_state(before)


def random_state(devices: Iterable[torch.device]) -> dict[str, Any]:
    """Return the states of the global generators: Python's, numpy's, torch's on CPU and devices."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"},
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Give the global generators the states of :func:`random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    for device, value in state["cuda"].items():
        torch.cuda.set_rng_state(value, device)


def restart_random_numbers(device: torch.device, seed: int) -> None:
    """Start the global generators of the CPU, of a device, of numpy and of Python from ``seed``.

    Until a GPU is used for the first time, ``torch.manual_seed`` takes half a millisecond: it notes
    what is to be done then, and from where it was called.
    """
    torch.default_generator.manual_seed(int(seed))
    if device.type != "cpu":
        torch.manual_seed(int(seed))
    random.seed(int(seed))
    np.random.seed(int(seed) % 2**32)


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed: expected a whole number, got {seed!r}")
    if not -(2**63) <= int(seed) < 2**64:
        raise ValueError(f"seed: expected a number that fits 64 bits, got {seed!r}")


def progress_bar(shown: bool = True, **settings: Any) -> tqdm:
    """Return a bar that appears after two seconds; with ``TQDM_DISABLE=1`` none ever does.

    Building the book sets that: a bar is written to stderr, where pages have nothing.
    """
    hidden = not shown or os.environ.get("TQDM_DISABLE", "0") != "0"
    return tqdm(delay=2, disable=hidden, **settings)


def keep_freed_memory() -> bool:
    """Ask glibc to keep the memory of freed tensors instead of handing it back at once.

    By default glibc returns every large block to the system when a tensor is freed, and the next
    tensor pays for the pages again: 10 to 50 % of the time of a convolution on an idle machine,
    several times as much on a busy one.

    Returns:
        Whether the setting was made; ``False`` on systems without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # names in <malloc.h>
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # glibc silently refuses a mmap threshold above 32 MiB on 64-bit systems unless it is set
    # through the environment, so blocks are kept by never trimming and growing in large steps.
    results = [
        mallopt(mmap_threshold, 1 << 30),
        mallopt(trim_threshold, (1 << 31) - 1),
        mallopt(top_pad, 64 << 20),
    ]
    return all(results)
