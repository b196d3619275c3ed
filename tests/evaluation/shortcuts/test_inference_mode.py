"""Passes in inference mode where that is safe: nothing that evaluation makes is of no use later."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import spectral_norm

import landscape_lib as ll
from landscape_lib.evaluation.shortcuts.graphs import runs_only_torch, trace


@lru_cache
def positions(samples: int) -> Tensor:
    return torch.arange(6, dtype=torch.float64).sin().expand(samples, 6).clone()


class Remembers(nn.Module):
    """Adds what it computes once for all models, as position encodings often are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x * positions(int(x.shape[0])))


class Differentiates(nn.Module):
    """The slope of a network, as in physics-informed networks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.layers(x).sum(), x, create_graph=True)
        return slope[:, :3]


class Mode(nn.Module):
    """A layer that is not PyTorch's: it says in which mode it ran."""

    def forward(self, x: Tensor) -> Tensor:
        seen.append(torch.is_inference_mode_enabled())
        return x


seen: list[bool] = []


class Greedy:
    """A loss that overwrites the output, differentiates it and keeps it."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        self.kept.append(output)
        output.mul_(1.0)
        with torch.enable_grad():
            leaf = output.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(leaf.square().sum(), leaf)
        assert torch.equal(slope, 2 * output)
        return F.cross_entropy(output, target, reduction=reduction)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def build(make: Any) -> tuple[nn.Module, ll.Line, SimpleNamespace]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
        data = SimpleNamespace(x=torch.randn(23, 6).double(), y=torch.randint(0, 3, (23,)))
        weights = ll.weights_of(model)
        other = {name: torch.randn_like(t) for name, t in weights.items()}
    return model, ll.Line.between(weights, other, np.linspace(0, 1, 4)), data


def brute_force(model: nn.Module, line: ll.Line, data: SimpleNamespace) -> list[float]:
    def loss_at(alpha: float) -> float:
        output = torch.func.functional_call(model, line.weights_at(alpha), (data.x,))
        return F.cross_entropy(output, data.y).item()

    return [loss_at(alpha) for alpha in line.alphas]


@pytest.mark.parametrize("method", ["loop", "vmap"])
@pytest.mark.parametrize("batch_size", [10, 23])
@pytest.mark.parametrize("make", [mlp, Remembers])
def test_what_is_kept_can_be_trained_on(make: Any, batch_size: int, method: str) -> None:
    positions.cache_clear()
    model, line, data = build(make)
    got = ll.evaluate(model, line, data, method=method, batch_size=batch_size)
    np.testing.assert_allclose(got.loss, brute_force(model, line, data), rtol=1e-10)
    if make is Remembers:
        known = positions.cache_info().currsize
        kept = [positions(n) for n in (10, 3, 23)]
        assert positions.cache_info().currsize < known + 3
        assert not any(tensor.is_inference() for tensor in kept)


def test_a_model_may_differentiate() -> None:
    model, line, data = build(Differentiates)
    got = ll.evaluate(model, line, data, method="loop")
    np.testing.assert_allclose(got.loss, brute_force(model, line, data), rtol=1e-10)


@pytest.mark.parametrize("batch_size", [10, 23])
def test_a_loss_may_do_anything_with_the_output(batch_size: int) -> None:
    model, line, data = build(mlp)
    loss = Greedy()
    options = {"loss": loss, "method": "loop", "batch_size": batch_size}
    got = ll.evaluate(model, line, data, **options)
    np.testing.assert_allclose(got.loss, brute_force(model, line, data), rtol=1e-10)
    assert not any(output.is_inference() for output in loss.kept)
    sum(output.requires_grad_(True).square().sum() for output in loss.kept).backward()


def test_only_pytorchs_own_layers_run_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, line, data = build(lambda: nn.Sequential(*mlp(), Mode()))
    seen.clear()
    ll.evaluate(model, line, data, method="loop")
    assert seen and not any(seen)
    monkeypatch.setattr(nn.Linear, "forward", spy(nn.Linear.forward))
    model, line, data = build(mlp)
    ll.evaluate(model, line, data, method="loop")
    assert any(seen)


def hooked() -> nn.Sequential:
    model = nn.Sequential(mlp())
    model[0].register_forward_hook(lambda layer, inputs, output: output.square())
    return model


def altered() -> nn.Sequential:
    model = mlp()
    model.forward = lambda x: x  # type: ignore
    return model


def graph_with(function: Any) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_function(function, (graph.placeholder("x"), 1.0)))
    return fx.GraphModule({}, graph)


ONLY_TORCH: list[tuple[Any, bool]] = [
    (mlp, True),
    (lambda: nn.Sequential(mlp(), mlp()), True),
    (lambda: trace(ll.models.resnet(8)), True),
    (lambda: trace(ll.models.small_cnn(pool=True)), True),
    (lambda: nn.Sequential(*mlp(), Mode()), False),
    (lambda: trace(nn.Sequential(*mlp(), Mode())), False),
    (lambda: ll.models.resnet(8), False),  # its blocks are code of ours, but not a graph
    (lambda: nn.Sequential(trace(mlp()), nn.Linear(3, 3)), False),  # a graph within
    (lambda: graph_with(torch.add), True),
    (lambda: graph_with(torch.Tensor.add), False),
    (lambda: graph_with(torch.ops.aten.add.Tensor), False),  # as are operations of others
    (lambda: graph_with(torch._C._set_grad_enabled), False),
    (hooked, False),
    (altered, False),
    (lambda: nn.TransformerEncoderLayer(8, 2, activation=F.gelu), False),
    (lambda: spectral_norm(nn.Linear(3, 3)), False),
]


@pytest.mark.parametrize("make, expected", ONLY_TORCH)
def test_models_in_which_only_pytorchs_code_runs(make: Any, expected: bool) -> None:
    assert runs_only_torch(make()) == expected


def test_hooks_on_all_modules_count() -> None:
    kept: list[Tensor] = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, args, y: kept.append(y))
    try:
        assert not runs_only_torch(mlp())
        model, line, data = build(mlp)
        ll.evaluate(model, line, data, method="loop")
    finally:
        hook.remove()
    assert kept and not any(tensor.is_inference() for tensor in kept)
    assert runs_only_torch(mlp())


def spy(forward: Any) -> Any:
    def spied(self: nn.Module, x: Tensor) -> Tensor:
        seen.append(torch.is_inference_mode_enabled())
        found: Tensor = forward(self, x)
        return found

    return spied


def test_random_numbers_start_again_without_a_note_for_each_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _, data = build(mlp)
    calls: list[int] = []
    original = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: calls.append(1) or original(seed))
    counts = []
    for points in (4, 40):
        calls.clear()
        weights = ll.weights_of(model)
        line = ll.Line(weights, weights, np.linspace(-1, 1, points))
        ll.evaluate(model, line, data, method="loop")
        counts.append(len(calls))
    assert counts[0] == counts[1]
