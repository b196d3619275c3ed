"""Inputs on which an independent reference found wrong numbers that no earlier test met."""

from __future__ import annotations

import copy
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_lib as ll

WEIGHTS = torch.tensor([1.0, 9.0, 0.1])


class Scale(nn.Module):
    """Outputs are inputs, times weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classes(samples: int = 300) -> Tensor:
    y = torch.randint(0, 3, (samples,), generator=torch.Generator().manual_seed(1))
    return y.sort().values


def line(model: nn.Module) -> ll.Line:
    weights = ll.weights_of(model)
    source = torch.Generator().manual_seed(2)  # a constant would cancel in softmax
    away = {n: 0.2 * torch.randn(t.shape, generator=source) for n, t in weights.items()}
    return ll.Line(weights, away, [-1.0, 0.0, 2.0])


def by_hand(model: nn.Module, along: ll.Line, x: Any, y: Any, loss: Any) -> list[float]:
    """Return the loss at each point, its weights loaded into the model itself."""
    before, found = ll.weights_of(model), []
    for alpha in along.alphas:
        ll.load_weights(model, along.weights_at(alpha))
        with torch.no_grad():
            found.append(float(loss(model(x), y)))
    ll.load_weights(model, before)
    return found


@pytest.mark.parametrize("method", ["loop", "vmap"])
@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize("kind", ["weights", "ignored", "a batch of ignored", "zero weight"])
def test_a_sample_without_loss_does_not_undo_the_weights(kind, batch_size, method):
    x, y = drawn(300, 3), classes()
    one = int((y == 1).nonzero()[0])
    x[one] = torch.tensor([0.0, 40.0, 0.0])  # its loss in float32 is exactly 0
    assert float(F.cross_entropy(x[one : one + 1], y[one : one + 1])) == 0
    loss: Any = F.cross_entropy
    if kind == "weights":
        loss = nn.CrossEntropyLoss(weight=WEIGHTS)
    elif kind == "zero weight":
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.0]), label_smoothing=0.1)
    elif kind == "ignored":
        y[::7] = -100
        y[one] = 1
    else:
        y[150:200] = -100
        y[one] = 1
    model = Scale()
    data, along = SimpleNamespace(x=x, y=y), line(model)
    got = ll.evaluate(model, along, data, loss=loss, batch_size=batch_size, method=method)
    expected = by_hand(model, along, x, y, loss)
    np.testing.assert_allclose(got.loss, expected, rtol=2e-5)
    assert (got.loss_se == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_callers_own_weights_may_give_no_finite_loss(value):
    good = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    bad = copy.deepcopy(good)
    with torch.no_grad():
        bad[2].bias.fill_(value)
    x, y, along = drawn(300, 5), classes(), line(good)
    loss = nn.CrossEntropyLoss(weight=WEIGHTS)
    got = ll.evaluate(bad, along, SimpleNamespace(x=x, y=y), loss=loss)
    np.testing.assert_allclose(got.loss, by_hand(good, along, x, y, loss), rtol=2e-5)


def of_positive_outputs(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    mask = (output[:, 0] > 0).to(output)
    values = output.square().sum(1) * mask
    return values if reduction == "none" else values.sum() / mask.sum()


def test_weights_that_depend_on_the_output_give_no_standard_error():
    model, x = Scale(), drawn(300, 3)
    got = ll.evaluate(
        model, line(model), SimpleNamespace(x=x, y=classes()), loss=of_positive_outputs, metrics={}
    )
    assert got.loss_se.isnull().all()


class Held(nn.Module):
    """Uses its parameters through a place of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)
        if kind == "list":
            self.held: Any = [self.a.weight, self.a.bias]
        elif kind == "dict":
            self.held = {"w": [self.a.weight, self.a.bias]}
        else:
            self.held = partial(F.linear, weight=self.a.weight, bias=self.a.bias)

    def forward(self, x: Tensor) -> Tensor:
        if callable(self.held):
            return self.held(x)
        return F.linear(x, *(self.held["w"] if isinstance(self.held, dict) else self.held))


@pytest.mark.parametrize("kind", ["list", "dict", "partial"])
def test_parameters_held_elsewhere_move(kind):
    model = Held(kind)
    x, y, along = drawn(300, 6), classes(), line(model)
    data = SimpleNamespace(x=x, y=y)
    expected = by_hand(model, along, x, y, F.cross_entropy)
    np.testing.assert_allclose(ll.evaluate(model, along, data).loss, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="method: 'vmap' gives other numbers"):
        ll.evaluate(model, along, data, method="vmap")


def test_a_function_that_closes_over_the_model_is_refused():
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)
            self.f = lambda h: torch.tanh(self.a(h))

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x)

    data = SimpleNamespace(x=drawn(300, 6), y=classes())
    with pytest.raises(ValueError, match="model: the function .* refers to the model by a closure"):
        model: nn.Module = Closed()
        ll.evaluate(model, line(model), data)
    model = nn.Sequential(nn.Linear(6, 3))
    model.register_forward_hook(lambda module, x, y: y + model[0].bias)
    with pytest.raises(ValueError, match="closure"):
        ll.evaluate(model, line(model), data)


class Replaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.Linear(6, 3)

    def forward(self, b: Any) -> Tensor:
        key = "x" if isinstance(b, dict) else 0
        b[key] = b[key] * 2
        return self.n(b[key])


@pytest.mark.parametrize("container", [dict, list])
def test_points_do_not_see_what_another_put_into_the_inputs(container):
    model, x, y = Replaces(), drawn(300, 6), classes()
    along = line(model)
    new = lambda: {"x": x} if container is dict else [x]  # noqa: E731
    got = ll.evaluate(model, along, SimpleNamespace(x=new(), y=y), method="loop")
    expected = [by_hand(model, along, new(), y, F.cross_entropy)[0] for _ in range(1)]
    for alpha in along.alphas:
        at = ll.Line(along.weights_at(alpha), along.directions[0], [0.0])
        here = by_hand(model, at, new(), y, F.cross_entropy)[0]
        assert float(got.loss.sel(alpha=alpha)) == pytest.approx(here, rel=1e-5)
    assert expected[0] == pytest.approx(float(got.loss[0]), rel=1e-5)


class Rotates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.Linear(6, 3)
        self.register_buffer("f", torch.polar(torch.ones(3), torch.arange(1.0, 4)))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(-1, 3, 2).contiguous()) * self.f
        return self.n(torch.view_as_real(pairs).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complex_buffers_keep_both_parts(dtype):
    model, x, y = Rotates(), drawn(300, 6), classes()
    along, data = line(model), SimpleNamespace(x=x, y=y)
    got = ll.evaluate(model, along, data, dtype=dtype)
    np.testing.assert_allclose(got.loss, by_hand(model, along, x, y, F.cross_entropy), rtol=1e-5)


class Overwrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.data.mul_(2)
        return self.n(x)


def test_inputs_overwritten_through_data_stay_the_callers():
    model, x, y = Overwrites(), drawn(300, 6), classes()
    along, before = line(model), x.clone()
    got = ll.evaluate(model, along, SimpleNamespace(x=x, y=y))
    assert torch.equal(x, before)
    expected = by_hand(model.n, _renamed(along), 2 * x, y, F.cross_entropy)
    np.testing.assert_allclose(got.loss, expected, rtol=1e-5)


def _renamed(along: ll.Line) -> ll.Line:
    short = lambda w: {n.removeprefix("n."): t for n, t in w.items()}  # noqa: E731
    return ll.Line(short(along.origin), short(along.directions[0]), along.alphas)


class Answers(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.n, self.kind = nn.Linear(6, 3), kind

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.n(x)} if self.kind is dict else (self.n(x), x)


def of_logits(output: Any, target: Tensor, reduction: str = "mean") -> Tensor:
    logits = output["logits"] if isinstance(output, dict) else output[0]
    return F.cross_entropy(logits, target, weight=WEIGHTS, reduction=reduction)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_nested_outputs_with_a_weighted_loss(kind):
    model, x, y = Answers(kind), drawn(300, 6), classes()
    along = line(model)
    got = ll.evaluate(model, along, SimpleNamespace(x=x, y=y), loss=of_logits, metrics={})
    np.testing.assert_allclose(got.loss, by_hand(model, along, x, y, of_logits), rtol=2e-5)


def test_coupled_losses_of_nested_outputs_have_no_standard_error():
    def clip(output: Any, target: Tensor, reduction: str = "mean") -> Tensor:
        alike = output[0] @ output[0].T
        return F.cross_entropy(alike, torch.arange(len(alike)), reduction=reduction)

    model = Answers(tuple)
    data = SimpleNamespace(x=drawn(96, 6), y=classes(96))
    got = ll.evaluate(model, line(model), data, loss=clip, metrics={}, population=np.inf)
    assert got.loss_se.isnull().all()


def test_a_loss_with_an_attribute_func_and_a_sparse_buffer():
    class Odd:
        func = F.mse_loss

        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output, target)

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = nn.Linear(6, 3)
            self.register_buffer("A", torch.eye(6).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return self.n(torch.sparse.mm(self.A, x.T).T)

    model, x, y = Graph(), drawn(300, 6), classes()
    along = line(model)
    got = ll.evaluate(model, along, SimpleNamespace(x=x, y=y), loss=Odd())
    np.testing.assert_allclose(got.loss, by_hand(model, along, x, y, F.cross_entropy), rtol=1e-5)


def test_weights_at_leaves_whole_numbers_as_they_are():
    weights = {"w": torch.ones(2), "n": torch.tensor([3, 4])}
    direction = {"w": torch.ones(2), "n": torch.tensor([1, 1])}
    at = ll.Line(weights, direction, [0.0, 0.5]).weights_at(0.5)
    assert at["n"].tolist() == [3, 4] and at["w"].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, partial])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_class_weights_of_another_dtype_than_the_outputs(make, dtype):
    loss = make(weight=WEIGHTS) if make is not partial else partial(F.cross_entropy, weight=WEIGHTS)
    model, x, y = nn.Linear(6, 3), drawn(300, 6), classes()
    along = line(model)
    got = ll.evaluate(model, along, SimpleNamespace(x=x, y=y), loss=loss, dtype=dtype)
    rtol = 1e-5 if dtype == torch.float64 else 3e-2
    np.testing.assert_allclose(got.loss, by_hand(model, along, x, y, loss), rtol=rtol)


class Keeps(nn.Module):
    """Keeps its activations in a list, and has a first parameter of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.n, self.seen = nn.Linear(6, 3), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [self.n(x)]
        return self.seen[0] * self.scale.float()


def test_kept_activations_and_parameters_of_two_dtypes():
    model, x, y = Keeps(), drawn(300, 6), classes()
    model(x)
    along = line(model)
    got = ll.evaluate(model, along, SimpleNamespace(x=x, y=y))
    np.testing.assert_allclose(got.loss, by_hand(model, along, x, y, F.cross_entropy), rtol=1e-5)


def test_a_model_that_cannot_be_copied_is_named():
    model = nn.Linear(6, 3)
    along = line(model)
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match="model: expected one that copy.deepcopy copies"):
        ll.evaluate(model, along, SimpleNamespace(x=drawn(30, 6), y=classes(30)))


def test_coupling_is_seen_behind_a_first_batch_of_one_sample():
    def coupled(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(output, target, reduction=reduction) * output.mean()

    model, x, y = nn.Linear(6, 3), drawn(40, 6), classes(40)
    batches = [(x[:1], y[:1]), (x[1:20], y[1:20]), (x[20:], y[20:])]
    got = ll.evaluate(model, line(model), batches, loss=coupled, metrics={}, population=np.inf)
    assert got.loss_se.isnull().all()
