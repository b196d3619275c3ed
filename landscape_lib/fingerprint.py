"""Digests that say whether two computations are the same, and where they differ.

A function counts with its code, its defaults, what it closes over and the globals that it reads; an
object with its class and all that it holds; a tensor with every bit. What is found by its name in
what is installed, torch or the standard library, counts by that name. A digest is the same in every
process.

What cannot be looked into, such as a lock or a generator that is running, is *unknown*: its digest
begins with ``UNKNOWN`` and holds for that very object in this process alone, so that nothing that
was computed with it is ever taken for anything else.
"""

from __future__ import annotations

import copy
import copyreg
import enum
import functools
import hashlib
import io
import json
import re
import uuid
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from landscape_lib import program

Fingerprint = dict[str, str]

UNKNOWN = "unknown"

# Bytes that one thread digests at a time.
PIECE = 4 << 20

_PLAIN = {str, bytes, bool, int, float, complex, type(None), type(...), range}
_PLAIN |= {torch.dtype, torch.device, torch.layout, torch.memory_format}
_PLAIN_KINDS = (PurePath, np.generic, np.dtype)
_COMPILED = (
    *(ClassMethodDescriptorType, GetSetDescriptorType, MemberDescriptorType),
    *(MethodDescriptorType, WrapperDescriptorType),
)
_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
# Kept by number in every module; what a user calls hooks is an attribute like others.
_HOOKS = {name for name in vars(nn.Module()) if "hooks" in name}
_PROCESS = uuid.uuid4().hex
_KEPT: list[Any] = []  # what is unknown: its address must not become another's


def digest(value: Any) -> str:
    """Return a short digest of anything that a computation depends on."""
    return _Reader().digest(value)


def digest_without_weights(model: nn.Module) -> str:
    """Return a digest of what a model computes with its parameters, of which only shapes count."""
    return _Reader(model).digest(model)


class _Reader:
    """Reads a value part by part; one that contains itself is met again as its depth."""

    def __init__(self, moved: nn.Module | None = None) -> None:
        # Of the model whose weights and mode an evaluation or a training sets itself. Modules that
        # it has not registered keep theirs.
        self._modules = {id(m) for m in moved.modules()} if moved else set()
        self._weights = {id(p) for p in moved.parameters()} if moved else set()
        self._open: dict[int, int] = {}
        self._read: dict[int, bytes] = {}
        self._held: list[Any] = []  # so that no address is used twice
        self._unknown = False

    def digest(self, value: Any) -> str:
        try:
            found = self._of(value).hex()[:24]
        except RecursionError:  # nested too deep to be looked into
            found = hashlib.blake2b(repr(self._name_unknown(value)).encode()).hexdigest()[:24]
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
        if id(value) in self._weights:
            state.update(f"weight {tuple(value.shape)} {value.dtype}".encode())
        elif isinstance(value, Tensor) and not (value.is_quantized or value.is_nested):
            state.update(f"tensor {tuple(value.shape)} {value.dtype}".encode())
            if not value.is_meta:
                _update_with_bytes(state, _bytes_of(value))
            if type(value) not in _TENSORS or vars(value):
                state.update(self._of([type(value), dict(vars(value))]))
        elif type(value) is np.ndarray and not value.dtype.hasobject:
            state.update(f"array {value.shape} {value.dtype}".encode())
            _update_with_bytes(state, np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        elif isinstance(value, (set, frozenset)):
            state.update(type(value).__name__.encode() + b"".join(sorted(map(self._alone, value))))
        else:
            label, parts = self._parts(value)
            state.update(f"{len(label)} {label}".encode())
            for part in parts:
                state.update(self._of(part))

    def _alone(self, value: Any) -> bytes:
        """Return what a value is, whatever else of a set was read before: its order is chance."""
        known, self._read = self._read, {}
        found = self._of(value)
        self._read = known
        return found

    def _parts(self, value: Any) -> tuple[str, Iterable[Any]]:
        """Return what a value is, in words, and what it is made of."""
        kind = type(value)
        name = kind.__qualname__
        if isinstance(value, enum.Enum):
            return f"{name} {value.name}", (kind, value.value)
        if kind in _PLAIN or isinstance(value, _PLAIN_KINDS):
            return f"{name} {value!r}", ()
        if isinstance(value, Tensor):  # quantised or nested
            return name, self._name_unknown(value)
        if isinstance(value, CodeType):
            arguments = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]
            names = (value.co_names, value.co_freevars, arguments, value.co_exceptiontable)
            return name, (value.co_code, value.co_consts, value.co_flags, *names)
        if isinstance(value, (FunctionType, type)):
            called = f"{name} {value.__qualname__}"
            if program.is_found_by_name(value):
                return f"{called} of {value.__module__}", ()
            parts = (
                program.of_class(value) if isinstance(value, type) else program.of_function(value)
            )
            return called, list(parts)
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            module = isinstance(owner, ModuleType) or owner is None
            return f"{name} {value.__module__}.{value.__qualname__}", () if module else (owner,)
        if isinstance(value, _COMPILED):
            return f"{name} {value.__name__}", (value.__objclass__,)
        if isinstance(value, ModuleType):
            held = () if program.is_installed(value.__name__) else program.of_module(value)
            return f"{name} {value.__name__}", held
        if isinstance(value, MethodType):
            return name, (value.__func__, value.__self__)
        if isinstance(value, (staticmethod, classmethod)):
            return name, (value.__func__,)
        if isinstance(value, property):
            return name, (value.fget, value.fset, value.fdel)
        if isinstance(value, functools.cached_property):  # Python 3.11's has a lock
            return name, (kind, value.func, value.attrname)
        if isinstance(value, partial):
            return name, (kind, value.func, value.args, value.keywords, dict(vars(value)))
        if isinstance(value, slice):
            return name, (value.start, value.stop, value.step)
        if isinstance(value, torch.Generator):
            return f"{name} {value.device}", (value.get_state(),)
        if isinstance(value, nn.Module):
            return name, (kind, *self._of_module(value))
        if kind in (dict, MappingProxyType, WeakKeyDictionary):
            return name, [part for pair in value.items() for part in pair]
        if kind in (list, tuple):
            return f"{name} {len(value)}", value
        return name, self._of_object(value)

    def _of_module(self, module: nn.Module) -> Iterator[Any]:
        if isinstance(module, torch.jit.ScriptModule):
            yield from self._of_script(module)
            return
        for name, held in sorted(vars(module).items()):
            if name in _HOOKS:
                if held:
                    yield from (name, list(held.values()))  # keys count up through the process
            elif isinstance(module, torch.fx.GraphModule) and name == "_graph":
                yield module.code
            elif name != "training" or id(module) not in self._modules:
                yield from (name, held)

    def _of_script(self, module: torch.jit.ScriptModule) -> Iterator[Any]:
        """Go through what is saved of a compiled module: the code of all parts, and attributes."""
        if id(module) in self._modules:
            module = copy.deepcopy(module)
            for parameter in module.parameters():
                parameter.data.zero_()
            module.train()
        content = io.BytesIO()
        torch.jit.save(module, content)
        with zipfile.ZipFile(content) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith((".debug_pkl", ".data/serialization_id")):
                    found = re.sub(rb"\.?___torch_mangle_\d+", b"", archive.read(name))
                    # The order in which attributes are declared is another in every process.
                    declared = rb"(?m)^  \w+ : .*\n"
                    yield from (sorted(re.findall(declared, found)), re.sub(declared, b"", found))

    def _name_unknown(self, value: Any) -> tuple[str, int]:
        self._unknown = True
        _KEPT.append(value)
        return _PROCESS, id(value)

    def _of_object(self, value: Any) -> Iterable[Any]:
        try:
            # As for pickle, but the parts need not be picklable.
            reducer = copyreg.dispatch_table.get(type(value))
            reduced = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception:
            return self._name_unknown(value)
        kind = type(value)
        # What the user's class says to pickle may be less than what it computes with; and a
        # function in a cache is pickled by its name.
        own = {} if program.is_found_by_name(kind) else getattr(value, "__dict__", {})
        own = sorted(own.items()) if own else getattr(value, "__wrapped__", None)
        if isinstance(reduced, str):
            return (kind, reduced, own)
        made, arguments, state, *more = (*reduced, None, None, None)[:5]
        if isinstance(state, dict):
            state = sorted(state.items(), key=lambda pair: str(pair[0]))
        return (made, arguments, state, own, *(list(items) for items in more if items is not None))


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
