"""Products with the Hessian: the right function, whatever the model, the loss and the batches."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.curvature import Hessian, hessian, hvp
from landscape_lib.runtime import generator
from landscape_lib.weights import flatten, unflatten, weights_of

SOURCE = partial(torch.randn, generator=generator(1), dtype=torch.float64)


def exact(model: nn.Module, data: Any, loss: Any, weights: Any = None) -> Tensor:
    """The Hessian of the loss of all samples in one batch, by torch.autograd.functional."""
    names = dict(model.eval().named_parameters())

    def of(vector: Tensor) -> Tensor:
        output = torch.func.functional_call(model, unflatten(vector, names), (data.x,))
        return loss(output, data.y).mean()

    return torch.autograd.functional.hessian(of, flatten(weights or weights_of(model)))


def mlp() -> tuple[nn.Module, SimpleNamespace]:
    return CASES["mlp"].build()


class Branching(nn.Module):
    """Python looks at the values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        output = torch.tanh(self.body(x))
        return output**3 if float(output.detach().abs().max()) < 2 else output


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.view(-1, 3, 2))[0][:, -1]


class Remembering(nn.Module):
    """Buffers that a pass changes, in place and by another tensor, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.scale = 0.5 * self.scale
        return self.body(x).square() * (self.passes + self.scale)


class Drawing(nn.Module):
    """Draws random numbers in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).square() * torch.rand(len(x), 1, dtype=x.dtype)


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mul_(2.0)).tanh()


class Attending(nn.Module):
    """Products in forward over reverse mode are wrong in torch 2.14, those of one vector right."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] + torch.arange(3, dtype=x.dtype)[:, None]
        return self.norm(self.attention(x, x, x)[0]).mean(1)


MODELS = CASES | {
    "attention": Case(Attending, (6,), 3),
    "branches in Python": Case(Branching, (6,), 3),
    "LSTM, unused weights": Case(Recurrent, (6,), 3),
    "buffers that change": Case(Remembering, (6,), 3),
    "inputs overwritten": Case(Overwriting, (6,), 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_product_is_that_of_the_exact_hessian_in_either_mode(name: str) -> None:
    """Oracle 38; 23 samples in batches of 10 have a short last batch."""
    model, data = MODELS[name].build()
    loss = MODELS[name].loss
    right = exact(copy.deepcopy(model), SimpleNamespace(x=data.x.clone(), y=data.y), loss)
    operator = Hessian(model, data, loss=loss, batch_size=10)
    for mode in operator._modes:
        operator._modes = [mode]
        found = operator @ torch.eye(operator.count)
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_one_vector_and_several_go_different_ways_to_the_same() -> None:
    operator = Hessian(*mlp(), batch_size=10)
    assert operator._modes == ["forward over reverse", "reverse over reverse"]
    assert Hessian(*MODELS["buffers that change"].build())._modes == ["reverse over reverse"]
    vectors = SOURCE(operator.count, 11)
    together = operator @ vectors
    assert operator.products == 11
    torch.testing.assert_close(operator @ vectors[:, 4], together[:, 4], rtol=1e-12, atol=1e-14)


def test_product_is_symmetric_and_the_central_difference_of_gradients() -> None:
    """Oracle 38."""
    model, data = mlp()
    operator = Hessian(model, data, batch_size=10)
    u, v = SOURCE(2, operator.count)
    assert float(u @ (operator @ v)) == pytest.approx(float(v @ (operator @ u)), rel=1e-12)

    def gradient(vector: Tensor) -> Tensor:
        ll.load_weights(model, unflatten(vector, weights_of(model)))
        loss = F.cross_entropy(model(data.x), data.y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])

    origin, step = flatten(weights_of(model)), 1e-5
    difference = (gradient(origin + step * v) - gradient(origin - step * v)) / (2 * step)
    torch.testing.assert_close(operator @ v, difference, rtol=1e-7, atol=1e-9)


def test_least_squares() -> None:
    """Oracle 38: for ``|Xw - y|²/2N`` the Hessian is XᵀX/N; torch's MSE has no half: twice that."""
    model, x = nn.Linear(5, 1, bias=False).double(), SOURCE(30, 5)
    data = SimpleNamespace(x=x, y=SOURCE(30, 1))
    gram = x.T @ x / 30
    torch.testing.assert_close(hessian(model, data, loss=F.mse_loss, batch_size=7), 2 * gram)
    half = hessian(model, data, loss=lambda o, y: 0.5 * F.mse_loss(o, y), batch_size=7)
    torch.testing.assert_close(half, gram)


def test_softmax_regression() -> None:
    """Oracle 38: the mean of (diag p - ppᵀ) ⊗ xxᵀ, with at least d eigenvalues 0."""
    model, x = nn.Linear(4, 3, bias=False).double(), SOURCE(25, 4)
    data = SimpleNamespace(x=x, y=torch.arange(25) % 3)
    p = model(x).softmax(1).detach()
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    right = torch.stack([torch.kron(b, torch.outer(v, v)) for b, v in zip(blocks, x, strict=True)])
    found = hessian(model, data, batch_size=10)
    torch.testing.assert_close(found, right.mean(0))
    assert int((torch.linalg.eigvalsh(found).abs() < 1e-14).sum()) >= 4


LOSSES: dict[str, Callable[..., Tensor]] = {
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 0.1]).double()),
    "class weights, a function": partial(
        F.cross_entropy, weight=torch.tensor([1.0, 9.0, 0.1]).double()
    ),
    "targets left out": nn.CrossEntropyLoss(ignore_index=2),
    "without a reduction": lambda output, target: F.cross_entropy(output, target),
    "per sample": partial(F.cross_entropy, reduction="none"),
    "left out inside": lambda output, target, reduction="mean": F.cross_entropy(
        output, target, ignore_index=2, reduction=reduction
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_mean_over_samples_not_over_batches(loss: Any) -> None:
    """DESIGN section 3. Sorted by class, with a batch of which all targets are left out."""
    model, data = mlp()
    data.y = data.y.sort().values
    right = exact(model, data, loss)
    assert int((data.y == 2).sum()) > 4
    for size in (1, 4, 23):
        torch.testing.assert_close(hessian(model, data, loss=loss, batch_size=size), right)
    batches = [(data.x[a:b], data.y[a:b]) for a, b in ((0, 2), (2, 15), (15, 16), (16, 23))]
    torch.testing.assert_close(hessian(model, iter(batches), loss=loss), right)
    assert Hessian(model, batches, loss=loss).loss == pytest.approx(
        loss(model(data.x), data.y).mean().item()
    )


def test_a_wrong_second_derivative_is_refused() -> None:
    """Of an operation here; torch 2.14 has such ones, for example its fused weight norm."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient.detach() * 3 * x**2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp()[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[2](Wrong.apply(self.layers[0](x)))

    with pytest.raises(ValueError, match="^model: .* not symmetric: an operation is at fault"):
        Hessian(Model(), mlp()[1])


HIDDEN: dict[str, Callable[..., Tensor]] = {
    "class weights": lambda output, target: F.cross_entropy(
        output, target, weight=torch.tensor([1.0, 9.0, 0.1]).double()
    ),
    "targets left out": lambda output, target: F.cross_entropy(output, target, ignore_index=2),
    "a sum": lambda output, target: F.cross_entropy(output, target, reduction="sum"),
}


@pytest.mark.parametrize("loss", HIDDEN.values(), ids=HIDDEN)
def test_a_loss_that_hides_its_weights_needs_all_samples_in_one_batch(loss: Any) -> None:
    """DESIGN section 3: else the result would be another one for each size of batch."""
    model, data = mlp()
    torch.testing.assert_close(hessian(model, data, loss=loss), exact(model, data, loss))
    with pytest.raises(ValueError, match="^loss: expected the mean over the samples of a batch"):
        hessian(model, data, loss=loss, batch_size=10)


def test_a_batch_without_loss_weighs_as_its_classes_do() -> None:
    """In float32 a sure answer has a loss of 0, which does not tell what it was divided by."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[60.0, 0.0], [-60.0, 0.5]])
    x = torch.tensor([[1.0, 0.0]] * 4 + [[0.01, 0.3], [-0.02, 0.1], [0.03, 0.2], [-0.01, 0.5]])
    data = SimpleNamespace(x=x, y=torch.tensor([0, 0, 0, 0, 1, 0, 1, 1]))
    loss = partial(F.cross_entropy, weight=torch.tensor([0.1, 9.0]))
    assert loss(model(x[:4]), data.y[:4]).item() == 0
    operator = Hessian(model, data, loss=loss, batch_size=4)
    assert operator.loss == pytest.approx(loss(model(x), data.y).item())
    torch.testing.assert_close(operator @ torch.eye(4), exact(model, data, loss))


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, partial(partial, F.cross_entropy)])
def test_class_weights_have_the_precision_that_is_asked_for(kind: Any) -> None:
    model, data = mlp()
    weights = torch.tensor([1.0, 9.0, 0.5])
    right = exact(model, data, kind(weight=weights.double()))
    loss = kind(weight=weights)
    torch.testing.assert_close(hessian(model, data, loss=loss, batch_size=10), right)
    single = copy.deepcopy(model).float()
    assert hessian(single, data, loss=loss, dtype=torch.float64).dtype == torch.float64


def test_subset_of_samples_is_that_of_evaluate() -> None:
    model, data = mlp()
    line = ll.Line(weights_of(model), ll.random_direction(weights_of(model)), [0.0])
    point = ll.evaluate(model, line, data, samples=9, seed=4, progress=False)
    assert Hessian(model, data, samples=9, seed=4).loss == pytest.approx(float(point.loss[0]))


def test_other_weights_and_directions() -> None:
    """``weights`` moves the Hessian; in a plane it is what the surface's second differences say."""
    model, data = mlp()
    w = weights_of(model)
    directions = ll.random_directions(w, 2, generator=generator(2))
    plane = ll.Plane(w, directions, [-1e-3, 0.0, 1e-3], [-1e-3, 0.0, 1e-3])
    away = plane.weights_at(0.5, -0.3)
    right = exact(model, data, F.cross_entropy, away)
    torch.testing.assert_close(hessian(model, data, weights=away), right)
    d = torch.stack([flatten(direction) for direction in directions], dim=1)
    small = ll.curvature.in_plane(model, data, plane, weights=away)
    torch.testing.assert_close(small, d.T @ right @ d)
    along = ll.curvature.along(model, data, directions[1], weights=away)
    assert along == pytest.approx(float(small[1, 1]))
    back = hvp(model, data, dict(reversed(directions[0].items())), weights=away)
    torch.testing.assert_close(flatten(back), right @ d[:, 0])

    loss = ll.evaluate(model, plane, data, progress=False).loss.values
    second = np.array(
        [
            [loss[2, 1] - 2 * loss[1, 1] + loss[0, 1], 0.0],
            [
                (loss[2, 2] - loss[2, 0] - loss[0, 2] + loss[0, 0]) / 4,
                loss[1, 2] - 2 * loss[1, 1] + loss[1, 0],
            ],
        ]
    )
    measured = np.tril(ll.curvature.in_plane(model, data, plane).numpy())
    np.testing.assert_allclose(measured, second / 1e-6, rtol=1e-4, atol=1e-6)


def test_callers_model_and_random_state_stay_as_they_are() -> None:
    model, data = CASES["cnn with batch norm"].build()
    model.train()
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(4).double()
    before = copy.deepcopy(model)
    state, calls = torch.get_rng_state(), ll.curvature
    calls.trace(model, data, probes=3)
    calls.spectral_density(model, data, steps=3)
    calls.top_eigenvalues(model, data, weights=ll.weights.scale(weights_of(model), 2.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert not model[0].weight.requires_grad and model[1].weight.requires_grad
    assert torch.equal(model[0].bias.grad, torch.ones(4).double()) and model[1].weight.grad is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]), name


def test_a_model_that_draws_random_numbers_draws_the_same_in_every_product() -> None:
    data = mlp()[1]
    operator = Hessian(Drawing().double(), data, batch_size=10)
    vector = SOURCE(operator.count)
    state, python = torch.get_rng_state(), random.getstate()
    assert torch.equal(operator @ vector, operator @ vector)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python


def test_frozen_parameters_count() -> None:
    model, data = mlp()
    right = exact(model, data, F.cross_entropy)
    model.requires_grad_(False)
    torch.testing.assert_close(hessian(model, data), right)


def test_callers_modes_of_torch_do_not_matter() -> None:
    model, data = mlp()
    right = hessian(model, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hessian(model, data), right)
    with torch.inference_mode():
        inside = SimpleNamespace(x=data.x.clone(), y=data.y.clone())
        assert torch.equal(hessian(model, inside), right)
    with torch.no_grad():
        assert torch.equal(hessian(Branching().double(), data).isfinite().all(), torch.tensor(True))


def test_precision_is_at_least_float32_or_what_is_asked_for() -> None:
    model, data = mlp()
    right = hessian(model, data)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert hessian(half, data).dtype == torch.float32
    double = Hessian(copy.deepcopy(model).float(), data, dtype=torch.float64)
    assert double.about()["dtype"] == "float64"
    torch.testing.assert_close(double @ torch.eye(83), right, rtol=1e-5, atol=1e-6)


def test_what_a_result_was_computed_from() -> None:
    model, data = mlp()
    about = ll.curvature.trace(model, data, probes=5, samples=20).attrs
    stated = {k: about[k] for k in ("batchnorm", "dtype", "samples", "parameters", "products")}
    assert stated == {
        "batchnorm": "frozen",
        "dtype": "float64",
        "samples": 20,
        "parameters": 83,
        "products": 5,
    }


def test_cost_is_that_of_all_samples() -> None:
    model, data = mlp()
    few, all_of_them = (ll.curvature.cost(model, data, 7, samples=n) for n in (10, None))
    assert (few.samples, all_of_them.samples, few.products) == (10, 23, 7)
    assert str(few).startswith("7 Hessian-vector products x 10 samples: about 00:")


class Rooted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.abs().sqrt().expand(len(x), 3)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class OnceDifferentiable(Overwriting):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(self.body(x).tanh())


MODEL, DATA = mlp()
W = weights_of(MODEL)
NAN = W | {"0.bias": torch.full((8,), math.nan)}
PLANE = ll.Plane(W, ll.random_directions(W, 2, generator=generator(0)), [0.0], [0.0])
NO_STATISTICS = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False))
C = ll.curvature

BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "model": (lambda: C.trace(W, DATA), TypeError, "model: expected a torch.nn.Module, got dict"),
    "no weights": (lambda: C.trace(nn.ReLU(), DATA), ValueError, "model: ReLU has no parameters"),
    "complex": (
        lambda: C.trace(nn.Linear(2, 2, dtype=torch.complex64), DATA),
        ValueError,
        "model: expected parameters of real numbers, 'weight' has torch.complex64",
    ),
    "data": (lambda: C.trace(MODEL, 5), TypeError, "data: expected something with x and y"),
    "no batches": (lambda: C.trace(MODEL, []), ValueError, "data: has no batches"),
    "samples": (lambda: C.trace(MODEL, DATA, samples=99), ValueError, "samples: expected a whole"),
    "batch size": (lambda: C.trace(MODEL, DATA, batch_size=0), ValueError, "batch_size: expected"),
    "loss": (lambda: C.trace(MODEL, DATA, loss=None), TypeError, "loss: expected a callable"),
    "loss of no tensor": (
        lambda: C.trace(MODEL, DATA, loss=lambda o, y: 1.0),
        TypeError,
        "loss: expected it to return a tensor, got float",
    ),
    "sum": (
        lambda: C.trace(MODEL, DATA, loss=nn.CrossEntropyLoss(reduction="sum")),
        ValueError,
        "loss: expected one that gives the mean, got reduction='sum'",
    ),
    "NaN weights": (lambda: C.trace(MODEL, DATA, weights=NAN), ValueError, "weights: expected fin"),
    "NaN loss": (
        lambda: C.trace(MODEL, DATA, loss=lambda o, y: o.sum() * math.nan),
        ValueError,
        "model: expected a finite loss at the weights, got nan",
    ),
    "NaN Hessian": (
        lambda: C.trace(Rooted(), DATA),
        ValueError,
        "model: the Hessian at these weights has entries that are not finite",
    ),
    "no second derivative": (
        lambda: C.trace(OnceDifferentiable().double(), DATA),
        ValueError,
        "model: the loss has no second derivative here: an operation is marked as once_",
    ),
    "weights": (lambda: C.trace(MODEL, DATA, weights={}), ValueError, "weights: names differ"),
    "direction": (
        lambda: C.along(MODEL, DATA, {"a": W["0.bias"]}),
        ValueError,
        "direction: names differ from the model's parameters",
    ),
    "NaN direction": (lambda: C.hvp(MODEL, DATA, NAN), ValueError, "direction: expected finite"),
    "plane": (lambda: C.in_plane(MODEL, DATA, W), TypeError, "plane: expected a Plane or another"),
    "another plane": (
        lambda: C.in_plane(nn.Linear(6, 3).double(), DATA, PLANE),
        ValueError,
        "weights: names differ",
    ),
    "dtype": (
        lambda: C.trace(MODEL, DATA, dtype=torch.bfloat16),
        ValueError,
        "dtype: expected torch.float32 or torch.float64, got torch.bfloat16",
    ),
    "batchnorm": (
        lambda: C.trace(MODEL, DATA, batchnorm="batch"),
        ValueError,
        "batchnorm: expected 'frozen', the model's running statistics, got 'batch'",
    ),
    "no running statistics": (
        lambda: C.trace(NO_STATISTICS, DATA),
        ValueError,
        "batchnorm: expected running statistics to freeze, the layer '1' keeps none",
    ),
    "seed": (lambda: C.trace(MODEL, DATA, seed=0.5), TypeError, "seed: expected a whole number"),
    "unknown": (lambda: C.trace(MODEL, DATA, los=1), TypeError, "unexpected keyword argument"),
    "vectors": (
        lambda: Hessian(MODEL, DATA) @ torch.ones(5),
        ValueError,
        "vectors: expected shape (83,) or (83, k), got (5,)",
    ),
    "too large": (
        lambda: C.hessian(nn.Linear(1000, 6), SimpleNamespace(x=torch.ones(2, 1000), y=DATA.y[:2])),
        ValueError,
        "model: expected at most 5,000 parameters for the exact Hessian, got 6,006 (0.29 GB in "
        "float64): use top_eigenvalues, trace or spectral_density",
    ),
    "products": (lambda: C.cost(MODEL, DATA, 0), ValueError, "products: expected a whole number"),
    "probes": (lambda: C.trace(MODEL, DATA, probes=0), ValueError, "probes: expected a whole"),
    "k": (lambda: C.top_eigenvalues(MODEL, DATA, 84), ValueError, "k: expected a whole number fro"),
    "which": (
        lambda: C.top_eigenvalues(MODEL, DATA, which="LA"),
        ValueError,
        "which: expected 'largest', 'smallest' or 'magnitude', got 'LA'",
    ),
    "tolerance": (
        lambda: C.top_eigenvalues(MODEL, DATA, tolerance=-1.0),
        ValueError,
        "tolerance: expected a number of at least 0, got -1.0",
    ),
    "most products": (
        lambda: C.top_eigenvalues(MODEL, DATA, 6, most_products=20),
        RuntimeError,
        "most_products: ",
    ),
    "steps": (
        lambda: C.spectral_density(MODEL, DATA, steps=84),
        ValueError,
        "steps: expected a whole number from 1 to 83, got 84",
    ),
    "sigma": (
        lambda: C.spectral_density(MODEL, DATA, sigma=0.0),
        ValueError,
        "sigma: expected a number above 0, got 0.0",
    ),
    "points": (
        lambda: C.spectral_density(MODEL, DATA, steps=20, points=50),
        ValueError,
        "points: expected at least ",
    ),
    "share": (
        lambda: C.share(C.spectral_density(MODEL, DATA, steps=5), 1.0, 0.0),
        ValueError,
        "low: expected a number below high=0.0, got 1.0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


def test_without_curvlinops_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "curvlinops", None)
    with pytest.raises(ImportError, match=r"pip install curvlinops-for-pytorch==3\.0\.1"):
        C.trace(MODEL, DATA)
