"""Digests that say whether two computations are the same, and where they differ."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

Fingerprint = dict[str, str]


def digest(value: Any) -> str:
    """Return a short digest of tensors, arrays and plain settings, nested in any way.

    Tensors and arrays count with shape, dtype and every bit; other values by their ``repr``.
    """
    state = hashlib.blake2b(digest_size=12)
    _update(state, value)
    return state.hexdigest()


def _update(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        state.update(f"tensor {tuple(value.shape)} {value.dtype}".encode())
        # A fresh copy: a tensor of one entry may count as contiguous with any stride.
        flat = torch.empty(value.numel(), dtype=value.dtype)
        flat.copy_(value.detach().flatten())
        state.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray):
        state.update(f"array {value.shape} {value.dtype}".encode())
        state.update(np.ascontiguousarray(value).data)
    elif isinstance(value, dict):
        for key in value:
            state.update(f"key {key!r}".encode())
            _update(state, value[key])
    elif isinstance(value, (list, tuple)):
        state.update(f"sequence {len(value)}".encode())
        for item in value:
            _update(state, item)
    else:
        state.update(repr(value).encode())


def describe_callable(function: Any) -> str:
    """Return a name for a loss, metric or optimiser that is the same in every process."""
    if hasattr(function, "func"):  # functools.partial
        inner = describe_callable(function.func)
        return f"{inner}({digest([function.args, function.keywords])})"
    if isinstance(function, torch.nn.Module):
        return f"{function!r}({digest(dict(function.state_dict()))})"
    module = getattr(function, "__module__", "")
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def differences(stored: Fingerprint, present: Fingerprint) -> list[str]:
    """Return the names of the parts in which two fingerprints differ, sorted."""
    names = stored.keys() | present.keys()
    return sorted(name for name in names if stored.get(name) != present.get(name))


def to_json(fingerprint: Fingerprint) -> str:
    """Return the fingerprint as one line of JSON, for an attribute of a file."""
    return json.dumps(fingerprint, sort_keys=True)


def from_json(text: str) -> Fingerprint:
    """Return the fingerprint written by :func:`to_json`."""
    return dict(json.loads(text))
