"""Chapters run where the model is not on the CPU: nothing of one device meets another's.

There is no second device here, so one is made up: tensors whose storage carries a mark, computed on
the CPU like all others, and refused wherever a GPU would refuse them.
"""

from __future__ import annotations

import ast
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import landscape_lib as ll
from landscape_lib import runtime

BOOK = Path(__file__).parents[2] / "book"
SECOND = torch.device("xpu")  # known to every torch, present in few machines
CHAPTERS = sorted(BOOK.glob("[0-9A]*.ipynb"))
aten = torch.ops.aten
# What GPUs allow as well: copies, and indices that are still on the CPU.
MAY_MIX = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_}
MAY_MIX |= {aten._index_put_impl_, aten._foreach_copy_}
# Steps that a chapter takes here: enough to run each line of it.
FEW = {"epochs": 1, "iterations": 3, "repeats": 8, "record_every": 1, "cells": 16}


def second(tensor: Tensor) -> bool:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return hasattr(tensor.untyped_storage(), "second")


def mark(tensor: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    tensor.untyped_storage().second = True
    return tensor


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


class Refusing(TorchDispatchMode):
    """Mark what is computed from marked tensors; refuse to mix them with others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors((args, kwargs))
        there = [second(t) for t in given]
        backward = torch._C._current_graph_task_id() >= 0  # autograd puts zeros where it likes
        if any(there) and func.overloadpacket not in MAY_MIX and not backward:
            here = [t for t, is_there in zip(given, there, strict=True) if not is_there and t.ndim]
            if here:
                raise RuntimeError(f"{func}: tensors on {SECOND} and on the CPU")
        out = func(*args, **(kwargs or {}))
        if any(there) and func.overloadpacket is not aten.copy_:
            for tensor in tensors(out):
                mark(tensor)
        return out


class Naming(TorchFunctionMode):
    """Answer questions about the device, and move between the two."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return SECOND if second(args[0]) else func(*args)
        if func in (Tensor.numpy, Tensor.__array__) and second(args[0]):
            raise TypeError(f"can't convert {SECOND} device type tensor to numpy")
        if func is Tensor.cpu:
            func, args, kwargs = Tensor.to, (args[0], torch.device("cpu")), {}
        if func is Tensor.to:
            return self.moved(*args, **kwargs)
        to = kwargs.get("device")
        if to is not None and torch.device(to) == SECOND:
            return tree_marked(func(*args, **kwargs | {"device": "cpu"}))
        out = func(*args, **kwargs)
        if name.startswith("new_") and second(args[0]) and to is None:
            tree_marked(out)
        return out

    def moved(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        where = SECOND if second(tensor) else torch.device("cpu")
        if args and isinstance(args[0], Tensor):
            to = SECOND if second(args[0]) else torch.device("cpu")
            args = (args[0].dtype, *args[1:])
        elif args and not isinstance(args[0], torch.dtype):
            to, *args = args
        else:
            to = kwargs.pop("device", None)
        to = where if to is None else torch.device(to)
        out = tensor.to("cpu", *args, **kwargs)
        if to == where:
            return out
        with torch._C._DisableTorchDispatch():
            out = out.clone()
        return mark(out) if to == SECOND else out


def tree_marked(tree: Any) -> Any:
    for tensor in tensors(tree):
        mark(tensor)
    return tree


class OnCPU(torch.Generator):
    """Random numbers of the second device are drawn where it computes."""

    def __new__(cls, device: Any = "cpu") -> OnCPU:
        return super().__new__(cls, "cpu")


@contextmanager
def second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, in all threads, there is a second device, and it is the best one."""
    pick, run = runtime.pick_device, threading.Thread.run

    def run_inside(thread: threading.Thread) -> None:
        with Refusing(), Naming():
            run(thread)

    monkeypatch.setattr(runtime, "pick_device", lambda to=None: SECOND if to is None else pick(to))
    monkeypatch.setattr(threading.Thread, "run", run_inside)
    monkeypatch.setattr(torch, "Generator", OnCPU)
    with Refusing(), Naming():
        yield


class NoAsserts(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Pass:
        return ast.Pass()


def fewer(setup: Any) -> Any:
    """The same settings with few steps."""
    if not isinstance(setup, dict):
        return setup
    return {k: min(FEW[k], v) if k in FEW else fewer(v) for k, v in setup.items()}


def test_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the made-up device must do for the chapters to prove anything."""
    with second_device(monkeypatch):
        here, model = torch.ones(3, 4), torch.nn.Linear(4, 2).to(SECOND)
        there = here.to(SECOND)
        assert here.device.type == "cpu" and there.device == model.weight.device == SECOND
        for mixed in (lambda: model(here), lambda: here + there, lambda: here.add_(there)):
            with pytest.raises(RuntimeError, match="and on the CPU"):
                mixed()
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        model(there).sum().backward()
        assert model.weight.grad.device == SECOND
        assert (there + torch.tensor(1.0))[torch.tensor([0])].device == SECOND
        batched = torch.func.vmap(lambda weight: (weight * there).sum())
        assert batched(torch.ones(5, device=SECOND)).device == SECOND
        assert there.cpu().numpy().sum() == 12 and there.new_zeros(2).device == SECOND


def follows(function: Any, **few: int) -> Any:
    """The same function for models on the second device, which toys in float64 need not be on."""

    def checked(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        where = {p.device for p in model.parameters() if p.dtype != torch.float64}
        assert where <= {SECOND}, f"{type(model).__name__} is on {where}"
        return function(model, *args, **kwargs | few)

    return checked


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_on_a_second_device(chapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDSCAPE_SCALE", "smoke")
    monkeypatch.delenv("LANDSCAPE_RECOMPUTE", raising=False)
    monkeypatch.chdir(BOOK)
    monkeypatch.setattr(runtime, "at_scale", lambda *, smoke, book, paper: fewer(smoke))
    monkeypatch.setattr(ll, "evaluate", follows(ll.evaluate))
    monkeypatch.setattr(ll, "train", follows(ll.train))
    monkeypatch.setattr(ll.mpo, "fit", follows(ll.mpo.fit, iterations=FEW["iterations"]))
    first, *cells = [c.source for c in nbformat.read(chapter, 4).cells if c.cell_type == "code"]
    assert "google.colab" in first
    names: dict[str, Any] = {}
    with matplotlib.rc_context(), warnings.catch_warnings(), second_device(monkeypatch):
        warnings.simplefilter("ignore")
        for source in cells:
            tree = NoAsserts().visit(ast.parse(source))  # few steps do not give what chapters check
            exec(compile(ast.fix_missing_locations(tree), str(chapter), "exec"), names)
            plt.close("all")
