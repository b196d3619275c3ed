"""Digests that say whether two computations are the same, and where they differ."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Fingerprint = dict[str, str]

# Bytes that one thread digests at a time.
PIECE = 4 << 20


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
        flat = torch.empty(value.numel(), dtype=value.dtype, device="cpu")
        value = value.detach()
        flat.copy_((value if value.layout == torch.strided else value.to_dense()).flatten())
        _update_with_bytes(state, flat.view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray):
        state.update(f"array {value.shape} {value.dtype}".encode())
        _update_with_bytes(state, np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, dict):
        for key in value:
            state.update(f"key {key!r}".encode())
            _update(state, value[key])
    elif isinstance(value, (list, tuple)):
        state.update(f"sequence {len(value)}".encode())
        for item in value:
            _update(state, item)
    else:
        # With its length, so that [1, 23] is not [12, 3].
        text = repr(value).encode()
        state.update(f"value {len(text)} ".encode() + text)


def _update_with_bytes(state: Any, content: NDArray[np.uint8]) -> None:
    """Add bytes; large data on all cores, by the digests of pieces."""
    if len(content) <= PIECE:
        state.update(content)
        return
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor() as pool:
        for part in pool.map(lambda piece: hashlib.blake2b(piece).digest(), pieces):
            state.update(part)


def describe_callable(function: Any) -> str:
    """Return what a loss, metric or augmentation is, the same in every process.

    That is its name, and for one that is not torch's or ours also a digest of its code and of the
    plain values that it was made with: two lambdas share a name, and an edited function keeps it.
    """
    if isinstance(function, partial):
        inner = describe_callable(function.func)
        return f"{inner}({digest([function.args, function.keywords])})"
    if isinstance(function, torch.nn.Module):
        return f"{describe_model(function)}({digest(dict(function.state_dict()))})"
    module = str(getattr(function, "__module__", ""))
    name = f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    if module.split(".")[0] in ("torch", "landscape_lib"):
        return name
    code = getattr(function, "__code__", getattr(type(function).__call__, "__code__", None))
    made_with = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    made_with += getattr(function, "__defaults__", None) or ()
    bound = getattr(function, "__self__", None)
    for owner, part in ((function, "__kwdefaults__"), (function, "__dict__"), (bound, "__dict__")):
        named = getattr(owner, part, None) or {}
        made_with += [item for pair in named.items() for item in pair]
    return f"{name}({digest([_code(code), _plain(tuple(made_with))])})"


def describe_model(model: torch.nn.Module) -> str:
    """Return what a model computes with its parameters and buffers, the same in every process.

    That is its ``repr``; and for every module the plain values that it holds, and the code of the
    class where that is not torch's or ours.
    """
    parts: list[Any] = [repr(model)]
    for name, module in model.named_modules():
        held = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
        parts += [name, {k: _described(v) for k, v in held.items()}]
        for kind in type(module).__mro__:
            if kind.__module__.split(".")[0] not in ("torch", "landscape_lib", "builtins"):
                written = [f for f in vars(kind).values() if isinstance(f, FunctionType)]
                parts += [kind.__qualname__, [_code(f.__code__) for f in written]]
    return digest(parts)


def _described(value: Any) -> Any:
    return describe_callable(value) if callable(value) else _plain(value)


def _code(code: CodeType | None) -> list[Any]:
    if code is None:
        return []
    constants = [_code(c) if isinstance(c, CodeType) else _plain(c) for c in code.co_consts]
    return [code.co_code, code.co_names, constants]


def _plain(value: Any) -> Any:
    """Return a value for which ``repr`` is the same in every process and at every time."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(repr(_plain(item)) for item in value)
    if isinstance(value, (Tensor, np.ndarray, str, bytes, int, float, complex, type(None))):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


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
