"""Two computations have one digest if and only if they are the same, also in another process."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import itertools
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.evaluation.store import StoreMismatch
from landscape_lib.fingerprint import UNKNOWN, digest, digest_without_weights
from landscape_lib.training.checkpoint import CheckpointMismatch


def run(source: str, **known: Any) -> dict[str, Any]:
    """Run some lines and return their names."""
    names = {"torch": torch, "nn": nn, "F": F, "partial": partial, "__name__": "written"} | known
    exec(compile(source, "written", "exec"), names)
    return names


def of(source: str, name: str = "f", **known: Any) -> Any:
    return run(source, **known)[name]


CLOSURE = "def make(held):\n    return lambda o, t: F.cross_entropy(o, t) * held{}\nf = make({})"
READS = "{}\ndef f(o, t): return F.cross_entropy(o, t) * {}"
NET = (
    "class f(nn.Module):\n"
    "    kind = {kind}\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.layer = nn.Linear(3, 2)\n"
    "        self.held, self._private = {held}, {private}\n"
    "    @property\n"
    "    def scale(self): return {scale}\n"
    "    @staticmethod\n"
    "    def plain(x): return x * {plain}\n"
    "    def forward(self, x): return self.plain(self.layer(x)) * self.scale\n"
    "torch.manual_seed(0)\nf = f()"
)


def net(**changed: Any) -> nn.Module:
    held = {"kind": 1, "held": "{'a': [1, 2]}", "private": 1, "scale": 1.0, "plain": 1}
    return of(NET.format(**held | changed))


def hooked(factor: float) -> nn.Module:
    model = net()
    model.layer.register_forward_hook(lambda m, i, o: o * factor)
    return model


def tied(tie: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1 if tie else 0].weight = model[0].weight
    return model


@dataclasses.dataclass
class Targets:
    classes: Tensor
    extra: Any = None


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * self.factor


def module_with(factor: int) -> types.ModuleType:
    helpers = types.ModuleType("helpers")
    helpers.__dict__["factor"] = factor
    return helpers


def holding(kind: type, factor: int) -> Any:
    held = type("Held", (kind,), {"__module__": "written"})()
    held.factor = factor
    return held


def with_teacher(mode: bool) -> nn.Module:
    """Return a model that keeps another one which ``train`` and ``eval`` do not reach."""
    model = net()
    model.held = [nn.Dropout().train(mode)]
    return model


def parametrized(factor: int) -> nn.Module:
    model = net(scale=factor)
    for parameter in model.parameters():
        parameter.data.zero_()
    nn.utils.parametrizations.weight_norm(model.layer)
    nn.utils.parametrize.register_parametrization(model.layer, "bias", nn.Identity())
    model.register_parameter("own", nn.Parameter(torch.zeros(2)))
    nn.utils.parametrize.register_parametrization(model, "own", nn.Identity())
    return model


class Scaled(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


CALLED = "class C:\n    {}\nf = C()"
ENUM = (
    "import enum\nclass C(enum.Enum):\n    A = 1\n    def __call__(self, o, t): return {}\nf = C.A"
)

# What differs, and two computations that do. All but the last few are CASES N1.
PAIRS: dict[str, Callable[[int], Any]] = {
    "closure over a dict": lambda k: of(CLOSURE.format("['a']", {"a": k})),
    "closure over a list": lambda k: of(CLOSURE.format("[0]", [k])),
    "closure over an object": lambda k: of(CLOSURE.format(".a", "o"), o=SimpleNamespace(a=k)),
    "closure over tensors": lambda k: of(CLOSURE.format("[0]", "o"), o=[torch.tensor(float(k))]),
    "closure over a function": lambda k: of(CLOSURE.format("(1)", f"lambda x: x * {k}")),
    "a global number": lambda k: of(READS.format(f"a = {k}", "a")),
    "a global function": lambda k: of(READS.format(f"def a(): return {k}", "a()")),
    "a global dict": lambda k: of(READS.format(f"a = {{'b': [{k}]}}", "a['b'][0]")),
    "a global read inside": lambda k: of(READS.format(f"a = {k}", "(lambda: a)()")),
    "a name of a user's module": lambda k: of(READS.format("", "h.factor"), h=module_with(k)),
    "slots": lambda k: Slots(k),
    "decorated": lambda k: of(f"@torch.no_grad()\ndef f(o, t): return F.cross_entropy(o, t) * {k}"),
    "a default": lambda k: of(f"def f(o, t, *, a={k}): return a"),
    "a positional default": lambda k: of(f"def f(o, t, a=[{k}]): return a"),
    "a method": lambda k: Slots(k).__call__,
    "partial of an object": lambda k: partial(Slots.__call__, Slots(k)),
    "partial with a tensor": lambda k: partial(F.cross_entropy, weight=torch.tensor([1.0, k])),
    "a loss module": lambda k: nn.CrossEntropyLoss(label_smoothing=k / 9),
    "weights of a loss": lambda k: nn.CrossEntropyLoss(weight=torch.tensor([1.0, k])),
    "code": lambda k: of(f"def f(o, t): return F.cross_entropy(o, t) * {k}"),
    "another function called": lambda k: of(f"def f(o, t): return F.{['l1', 'mse'][k]}_loss(o, t)"),
    "attribute of a function": lambda k: of(f"def f(o, t): return f.a\nf.a = {k}"),
    "attribute of a model": lambda k: net(held=f"{{'a': [1, {k}]}}"),
    "private attribute": lambda k: net(private=k),
    "attribute that is an object": lambda k: setattr(m := net(), "o", SimpleNamespace(a=k)) or m,
    "property": lambda k: net(scale=k),
    "static method": lambda k: net(plain=k),
    "attribute of a class": lambda k: net(kind=k),
    "forward hook": hooked,
    "hook or none": lambda k: hooked(1) if k else net(),
    "eps": lambda k: nn.BatchNorm1d(3, eps=10.0**-k),
    "buffer": lambda k: nn.BatchNorm1d(3).register_buffer("b", torch.tensor(k)) or k,
    "activation": lambda k: nn.Sequential(nn.Flatten(), (nn.ReLU(), nn.GELU())[k]),
    "function as attribute": lambda k: setattr(m := net(), "act", (F.relu, F.gelu)[k]) or m,
    "a UserDict": lambda k: collections.UserDict(a=torch.tensor(k)),
    "a dataclass": lambda k: Targets(torch.arange(3), {"k": k}),
    "a set": lambda k: {1, 2, 3 + k},
    "an ordered set of keys": lambda k: {"ab"[k]: 0, "ba"[k]: 0},
    "a random generator": lambda k: np.random.default_rng(k),
    "torch's generator": lambda k: torch.Generator().manual_seed(k),
    "an iterator's place": lambda k: itertools.islice(iter([1, 2, 3]), k, None),
    "a namedtuple": lambda k: collections.namedtuple("P", "a")(k),
    "dtype": lambda k: torch.ones(2, dtype=(torch.float32, torch.float64)[k]),
    "shape": lambda k: np.ones(((2, 3), (3, 2))[k]),
    "an array of objects": lambda k: np.array([{"a": k}], dtype=object),
    "a path": lambda k: Path(f"/{k}"),
    "a bound generator": lambda k: partial(torch.rand, generator=torch.Generator().manual_seed(k)),
    "a module in a module": lambda k: of(
        READS.format("", "h.inner.factor"), h=SimpleNamespace(inner=module_with(k))
    ),
    "closure over a module": lambda k: of(CLOSURE.format(".factor", "h"), h=module_with(k)),
    "module as attribute": lambda k: setattr(m := net(), "h", module_with(k)) or m,
    "a wrapper of torch's name": lambda k: of(
        f"@functools.wraps(F.mse_loss)\ndef f(o, t): return {k}", functools=functools
    ),
    "a cached function": lambda k: of(f"@cache\ndef f(o, t): return {k}", cache=functools.cache),
    "a cached property": lambda k: of(
        CALLED.format(f"@cached\n    def a(self): return {k}"), cached=functools.cached_property
    ),
    "a call that is no function": lambda k: of(
        CALLED.format("__call__ = called"), called=functools.partialmethod(Slots.__call__, a=k)
    ),
    "a class made in torch's name": lambda k: of(
        CALLED.format(f"__module__, __qualname__, a = 'torch.nn', 'Linear', {k}")
    ),
    "what pickle leaves out": lambda k: of(
        CALLED.format("def __getstate__(self): return {}") + f"\nf.a = lambda: {k}"
    ),
    "what pickles by name": lambda k: of(
        CALLED.format(f"def __reduce__(self): return 'LOSS'\n    a = {k}")
    ),
    "default of a dict": lambda k: collections.defaultdict(of(f"f = lambda: {k}")),
    "attribute of a dict": lambda k: holding(dict, k),
    "attribute of a list": lambda k: holding(list, k),
    "attribute of a number": lambda k: holding(float, k),
    "attribute of a tensor": lambda k: setattr(t := torch.ones(2), "factor", k) or t,
    "a masked array": lambda k: np.ma.array([1.0, 2.0], mask=[0, k]),
    "a matrix": lambda k: (np.array, np.matrix)[k]([[1.0, 2.0]]),
    "method of an enum": lambda k: of(ENUM.format(k)),
    "a metaclass": lambda k: of(
        CALLED.format("pass").replace("C:", "C(metaclass=M):"), M=type("M", (type,), {"a": k})
    ),
    "mode of a loss": lambda k: nn.Dropout().train(bool(k)),
    "mode of a model in a list": lambda k: with_teacher(bool(k)),
    "an attribute called hooks": lambda k: setattr(m := net(), "hooks", {"ab"[k]: 1}) or m,
    "parametrized": parametrized,
    "attribute of a compiled module": lambda k: torch.jit.script(nn.Sequential(Scaled(k))),
    "functions that call each other, in a set": lambda k: set(
        run(f"def a(x): return b(x) + {k}\ndef b(x): return a(x)\nf = [a, b]")["f"]
    ),
    "deep inside": lambda k: [({"a": [Slots((k,))]},)],
}


@pytest.mark.parametrize("what", PAIRS)
@pytest.mark.filterwarnings("ignore")
def test_another_computation_is_another_and_the_same_is_the_same(what):  # CASES N1
    if what == "buffer":
        one, same, other = (nn.BatchNorm1d(3) for _ in range(3))
        other.running_mean += 1
    else:
        one, same, other = PAIRS[what](1), PAIRS[what](1), PAIRS[what](0)
    assert digest(one) == digest(same) != digest(other)
    assert not digest(one).startswith(UNKNOWN)


IN_ANOTHER_PROCESS = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import test_fingerprint as t
for name, make in t.PAIRS.items():
    print(name, t.digest(make(1)))
print(t.digest(t.net()), t.digest_without_weights(t.ll.models.resnet(8, seed=0)))
"""


def test_the_same_computation_has_one_digest_in_every_process():  # CASES N2
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS, str(Path(__file__).parent)],
            env={**__import__("os").environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(done.stdout.splitlines()) == len(PAIRS) + 1
        found.add(done.stdout)
    assert len(found) == 1


def test_weights_count_by_their_shapes_if_asked_and_modes_never():  # those of a loss count
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert digest_without_weights(model) == digest_without_weights(other)
    assert digest(model) != digest(other)
    assert digest_without_weights(nn.Linear(3, 3)) != digest_without_weights(model)
    assert digest_without_weights(copy.deepcopy(model).eval()) == digest_without_weights(model)


def test_a_value_may_contain_itself():
    def ring(k: int) -> list[Any]:
        held: list[Any] = [k]
        held.append(held)
        return held

    assert digest(ring(1)) == digest(ring(1)) != digest(ring(2))


class Locked:
    """A loss that holds something nobody can look into."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


def test_what_is_unknown_is_continued_by_the_same_object_alone(tmp_path):
    model = nn.Linear(3, 2)
    weights = ll.weights_of(model)
    line = ll.Line(weights, ll.random_direction(weights), np.linspace(0, 1, 4))
    data = SimpleNamespace(x=torch.randn(8, 3), y=torch.arange(8) % 2)
    loss, store = Locked(), tmp_path / "x.nc"
    assert digest(loss).startswith(UNKNOWN) and digest(loss) == digest(loss) != digest(Locked())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # without a store nobody is told
        ll.evaluate(model, line, data, loss=loss)
    with pytest.warns(UserWarning, match="loss hold.* cannot be looked into"):
        ll.evaluate(model, line, data, loss=loss, store=store, points=[0, 1])
    with pytest.warns(UserWarning):
        ll.evaluate(model, line, data, loss=loss, store=store)
    with pytest.raises(StoreMismatch, match="loss differ"):
        ll.evaluate(model, line, data, loss=Locked(), store=store)


def test_weights_of_a_module_that_a_model_has_not_registered_count():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    model.__dict__["held"] = [nn.Linear(1, 1)]
    before = digest_without_weights(model)
    with torch.no_grad():
        model.weight.add_(1)
        assert digest_without_weights(model) == before
        model.held[0].weight.add_(1)
    assert digest_without_weights(model) != before != digest_without_weights(other)


@pytest.mark.parametrize(
    "statement",
    [
        "import helpers as h; return h.inner.factor",
        "import helpers; return helpers.factor",
        "from helpers import factor; return factor",
    ],
)
def test_what_a_function_imports_when_it_runs_counts(monkeypatch, statement):
    def found(factor: int) -> str:
        module = module_with(factor)
        module.__dict__["inner"] = module_with(factor)
        monkeypatch.setitem(sys.modules, "helpers", module)
        return digest(of(f"def f(o, t):\n    {statement}"))

    assert found(1) == found(1) != found(2)


def test_what_is_nested_too_deep_is_unknown():
    held: list[Any] = []
    for _ in range(5000):
        held = [held]
    assert digest(held).startswith(UNKNOWN) and digest([]) == digest([])


def test_the_script_that_a_tool_runs_is_not_installed():
    # python -m pdb, cProfile and pytest leave their own file in __main__.
    f, g = (of(f"def f(): return {k}", __name__="__main__") for k in (1, 2))
    assert digest(f) != digest(g)


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, **options)


def test_a_training_notices_the_optimisers_memory_and_its_parameters(tmp_path):
    data = SimpleNamespace(x=torch.randn(8, 3), y=torch.arange(8) % 3)

    def trained(first: bool = True, moved: bool = False) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        optimizer = sgd(model[0] if first else model[1])
        if moved:
            model(data.x).sum().backward()
            before = copy.deepcopy(model.state_dict())
            optimizer.step()
            model.load_state_dict(before)
        ll.train(model, data, optimizer, epochs=1, checkpoint=tmp_path / "run.pt", progress=False)

    trained()
    trained()
    for options in ({"first": False}, {"moved": True}):
        with pytest.raises(CheckpointMismatch, match="optimizer differ"):
            trained(**options)


class Own(torch.optim.SGD):
    def __init__(self, parameters: Any, factor: int) -> None:
        super().__init__(parameters, 0.1)
        self.factor = factor


def warmed(optimizer: torch.optim.Optimizer, kind: str, factor: int) -> Any:
    """Return a schedule of several, whose first one has the factor in a function of its own."""
    rates = torch.optim.lr_scheduler
    first = rates.LambdaLR(optimizer, lambda epoch: factor)
    rest = rates.ConstantLR(optimizer)
    if kind == "chained":
        return rates.ChainedScheduler([first, rest])
    return rates.SequentialLR(optimizer, [first, rest], [2])


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("frozen", "trained parameters"),
        ("hook of a parameter", "trained parameters"),
        ("hook after the gradient", "trained parameters"),
        ("hook of the optimizer", "optimizer"),
        ("attribute of the optimizer", "optimizer"),
        ("chained", "schedule"),
        ("in sequence", "schedule"),
    ],
)
def test_a_training_notices_what_acts_on_its_steps(tmp_path, kind, part):  # CASES N1
    data = SimpleNamespace(x=torch.ones(8, 3), y=torch.arange(8) % 3)

    def trained(factor: int) -> None:
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        optimizer, schedule = torch.optim.SGD(model.parameters(), 0.1), None
        if kind == "frozen":
            model.bias.requires_grad_(bool(factor))
        elif kind == "hook of a parameter":
            model.weight.register_hook(lambda gradient: gradient * factor)
        elif kind == "hook after the gradient":
            model.weight.register_post_accumulate_grad_hook(
                lambda p: setattr(p, "grad", p.grad * factor)
            )
        elif kind == "hook of the optimizer":
            optimizer.register_step_pre_hook(lambda *_: None if factor else print())
        elif kind == "attribute of the optimizer":
            optimizer = Own(model.parameters(), factor)
        else:
            schedule = warmed(optimizer, kind, factor)
        options = {"epochs": 1, "checkpoint": tmp_path / "run.pt", "progress": False}
        ll.train(model, data, optimizer, schedule=schedule, **options)

    trained(1)
    trained(1)
    with pytest.raises(CheckpointMismatch, match=f"{part} differ"):
        trained(0)


def test_running_a_cell_again_says_what_to_do(tmp_path):  # CASES K7
    data, model = SimpleNamespace(x=torch.randn(8, 3), y=torch.arange(8) % 3), nn.Linear(3, 3)
    arguments = {"epochs": 1, "checkpoint": tmp_path / "run.pt", "progress": False}
    optimizer = sgd(model)
    ll.train(model, data, optimizer, **arguments)
    with pytest.raises(CheckpointMismatch, match=r"build model, optimizer and schedule anew"):
        ll.train(model, data, optimizer, **arguments)


def test_a_checkpoint_of_another_version_leaves_the_model_alone(tmp_path, monkeypatch):  # K6, N18
    data = SimpleNamespace(x=torch.randn(8, 3), y=torch.arange(8) % 3)
    path = tmp_path / "run.pt"

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 3)

    first = model()
    ll.train(first, data, sgd(first), epochs=1, checkpoint=path, progress=False)
    content = path.read_bytes()
    source = np.random.default_rng(0)
    attempts = [bytearray(content) for _ in range(100)]
    for attempt in attempts:
        attempt[source.integers(len(content))] ^= 1 << int(source.integers(8))
    attempts.append(bytearray(content[:-64]))  # of a version without digests
    for attempt in attempts:
        path.write_bytes(attempt)
        again = model()
        with pytest.raises(CheckpointMismatch, match="cannot be read"):
            ll.train(again, data, sgd(again), epochs=1, checkpoint=path, progress=False)
        assert torch.equal(again.weight, model().weight)
    path.write_bytes(content)
    monkeypatch.setattr(sys.modules["landscape_lib.training.checkpoint"], "FORMAT", "another")
    with pytest.raises(CheckpointMismatch, match="its format is"):
        again = model()
        ll.train(again, data, sgd(again), epochs=1, checkpoint=path, progress=False)
