"""Models, losses and data that break an assumption under which evaluation is faster or simpler."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import landscape_lib as ll


def convolutional() -> nn.Sequential:
    layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3))


def fully_connected() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(98, 4), nn.ReLU(), nn.Linear(4, 3))


class ByNorm(nn.Module):
    """A Python number made of the parameters scales the output."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        size = math.sqrt(sum(float(p.square().sum()) for p in self.body.parameters()))
        return 3 * self.body(x) / size


class HiddenBranch(nn.Module):
    """A branch that tracing does not take, behind a last layer of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolutional()
        nn.init.zeros_(self.body[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(3 * x if isinstance(x, Tensor) else x)


class Strided(nn.Module):
    """Takes patches by strides, which only hold in the default layout."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x.as_strided((len(x), 2, 2, 2), (98, 49, 7, 1)).flatten(1))


class StridedFilter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.output = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        corner = self.conv.weight.as_strided((4, 2), (18, 9))
        return self.output(self.conv(x).mean((2, 3)) + F.linear(x[:, :, 0, 0], corner))


class Overwrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = fully_connected()

    def forward(self, x: Tensor) -> Tensor:
        x -= 1
        return self.body(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a number made of the weights, MLP": lambda: ByNorm(fully_connected()),
    "a number made of the weights, CNN": lambda: ByNorm(convolutional()),
    "a hidden branch behind zeros": HiddenBranch,
    "views of images": Strided,
    "views of filters": StridedFilter,
    "overwritten inputs": Overwrites,
    "ReLU in place on the input": lambda: nn.Sequential(nn.ReLU(inplace=True), fully_connected()),
}


def built(build: Callable[[], nn.Module]) -> tuple[nn.Module, SimpleNamespace]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build().double()
        data = SimpleNamespace(
            x=torch.randn(40, 2, 7, 7, dtype=torch.float64), y=torch.randint(0, 3, (40,))
        )
    return model, data


def line_through(model: nn.Module) -> ll.Line:
    source = torch.Generator().manual_seed(1)
    weights = ll.weights_of(model)
    direction = {n: torch.randn(w.shape, generator=source).to(w) for n, w in weights.items()}
    return ll.Line(weights, direction, [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5])


def by_hand(model: nn.Module, line: ll.Line, x: Any, y: Any, loss: Any) -> list[float]:
    found = []
    model.eval()
    for alpha in line.alphas:
        with torch.no_grad():
            output = torch.func.functional_call(model, line.weights_at(alpha), (x.clone(),))
            found.append(float(loss(output, y)))
    return found


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("name", MODELS)
def test_no_shortcut_changes_the_function(name: str, method: str) -> None:
    model, data = built(MODELS[name])
    line, before = line_through(model), data.x.clone()
    found = ll.evaluate(model, line, data, method=method)
    assert torch.equal(data.x, before)
    expected = by_hand(model, line, data.x, data.y, F.cross_entropy)
    assert found.loss.values == pytest.approx(expected, rel=1e-10)


def test_what_a_pass_leaves_in_buffers_does_not_reach_the_next_point() -> None:
    model, data = built(lambda: nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(98, 3))))
    line = line_through(model)
    whole = ll.evaluate(model, line, data, training=True)
    alone = ll.evaluate(model, line, data, training=True, points=[3])
    assert whole.loss.values[3] == alone.loss.values[3]


def halves(output: Tensor, target: Tensor) -> Tensor:
    return (output.view(len(output), -1) - target.view(len(target), -1)).square().mean()


def test_a_loss_may_take_views_of_images() -> None:
    model, data = built(lambda: nn.Conv2d(2, 3, 3, padding=1))
    data.y = torch.randn(40, 3, 7, 7, dtype=torch.float64)
    line = line_through(model)
    found = ll.evaluate(model, line, data, loss=halves)
    assert found.loss.values == pytest.approx(by_hand(model, line, data.x, data.y, halves))


WEIGHTS = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(WEIGHTS), partial(F.cross_entropy, weight=WEIGHTS)]
)
def test_class_weights_with_data_in_order(loss: Any) -> None:
    model, data = built(fully_connected)
    data = SimpleNamespace(x=data.x.repeat(3, 1, 1, 1), y=torch.arange(120) // 40)
    line = line_through(model)
    found = ll.evaluate(model, line, data, loss=loss)
    assert found.loss.values == pytest.approx(by_hand(model, line, data.x, data.y, loss))


class TimeFirst(nn.Module):
    """Its output has as many steps as the samples on which the output is first looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(98, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.linspace(0, 1, 32, dtype=x.dtype)[:, None, None]
        return steps * self.output(x.flatten(1))


def over_time(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.mean(0), target, reduction="none")


def test_samples_in_the_second_dimension() -> None:
    model, data = built(TimeFirst)
    data = SimpleNamespace(x=data.x.repeat(30, 1, 1, 1), y=data.y.repeat(30))
    line = line_through(model)
    found = ll.evaluate(model, line, data, loss=over_time, metrics={})
    expected = by_hand(model, line, data.x, data.y, lambda o, t: over_time(o, t).mean())
    assert found.loss.values == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("outputs", [1, 2])
def test_accuracy_only_where_outputs_are_scores_of_classes(outputs: int) -> None:
    model, data = built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(98, outputs)))
    data.y = data.y % 2

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output[:, 0], target.to(output))

    assert ("accuracy" in ll.evaluate(model, line_through(model), data, loss=loss)) == (outputs > 1)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = fully_connected()

    def forward(self, x: dict[str, Any]) -> Tensor:
        return self.body(x["images"]) * x["scale"]


@pytest.mark.parametrize("options", [{"samples": 20}, {"tolerance": 0.5}, {}])
def test_numbers_beside_the_samples(options: dict[str, Any]) -> None:
    model, data = built(Scaled)
    twice = torch.tensor(2.0, dtype=torch.float64)
    nested = SimpleNamespace(x={"images": data.x, "scale": twice}, y=data.y)
    line = line_through(model)
    plain = ll.evaluate(
        model, line, SimpleNamespace(x={"images": data.x, "scale": 2.0}, y=data.y), **options
    )
    assert ll.evaluate(model, line, nested, **options).loss.equals(plain.loss)


class Activated(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.output = nn.Linear(98, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.function(x.flatten(1)))


class Changed(Activated):
    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.function(2 * x.flatten(1)))


Changed.__qualname__ = Changed.__name__ = "Activated"


class Losses:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.factor * F.cross_entropy(output, target)


def test_a_store_tells_models_apart_that_print_alike(tmp_path: Any) -> None:
    model, data = built(lambda: Activated(F.relu))
    line, store = line_through(model), tmp_path / "surface.nc"
    ll.evaluate(model, line, data, store=store)
    for build in (lambda: Activated(torch.tanh), lambda: Changed(F.relu)):
        other, _ = built(build)
        assert repr(other) == repr(model)
        with pytest.raises(ll.StoreMismatch, match="model"):
            ll.evaluate(other, line, data, store=store)
    ll.evaluate(model, line, data, store=store)


def test_a_store_tells_methods_of_different_objects_apart(tmp_path: Any) -> None:
    model, data = built(fully_connected)
    line, store = line_through(model), tmp_path / "surface.nc"
    ll.evaluate(model, line, data, store=store, loss=Losses(1.0).loss)
    ll.evaluate(model, line, data, store=store, loss=Losses(1.0).loss)
    with pytest.raises(ll.StoreMismatch, match="loss"):
        ll.evaluate(model, line, data, store=store, loss=Losses(2.0).loss)


def test_a_store_tells_settings_of_losses_apart(tmp_path: Any) -> None:
    model, data = built(fully_connected)
    data.y = torch.randn(40, 3, dtype=torch.float64)
    line, store = line_through(model), tmp_path / "surface.nc"
    ll.evaluate(model, line, data, store=store, loss=nn.HuberLoss(delta=1.0))
    ll.evaluate(model, line, data, store=store, loss=nn.HuberLoss(delta=1.0))
    with pytest.raises(ll.StoreMismatch, match="loss"):
        ll.evaluate(model, line, data, store=store, loss=nn.HuberLoss(delta=0.1))


class AlwaysDrops(nn.Module):
    """Dropout that is active in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.output = nn.Linear(100, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.dropout(self.conv(x), 0.5, True).flatten(1))


def test_masks_drawn_in_eval_mode_are_the_same_by_both_methods() -> None:
    model, data = built(AlwaysDrops)
    line = line_through(model)
    loop, vmap = (ll.evaluate(model, line, data, method=m, batch_size=40) for m in ("loop", "vmap"))
    assert loop.loss.values == pytest.approx(vmap.loss.values, rel=1e-10)


def test_a_tolerance_is_not_met_by_a_few_samples_that_agree() -> None:
    """Three samples of a thousand are wrong: four subsets of 256 in ten have none of them."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    x = torch.eye(2, dtype=torch.float64).repeat(500, 1)
    y = x.argmax(1)
    y[torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:3]] ^= 1
    line = ll.Line(ll.weights_of(model), {n: w for n, w in ll.weights_of(model).items()}, [0.0])
    data = SimpleNamespace(x=x, y=y)
    for seed in range(8):
        found = ll.evaluate(model, line, data, tolerance=0.05, seed=seed)
        assert found.accuracy_se.item() > 0 or found.samples.item() == 1000


def test_refinement_goes_on_where_the_first_grid_saw_nothing() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (2 + torch.sin(8 * math.pi * self.place)) * x

    data = SimpleNamespace(x=torch.ones(4, 1).double(), y=torch.zeros(4, 1).double())
    model = Waves()
    direction = {"place": torch.ones(1, dtype=torch.float64)}
    options: dict[str, Any] = {"loss": F.l1_loss, "error": 0.01}
    blind = ll.Line(ll.weights_of(model), direction, torch.linspace(-1, 1, 65).tolist())
    full = ll.evaluate(model, blind, data, loss=F.l1_loss)
    assert float(full.loss[::8].max() - full.loss[::8].min()) < 1e-9  # what the first grid sees
    for coarsest in (8, 2):
        got = ll.refine(model, blind, data, coarsest=coarsest, **options)
        assert not got.attrs["refine_error"] > 0.01
        assert float(abs(got.loss - full.loss).max()) < 0.03


def test_refinement_measures_around_a_value_that_is_not_finite() -> None:
    class Pole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            hole = torch.where((self.place - 0.4).abs() < 0.1, torch.nan, 1.0)
            return (2 + self.place) * hole * x

    data = SimpleNamespace(x=torch.ones(4, 1).double(), y=torch.zeros(4, 1).double())
    model = Pole()
    direction = {"place": torch.ones(1, dtype=torch.float64)}
    line = ll.Line(ll.weights_of(model), direction, torch.linspace(-1, 1, 257).tolist())
    got = ll.refine(model, line, data, loss=F.l1_loss, error=0.01, coarsest=64)
    full = ll.evaluate(model, line, data, loss=F.l1_loss)
    finite = full.loss.notnull().values
    assert 0 < (~finite).sum() < got.refine_measured < 257
    assert (got.loss.notnull().values <= finite).all()


@pytest.mark.parametrize("side, coarsest", [(5, 8), (9, 16), (8, 8), (17, 32)])
def test_refinement_from_a_first_grid_wider_than_the_axes(side: int, coarsest: int) -> None:
    model, data = built(fully_connected)
    source = torch.Generator().manual_seed(1)
    directions = ll.random_directions(ll.weights_of(model), 2, generator=source)
    axis = torch.linspace(-1, 1, side).tolist()
    plane = ll.Plane(ll.weights_of(model), directions, axis, axis)
    got = ll.refine(model, plane, data, error=1e-9, coarsest=coarsest)
    assert got.measured.values.all()
    # Not to the bit: under vmap that depends on how many points are computed together.
    np.testing.assert_allclose(got.loss, ll.evaluate(model, plane, data).loss, rtol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a class": ({"loss": nn.CrossEntropyLoss}, TypeError, r"loss: .*CrossEntropyLoss\(\)"),
    "a sum": ({"loss": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "loss: .*'sum'"),
    "a sum, partial": (
        {"loss": partial(F.cross_entropy, reduction="sum")},
        ValueError,
        "loss: .*'sum'",
    ),
    "a word for a mode": ({"training": "yes"}, TypeError, "training: .*'yes'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name: str) -> None:
    model, data = built(fully_connected)
    options, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        ll.evaluate(model, line_through(model), data, **options)


def test_estimates_and_refinement_check_their_arguments() -> None:
    model, data = built(fully_connected)
    line = line_through(model)
    with pytest.raises(TypeError, match="slice: .*int"):
        ll.cost(model, 3, data)
    with pytest.raises(ValueError, match="slice"):
        ll.cost(nn.Linear(2, 2), line, data)
    with pytest.raises(ValueError, match="batch_size: .*0"):
        ll.cost(model, line, data, batch_size=0)
    with pytest.raises(ValueError, match="dtype: .*'x'"):
        ll.cost(model, line, data, dtype="x")
    with pytest.raises(ValueError, match="error: .*'a'"):
        ll.refine(model, line, data, error="a")
    with pytest.raises(TypeError, match="points"):
        ll.refine(model, line, data, error=0.1, points=[1])
    with pytest.raises(TypeError, match="DataLoader"):
        ll.evaluate(model, line, SimpleNamespace(__getitem__=None))
    with pytest.raises(TypeError, match="tuple of 3"):
        ll.evaluate(model, line, [(data.x, data.y, data.y)])
