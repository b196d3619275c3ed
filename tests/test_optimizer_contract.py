"""PAL and Entropy-SGD keep torch's contract of an optimiser, whatever the model and the closure."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.runtime import generator

X, Y = torch.randn(16, 5, generator=generator(1), dtype=torch.float64), torch.arange(16) % 3

BUILD: dict[str, Callable[..., Any]] = {
    "PAL": ll.PAL,
    "Entropy-SGD": lambda p: ll.EntropySGD(p, inner_steps=3, noise=0.01),
    "Entropy-SGD without a loop": lambda p: ll.EntropySGD(p, inner_steps=0, momentum=0.9, lr=0.1),
}
every = pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


class Mixed(nn.Module):
    """Weights of three types."""

    def __init__(self) -> None:
        super().__init__()
        first, _, last = network()
        self.first, self.last, self.end = first, last.float(), nn.Linear(3, 3).bfloat16()
        nn.init.eye_(self.end.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(torch.tanh(self.first(x)).float()).bfloat16()).double()


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(X), Y)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> list[float]:
    return [float(optimizer.step(loss_of(model))) for _ in range(count)]


@every
@pytest.mark.parametrize("model", [network(), Mixed()], ids=["float64", "three types"])
def test_the_loss_falls(build, model):
    model = copy.deepcopy(model)
    losses = take_steps(model, build(model.parameters()), 6)
    assert losses[-1] < losses[0]


@every
def test_frozen_weights_stay_and_thawed_ones_move(build):
    model = network()
    first, optimizer = model[0].weight, build(model.parameters())
    take_steps(model, optimizer)
    for train in (False, True):
        model[0].requires_grad_(train)
        before, other = first.detach().clone(), model[2].weight.detach().clone()
        take_steps(model, optimizer)
        assert torch.equal(first, before) != train
        assert not torch.equal(model[2].weight, other)


@every
def test_empty_groups_do_not_matter(build):
    one, two = network(), network()
    some = build([{"params": []}, {"params": [*two.parameters()]}, {"params": []}])
    assert take_steps(one, build(one.parameters())) == take_steps(two, some)
    with pytest.raises(RuntimeError, match="^closure: expected a loss that depends"):
        build([{"params": []}]).step(loss_of(one))


@every
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_a_copy_goes_on_to_the_same_bits(build, way):
    model = network()
    optimizer = build(model.parameters())
    take_steps(model, optimizer)
    if way == "state_dict":
        other = copy.deepcopy(model)
        twin = build(other.parameters())
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif way == "pickle":
        other, twin = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        other, twin = copy.deepcopy((model, optimizer))
    assert take_steps(model, optimizer) == take_steps(other, twin)
    assert optimizer.last == twin.last
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@every
def test_a_group_that_is_added_later_is_at_the_same_step(build):
    model = network()
    parts = list(model.parameters())
    optimizer = build(parts[:2])
    take_steps(model, optimizer)
    optimizer.add_param_group({"params": parts[2:]})
    counters = [{k: g[k] for k in optimizer.counters} for g in optimizer.param_groups]
    assert counters[0] == counters[1] and counters[0]["steps"] == 3
    take_steps(model, optimizer, 1)


def test_gamma_is_the_same_in_a_group_that_is_added_later():
    x, y = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    optimizer = ll.EntropySGD([x], scoping=1.0, gamma=0.1, inner_steps=2, noise=0)
    optimizer.step(lambda: x.square().sum())
    with torch.no_grad():
        y.copy_(x)
    optimizer.add_param_group({"params": [y]})
    for _ in range(3):
        optimizer.step(lambda: (x.square() + y.square()).sum())
        assert torch.equal(x, y)


@every
@pytest.mark.parametrize(("name", "value"), [("weight_decay", 1e-4), ("maximize", True)])
def test_settings_of_a_group_that_belong_into_the_loss_are_refused(build, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected it in the closure's loss"):
        build([{"params": network().parameters(), name: value}])
    build([{"params": network().parameters(), name: 0}])


@every
def test_weights_without_values_are_refused(build):
    with pytest.raises(TypeError, match="^params: expected dense tensors .* on meta"):
        build(nn.Linear(2, 2, device="meta").parameters())


@every
def test_sparse_gradients_are_refused(build):
    table = nn.Embedding(5, 3, sparse=True)
    before = table.weight.detach().clone()
    with pytest.raises(RuntimeError, match="^closure: expected dense gradients, got torch.sparse"):
        build(table.parameters()).step(lambda: table(torch.tensor([0, 1])).square().sum())
    assert torch.equal(table.weight, before)


# --- closures as torch's optimisers know them -----------------------------------------------------


@every
@pytest.mark.parametrize("to_none", [True, False])
def test_a_closure_that_clears_gradients_changes_nothing(build, to_none):
    one, two = network(), network()
    plain, clearing = build(one.parameters()), build(two.parameters())

    def closure() -> Tensor:
        clearing.zero_grad(set_to_none=to_none)
        return loss_of(two)()

    for _ in range(3):
        assert float(plain.step(loss_of(one))) == float(clearing.step(closure))
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(p, q) and torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("build", list(BUILD.values())[:2], ids=list(BUILD)[:2])
@pytest.mark.parametrize("calls", [(1, 2, 3), (2,)])
@pytest.mark.parametrize("enable", [True, False])
@pytest.mark.parametrize("clear", ["before", "after", "never"])
def test_a_closure_that_calls_backward_is_refused(build, calls, enable, clear):
    model, number = network(), 0
    optimizer = build(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]

    def closure() -> Tensor:
        nonlocal number
        number += 1
        if clear == "before":
            optimizer.zero_grad()
        with torch.set_grad_enabled(torch.is_grad_enabled() or enable):
            loss = loss_of(model)()
            if number in calls:
                loss.backward()
        if clear == "after":
            optimizer.zero_grad()
        return loss

    if clear == "after" and enable and calls == (2,) and isinstance(optimizer, ll.PAL):
        optimizer.step(closure)  # nothing is left of it: the loss is what was asked for
        return
    with pytest.raises(RuntimeError, match="^closure: expected no call of backward"):
        optimizer.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# --- numbers at the ends of their range -----------------------------------------------------------


def linear(values: Iterable[float], dtype: torch.dtype, scale: float) -> Any:
    x = nn.Parameter(torch.tensor([*values], dtype=dtype))
    return x, lambda: (x.float() * scale).sum()


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e20),
        (torch.float32, 1e-12),
        (torch.float32, 1e-25),
        (torch.float16, 4e4),
        (torch.float16, 2.0**-20),
    ],
)
def test_pal_goes_as_far_as_it_says_however_long_the_gradient(dtype, scale):
    n = 100 if scale < 1e3 else 3
    x, closure = linear([1e-3 * k for k in range(n)], dtype, scale)
    before, optimizer = x.detach().double().clone(), ll.PAL([x], mu=0.5)
    optimizer.step(closure)
    assert optimizer.last.case == "mu" and optimizer.last.step == 0.5
    assert optimizer.last.norm == pytest.approx(scale * math.sqrt(n), rel=1e-3)
    assert float((x.detach().double() - before).norm()) == pytest.approx(0.5, rel=2e-3)


def test_pal_stays_where_the_gradient_is_nothing():
    x, closure = linear([1.0, 2.0], torch.float32, 1e-37)
    optimizer = ll.PAL([x])
    optimizer.step(closure)
    assert (optimizer.last.case, optimizer.last.step) == ("stay", 0.0)
    assert x.tolist() == [1.0, 2.0]


def test_entropy_sgd_measures_long_distances():
    x, closure = linear([1.0, 2.0], torch.float32, 1e20)
    optimizer = ll.EntropySGD([x], inner_steps=0, lr=1e-20)
    optimizer.step(closure)
    assert optimizer.last.distance == pytest.approx(1e20 * math.sqrt(2), rel=1e-6)
    assert x.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_gamma_that_has_overgrown_is_named(dtype):
    x = nn.Parameter(torch.zeros(2, dtype=dtype))
    optimizer = ll.EntropySGD([x], scoping=1.0, gamma=1.0, inner_steps=1)
    closure = lambda: x.sum()  # noqa: E731
    optimizer.param_groups[0]["steps"] = round(math.log2(torch.finfo(dtype).max)) - 1
    optimizer.step(closure)
    with pytest.raises(ValueError, match=r"^scoping: expected a gamma .*at step \d+ with 1.0"):
        optimizer.step(closure)


# --- autocast -------------------------------------------------------------------------------------


def straight(seed: int) -> tuple[nn.Module, SimpleNamespace]:
    """A model that is linear in its weights, and data of 32 samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        data = SimpleNamespace(x=torch.randn(32, 5), y=torch.randn(32, 3))
        return nn.Linear(5, 3), data


def mean_product(output: Tensor, target: Tensor) -> Tensor:
    return (output * target).mean()


def test_a_straight_line_under_autocast_is_straight():  # METHODS B, pitfall 6
    raw = []
    for seed in range(60):
        model, data = straight(seed)
        optimizer = ll.PAL(model.parameters())
        options: dict[str, Any] = {"epochs": 1, "batch_size": 32, "progress": False}
        ll.train(model, data, optimizer, loss=mean_product, dtype=torch.bfloat16, **options)
        last = optimizer.last
        raw.append((last.loss_at_mu - last.loss - last.b * last.mu) / abs(last.b))
        assert (last.case, last.a, last.step) == ("mu", 0.0, 0.1)
    assert min(raw) < -1e-4 < 1e-4 < max(raw)  # rounding bends it both ways


def test_autocast_inside_of_the_model_is_seen_too():
    class Inside(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(x).float()

    bends = set()
    for seed in range(60):
        body, data = straight(seed)
        model, optimizer = Inside(body), ll.PAL(body.parameters())
        optimizer.step(lambda m=model, d=data: mean_product(m(d.x), d.y))
        bends.add(optimizer.last.a)
    assert bends == {0.0}


def test_a_parabola_under_autocast_is_still_one():
    model = nn.Linear(4, 4)
    x = torch.randn(64, 4, generator=generator(0))
    optimizer = ll.PAL(model.parameters(), mu=0.5)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().mean()

    losses = [float(optimizer.step(closure)) for _ in range(5)]
    assert optimizer.last.case == "minimum" and losses[-1] < 0.2 * losses[0]
