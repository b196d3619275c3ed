"""The first layer combined from the basis of the slice: the same numbers, and less work."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import landscape_lib as ll
from landscape_lib.evaluation import batchnorm
from landscape_lib.evaluation.shortcuts import first_layer
from landscape_lib.evaluation.task import Task

METHODS = ("loop", "vmap")
SAMPLES = 23


class Viewed(nn.Module):
    """Not a sequence of layers: it flattens by hand, in a block within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Linear(81, 8), nn.GELU()), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.view(x.shape[0], -1))


class Tied(nn.Module):
    """The first layer's weights are used once more behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(81, 81), nn.Linear(81, 81), nn.Linear(81, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Twice(nn.Module):
    """The first layer is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(81, 81), nn.Linear(81, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x.flatten(1))))))


class Residual(nn.Module):
    """The input goes around the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(81, 81), nn.Linear(81, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.last(torch.tanh(self.first(x)) + x)


@pytest.fixture(autouse=True)
def small_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_layer, "FEWEST_OPERATIONS", 0.0)


def mlp(bias: bool = True) -> nn.Sequential:
    layers = nn.Linear(81, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias)
    return nn.Sequential(nn.Flatten(), *layers)


def with_dropout(after: int) -> nn.Sequential:
    layers = list(mlp())
    return nn.Sequential(*layers[:after], nn.Dropout(0.4), *layers[after:])


def conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3))


def hooked(at: int | None = 1) -> nn.Sequential:
    model = mlp()
    layer = model if at is None else model[at]
    layer.register_forward_hook(lambda layer, inputs, output: output.square())
    return model


def one_relu() -> nn.Sequential:
    relu = nn.ReLU()
    layers = nn.Linear(81, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3)
    return nn.Sequential(nn.Flatten(), *layers)


def tied_in_a_row() -> nn.Sequential:
    layer = nn.Linear(81, 81)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Linear(81, 3))


class Doubled(nn.Sequential):
    """A sequence that does more than its layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def altered() -> nn.Sequential:
    model = mlp()
    model[1].forward = lambda x: x[:, :8].square()
    return model


USED = {
    "mlp": mlp,
    "mlp without bias": lambda: mlp(bias=False),
    "softmax regression": lambda: nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(81, 3)),
    "one ReLU in two places": one_relu,
    "hook behind it": lambda: hooked(2),
    "dropout behind it": lambda: with_dropout(after=3),
}
NOT_USED = {
    "viewed": Viewed,
    "tied": Tied,
    "called twice": Twice,
    "residual": Residual,
    "dropout before it": lambda: with_dropout(after=1),
    "one layer in two places": tied_in_a_row,
    "doubled": lambda: Doubled(*mlp()),
    "hook": hooked,
    "hook before it": lambda: hooked(0),
    "hook of the whole": lambda: hooked(None),
    "altered": altered,
    "convolution": conv_net,
}


def build(make, samples=SAMPLES):
    """Return a model in float64 and its data, images of 9 x 9, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().double()
        x = torch.randn(samples, 1, 9, 9, dtype=torch.float64)
        y = torch.randint(0, 3, (samples,))
    return model, SimpleNamespace(x=x, y=y)


def directions(center, count):
    generator = torch.Generator().manual_seed(0)
    return ll.random_directions(center, count, ignore_1d=False, generator=generator)


def make_plane(model):
    center = ll.weights_of(model)
    return ll.Plane(center, directions(center, 2), [-0.5, 0.0, 1.0], [0.0, 0.25])


def make_line(model):
    start = ll.weights_of(model)
    return ll.Line.between(start, directions(start, 1)[0], [-1.0, 0.0, 0.3, 1.0])


def make_slice(model):
    center, generator = ll.weights_of(model), np.random.default_rng(0)
    return ll.Slice(center, directions(center, 3), generator.normal(size=(9, 3)))


def brute_force(model, slice, data, training=False):
    """The loss at every point, from the weights there."""
    losses = []
    for coordinates in slice.coordinates:
        moved = copy.deepcopy(model).train(training)
        ll.load_weights(moved, slice.weights_at(*coordinates))
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            losses.append(F.cross_entropy(moved(data.x), data.y).item())
    return np.array(losses)


@pytest.fixture
def decisions(monkeypatch):
    """Whether the first layer was combined, one entry for each evaluation."""
    found = []
    decide = first_layer.outputs

    def outputs(*args):
        made = decide(*args)
        found.append(made is not None)
        return made

    monkeypatch.setattr(first_layer, "outputs", outputs)
    return found


@pytest.fixture
def plainly():
    """Evaluate without combining."""

    def evaluate(*args, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(first_layer, "outputs", lambda *_: None)
            return ll.evaluate(*args, **options)

    return evaluate


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make_points", [make_line, make_plane, make_slice])
@pytest.mark.parametrize("name", USED)
def test_agrees_with_brute_force(name, make_points, method, decisions):
    model, data = build(USED[name])
    slice = make_points(model)
    got = ll.evaluate(model, slice, data, method=method, batch_size=10)  # 10, 10, 3
    np.testing.assert_allclose(got.loss.values.ravel(), brute_force(model, slice, data), rtol=1e-10)
    batches = [(data.x[a:b], data.y[a:b]) for a, b in ((0, 2), (2, 20), (20, 23))]
    again = ll.evaluate(model, slice, batches, method=method)
    np.testing.assert_allclose(again.loss, got.loss, rtol=1e-12)
    assert decisions == [True, True]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*NOT_USED, "dropout behind it"])
def test_where_it_would_change_the_numbers_it_is_not_used(name, training, method, decisions):
    make = (USED | NOT_USED)[name]
    model, data = build(make)
    plane = make_plane(model)
    got = ll.evaluate(model, plane, data, method=method, training=training)
    expected = brute_force(model, plane, data, training)
    np.testing.assert_allclose(got.loss.values.ravel(), expected, rtol=1e-10)
    assert decisions == [name in USED]
    assert (first_layer.cut(model.train(training)) is not None) == (name in USED)


def test_the_two_parts_share_their_parameters_with_the_model():
    model, data = build(mlp)
    first, rest = first_layer.cut(model)
    torch.testing.assert_close(rest(first(data.x)), model(data.x), rtol=0, atol=0)
    own = {id(p) for p in model.parameters()}
    shared = [{id(p) for p in part.parameters()} for part in (first, rest)]
    assert shared[0] | shared[1] == own and not shared[0] & shared[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_point_costs_no_product_with_the_inputs(method, plainly):
    model, data = build(mlp, samples=100)
    center = ll.weights_of(model)

    def flops_per_point(evaluate):
        counts = []
        for points in (10, 20):
            line = ll.Line(center, directions(center, 1)[0], np.arange(points) / 10)
            with FlopCounterMode(display=False) as counter:
                evaluate(model, line, data, method=method, chunk_size=5)
            counts.append(counter.get_total_flops())
        return (counts[1] - counts[0]) / 10

    # Combined from 2 vectors: as products under vmap, else by additions, which are not counted.
    weights = 2 * 2 * sum(p.numel() for p in model.parameters()) if method == "vmap" else 0
    assert flops_per_point(plainly) == weights + 100 * 2 * (81 * 8 + 8 * 3)
    assert flops_per_point(ll.evaluate) == weights + 100 * 2 * (2 * 8 + 8 * 3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_other_dtypes_stay_close(dtype, error, method, decisions):
    model, data = build(mlp)
    plane = make_plane(model)
    got = ll.evaluate(model, plane, data, dtype=dtype, method=method)
    np.testing.assert_allclose(got.loss.values.ravel(), brute_force(model, plane, data), rtol=error)
    assert decisions == [True]


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_outside_the_slice_is_met(method, decisions):
    model, data = build(mlp)
    line = make_line(model)
    elsewhere = {name: torch.full_like(t, 0.1) for name, t in ll.weights_of(model).items()}
    got = ll.evaluate(model, line, data, reference=elsewhere, method=method, batch_size=10)
    there = torch.func.functional_call(model, elsewhere, (data.x,))
    expected = brute_force(model, line, data) - F.cross_entropy(there, data.y).item()
    np.testing.assert_allclose(got.loss_difference, expected, rtol=1e-10)
    assert decisions == [True]


@pytest.mark.parametrize("method", METHODS)
def test_tolerance_takes_the_same_samples(method, decisions, plainly):
    model, data = build(mlp, samples=900)
    options = {"tolerance": 0.05, "method": method, "batch_size": 100}
    got = ll.evaluate(model, make_slice(model), data, **options)
    plain = plainly(model, make_slice(model), data, **options)
    assert len(np.unique(got.samples)) > 1 and got.samples.equals(plain.samples)
    np.testing.assert_allclose(got.loss, plain.loss, rtol=1e-10)
    assert decisions == [True]


@pytest.mark.parametrize("method", METHODS)
def test_workers_are_sent_the_outputs_and_give_the_same_bits(method, decisions):
    model, data = build(mlp)
    runs = []
    for workers in (1, 2):
        with ThreadPoolExecutor(workers) as executor:
            options = {"method": method, "chunk_size": 2, "batch_size": 10, "executor": executor}
            runs.append(ll.evaluate(model, make_plane(model), data, **options))
    assert decisions == [True, True]  # by the caller, and by no worker
    assert runs[0].equals(runs[1])
    expected = brute_force(model, make_plane(model), data)
    np.testing.assert_allclose(runs[0].loss.values.ravel(), expected, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_resumes_to_the_same_bits(method, tmp_path, decisions, monkeypatch):
    model, data = build(mlp)
    run, asked = Task.run, []

    def interrupted(task, indices):
        asked.append(indices)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return run(task, indices)

    options = {"method": method, "chunk_size": 1}
    whole = ll.evaluate(model, make_plane(model), data, **options)
    options |= {"store": tmp_path / "surface.nc"}
    monkeypatch.setattr(Task, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ll.evaluate(model, make_plane(model), data, **options)
    resumed = ll.evaluate(model, make_plane(model), data, **options)
    assert resumed.loss.equals(whole.loss) and decisions == [True] * 3
    some = ll.evaluate(model, make_plane(model), data, points=[4], method=method, chunk_size=1)
    assert some.loss.values.ravel()[4] == whole.loss.values.ravel()[4]


def test_it_is_a_rule_of_model_slice_and_data(decisions, monkeypatch):
    model, data = build(mlp)
    center = ll.weights_of(model)
    short = ll.Line(center, directions(center, 1)[0], [0.0, 0.5, 1.0])
    ll.evaluate(model, short, data)  # three points cost little more than two vectors
    assert first_layer.INPUTS_PER_VECTOR == 20
    narrow = nn.Sequential(nn.Linear(45, 3)).double()
    left = SimpleNamespace(x=data.x.flatten(1)[:, :45], y=data.y)
    ll.evaluate(narrow, make_plane(narrow), left)  # 60 inputs would be worth it, on a line 40
    ll.evaluate(narrow, make_line(narrow), left)
    monkeypatch.setattr(first_layer, "MOST_BYTES", 2 * SAMPLES * 8 * 8)
    ll.evaluate(model, make_line(model), data)  # 2 vectors, 8 outputs of 8 bytes
    ll.evaluate(model, make_plane(model), data)  # 3 vectors
    monkeypatch.setattr(first_layer, "MOST_BYTES", 1 << 20)
    spared = 2 * 81 * 8 * len(data.x) * len(make_plane(model))
    for fewest in (spared, spared + 1):
        monkeypatch.setattr(first_layer, "FEWEST_OPERATIONS", fewest)
        ll.evaluate(model, make_plane(model), data)
    assert decisions == [False, False, True, True, False, True, False]


@pytest.mark.parametrize("method", METHODS)
def test_infinite_inputs_give_what_they_give_at_each_point(method, decisions):
    model, data = build(mlp)
    data.x[0, 0, 0, 0] = torch.inf
    line = make_line(model)
    got = ll.evaluate(model, line, data, method=method)
    np.testing.assert_array_equal(
        np.isfinite(got.loss), np.isfinite(brute_force(model, line, data))
    )
    assert decisions == [False]


@pytest.mark.parametrize("policy", batchnorm.POLICIES)
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_batch_norm_behind_it(policy, method, decisions, plainly):
    def make():
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(81, 36), nn.Unflatten(1, (1, 6, 6))),
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16, 3)),
        )

    model, data = build(make)
    plane = make_plane(model)
    options = {"batchnorm": policy, "method": method, "batch_size": 10}
    if policy == "interpolated":
        one = batchnorm.statistics_of(model)
        more = {name: 0.1 * t for name, t in one.items()}
        options["statistics"] = [one, more, more]
    got = ll.evaluate(model, plane, data, **options)
    plain = plainly(model, plane, data, **options)
    np.testing.assert_allclose(got.loss, plain.loss, rtol=1e-10)
    assert decisions == [True]
