"""Digests that say whether two computations are the same, and where they differ.

A function counts with its code, its defaults, what it closes over and the globals that it reads; an
object with its class and all that it holds; a tensor with every bit. What is installed, torch or
the standard library, counts by its name. A digest is the same in every process.

What cannot be looked into, such as a lock or a generator that is running, is *unknown*: its digest
begins with ``UNKNOWN`` and holds for that very object in this process alone, so that nothing that
was computed with it is ever taken for anything else.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import json
import sys
import sysconfig
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Fingerprint = dict[str, str]

UNKNOWN = "unknown"

# Bytes that one thread digests at a time.
PIECE = 4 << 20

_PLAIN = (
    *(str, bytes, bool, int, float, complex, type(None), type(...), range, PurePath, np.generic),
    *(np.dtype, torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_PROCESS = uuid.uuid4().hex
_KEPT: list[Any] = []  # what is unknown: its address must not become another's


def digest(value: Any) -> str:
    """Return a short digest of anything that a computation depends on."""
    return _Reader().digest(value)


def digest_without_weights(model: nn.Module) -> str:
    """Return a digest of what a model computes with its parameters, of which only shapes count."""
    return _Reader(weights=False).digest(model)


class _Reader:
    """Reads a value part by part; one that contains itself is met again as its depth."""

    def __init__(self, weights: bool = True) -> None:
        self._weights = weights
        self._open: dict[int, int] = {}
        self._read: dict[int, bytes] = {}
        self._held: list[Any] = []  # so that no address is used twice
        self._unknown = False

    def digest(self, value: Any) -> str:
        found = self._of(value).hex()[:24]
        return f"{UNKNOWN} {found}" if self._unknown else found

    def _of(self, value: Any) -> bytes:
        key = id(value)
        if key in self._open:
            return f"again {self._open[key]}".encode()
        if key not in self._read:
            self._open[key] = len(self._open)
            state = hashlib.blake2b(digest_size=32)
            self._update(state, value)
            del self._open[key]
            self._held.append(value)
            self._read[key] = state.digest()
        return self._read[key]

    def _update(self, state: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            state.update(f"tensor {tuple(value.shape)} {value.dtype}".encode())
            if not value.is_meta:
                _update_with_bytes(state, _bytes_of(value))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            state.update(f"array {value.shape} {value.dtype}".encode())
            _update_with_bytes(state, np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        elif isinstance(value, (set, frozenset)):
            state.update(type(value).__name__.encode() + b"".join(sorted(map(self._of, value))))
        else:
            label, parts = self._parts(value)
            state.update(f"{len(label)} {label}".encode())
            for part in parts:
                state.update(self._of(part))

    def _parts(self, value: Any) -> tuple[str, Iterable[Any]]:
        """Return what a value is, in words, and what it is made of."""
        kind = type(value)
        name = kind.__qualname__
        if isinstance(value, enum.Enum):
            return f"{name} {value.name}", (value.value,)
        if isinstance(value, _PLAIN):
            return f"{name} {value!r}", ()
        if isinstance(value, CodeType):
            arguments = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]
            names = (value.co_names, value.co_freevars, arguments, value.co_exceptiontable)
            return name, (value.co_code, value.co_consts, value.co_flags, *names)
        if isinstance(value, (FunctionType, type)):
            called = f"{name} {value.__qualname__}"
            if _is_installed(value.__module__):
                return f"{called} of {value.__module__}", ()
            parts = _of_class(value) if isinstance(value, type) else _of_function(value)
            return called, list(parts)
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            module = isinstance(owner, ModuleType) or owner is None
            return f"{name} {value.__module__}.{value.__qualname__}", () if module else (owner,)
        if isinstance(value, ModuleType):
            return f"{name} {value.__name__}", ()
        if isinstance(value, MethodType):
            return name, (value.__func__, value.__self__)
        if isinstance(value, (staticmethod, classmethod)):
            return name, (value.__func__,)
        if isinstance(value, property):
            return name, (value.fget, value.fset, value.fdel)
        if isinstance(value, partial):
            return name, (value.func, value.args, value.keywords)
        if isinstance(value, slice):
            return name, (value.start, value.stop, value.step)
        if isinstance(value, torch.Generator):
            return f"{name} {value.device}", (value.get_state(),)
        if isinstance(value, nn.Module):
            return name, (kind, *self._of_module(value))
        if isinstance(value, Mapping):
            return name, (kind, *(part for pair in value.items() for part in pair))
        if isinstance(value, (list, tuple)):
            return f"{name} {len(value)}", (kind, *value)
        return name, self._of_object(value)

    def _of_module(self, module: nn.Module) -> Iterator[Any]:
        if isinstance(module, torch.jit.ScriptModule):
            yield from (str(module.graph), dict(module.state_dict()) if self._weights else "")
            return
        for name, held in sorted(vars(module).items()):
            if "hooks" in name and isinstance(held, Mapping):
                if held:
                    yield from (name, list(held.values()))  # keys count up through the process
            elif name == "_parameters" and not self._weights:
                yield {n: p if p is None else (p.shape, p.dtype) for n, p in held.items()}
            elif isinstance(module, torch.fx.GraphModule) and name == "_graph":
                yield module.code
            elif name != "training":  # an evaluation or a training sets it
                yield from (name, held)

    def _of_object(self, value: Any) -> Iterable[Any]:
        try:
            # As for pickle, but the parts need not be picklable.
            reducer = copyreg.dispatch_table.get(type(value))
            reduced = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception:
            self._unknown = True
            _KEPT.append(value)
            return (_PROCESS, id(value))
        if isinstance(reduced, str):
            return (reduced,)
        made, arguments, state, *more = (*reduced, None, None, None)[:5]
        if isinstance(state, dict):
            state = sorted(state.items(), key=lambda pair: str(pair[0]))
        return (made, arguments, state, *(list(items) for items in more if items is not None))


def _of_function(function: FunctionType) -> Iterator[Any]:
    yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
    yield dict(vars(function))
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty
            yield "empty"
    names = set(_globals_of(function.__code__))
    for name in sorted(names & function.__globals__.keys()):
        held = function.__globals__[name]
        yield from (name, held)
        if isinstance(held, ModuleType) and not _is_installed(held.__name__):
            for part in sorted(set(_names_of(function.__code__)) & vars(held).keys()):
                yield from (part, vars(held)[part])


def _of_class(kind: type) -> Iterator[Any]:
    yield kind.__bases__
    for name, held in sorted(vars(kind).items()):
        of_python = name.startswith("__") or name.startswith("_abc_")
        if not of_python or isinstance(held, (FunctionType, staticmethod, classmethod)):
            yield from (name, held)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Go through a function's code and that of all functions written inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _globals_of(code: CodeType) -> Iterator[str]:
    for part in _codes(code):
        for step in dis.get_instructions(part):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield str(step.argval)


def _names_of(code: CodeType) -> Iterator[str]:
    for part in _codes(code):
        yield from part.co_names


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Say whether a module is of Python, of an installed package, or of this library."""
    top = str(module).split(".")[0]
    if top in ("builtins", "landscape_lib") or top in sys.stdlib_module_names:
        return top != "__main__"
    file = getattr(sys.modules.get(top), "__file__", None)
    homes = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    return file is not None and any(Path(file).is_relative_to(home) for home in homes)


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    # A fresh copy: a tensor of one entry may count as contiguous with any stride.
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device="cpu")
    tensor = tensor.detach()
    flat.copy_((tensor if tensor.layout == torch.strided else tensor.to_dense()).flatten())
    found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found


def _update_with_bytes(state: Any, content: NDArray[np.uint8]) -> None:
    """Add bytes; large data on all cores, by the digests of pieces."""
    if len(content) <= PIECE:
        state.update(content)
        return
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor() as pool:
        for part in pool.map(lambda piece: hashlib.blake2b(piece).digest(), pieces):
            state.update(part)


def differences(stored: Fingerprint, present: Fingerprint) -> list[str]:
    """Return the names of the parts in which two fingerprints differ, sorted."""
    names = stored.keys() | present.keys()
    return sorted(name for name in names if stored.get(name) != present.get(name))


def warn_of_unknown(fingerprint: Fingerprint, what: str) -> None:
    """Say which parts of a computation are unknown, so that ``what`` is for this process alone."""
    unknown = sorted(name for name, part in fingerprint.items() if part.startswith(UNKNOWN))
    if unknown:
        warnings.warn(
            f"{what}: {', '.join(unknown)} hold(s) something that cannot be looked into, such as "
            f"a lock, a file or a running generator. It is written, but only the very same objects "
            f"in this process can continue it",
            stacklevel=4,
        )


def to_json(fingerprint: Fingerprint) -> str:
    """Return the fingerprint as one line of JSON, for an attribute of a file."""
    return json.dumps(fingerprint, sort_keys=True)


def from_json(text: str) -> Fingerprint:
    """Return the fingerprint written by :func:`to_json`."""
    return dict(json.loads(text))
