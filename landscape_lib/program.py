"""What functions, classes and modules are made of, for their fingerprints."""

from __future__ import annotations

import dis
import functools
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, GetSetDescriptorType, ModuleType
from typing import Any


def of_function(function: FunctionType) -> Iterator[Any]:
    """Go through what a function computes with: code, defaults, closure, globals, imports."""
    yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
    yield dict(vars(function))
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty
            yield "empty"
    used = set(_names_of(function.__code__))
    for name in sorted(set(_globals_of(function.__code__)) & function.__globals__.keys()):
        held = function.__globals__[name]
        yield name
        yield from _of_used(held, used) if isinstance(held, ModuleType) else (held,)
    for module in _imported_by(function):
        yield from _of_used(module, used)


def _of_used(module: ModuleType, names: set[str]) -> Iterator[Any]:
    """Go through what a function can read of a module that is not installed."""
    yield f"module {module.__name__}"
    if not is_installed(module.__name__):
        for name in sorted(names & vars(module).keys()):
            held = vars(module)[name]
            yield name
            inner = isinstance(held, ModuleType) and held is not module
            yield from _of_used(held, names - {name}) if inner else (held,)


def _imported_by(function: FunctionType) -> Iterator[ModuleType]:
    """Go through the modules that a function imports when it runs, but not installed ones."""
    package = function.__globals__.get("__package__") or ""
    for code in _codes(function.__code__):
        steps = [s for s in dis.get_instructions(code) if s.opname != "EXTENDED_ARG"]
        for k, step in enumerate(steps):
            if step.opname != "IMPORT_NAME":
                continue
            level = steps[k - 2].argval  # IMPORT_NAME follows its level and its list of names
            name = "." * level + str(step.argval)
            try:
                name = importlib.util.resolve_name(name, package)
                if not is_installed(name):
                    importlib.import_module(name)
                    for end in range(1, name.count(".") + 2):
                        yield sys.modules[".".join(name.split(".")[:end])]
            except Exception:  # the function itself will say so
                continue


def of_module(module: ModuleType) -> Iterator[Any]:
    """Go through what a module holds under its names."""
    for name, held in sorted(vars(module).items()):
        if not name.startswith("__"):
            yield from (name, held)


def of_class(kind: type) -> Iterator[Any]:
    """Go through what a class is made of, and what its instances can call."""
    yield from (type(kind), kind.__bases__)
    for name, held in sorted(vars(kind).items()):
        of_python = name.startswith("__") or name == "_abc_impl"
        works = callable(held) or hasattr(type(held), "__get__")
        if not of_python or (works and not isinstance(held, GetSetDescriptorType)):
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


def is_found_by_name(value: Any) -> bool:
    """Say whether a function or class is what its name stands for in an installed module.

    A wrapper may bear the name of what it wraps, and a class that of the module that made it.
    """
    if not is_installed(value.__module__):
        return False
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


@functools.cache
def is_installed(module: str | None) -> bool:
    """Say whether a module is of Python, of an installed package, or of this library."""
    top = str(module).split(".")[0]
    if top in ("builtins", "landscape_lib", "__main__"):
        return top != "__main__"
    try:
        found = sys.modules[top].__spec__ if top in sys.modules else importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        found = None
    file = getattr(sys.modules.get(top), "__file__", None) or getattr(found, "origin", None)
    if file is None or not Path(file).is_absolute():  # of Python itself, or frozen
        return top in sys.stdlib_module_names
    homes = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    homes += [*site.getsitepackages(), site.getusersitepackages()]
    return any(Path(file).is_relative_to(home) for home in homes)
