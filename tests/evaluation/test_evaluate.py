"""The core against brute force, and its promises to the caller."""

from __future__ import annotations

import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from cases import CASES
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation.measures import accuracy
from landscape_lib.evaluation.task import Task

METHODS = ("loop", "vmap")


def make_plane(model: nn.Module, alphas=(-0.5, 0.0, 1.0), betas=(0.0, 0.25)) -> ll.Plane:
    center = ll.weights_of(model)
    generator = torch.Generator().manual_seed(0)
    pair = ll.random_directions(center, 2, ignore_1d=False, generator=generator)
    return ll.Plane(center, pair, alphas, betas)


def brute_force(model, plane, data, loss, alpha, beta):
    """The obvious ten lines: move a copy there and average over single samples."""
    moved = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += alpha * plane.directions[0][name] + beta * plane.directions[1][name]
        values = [
            loss(moved(data.x[i : i + 1]), data.y[i : i + 1]).item() for i in range(len(data.y))
        ]
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize("batch_size", [5, 23, 64])  # 23 samples: 5 does not divide them
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_brute_force(name, method, batch_size):
    case = CASES[name]
    model, data = case.build()
    plane = make_plane(model)
    got = ll.evaluate(
        model,
        plane,
        data,
        loss=case.loss,
        method=method,
        batch_size=batch_size,
        population=math.inf,
    )
    for alpha in plane.alphas:
        for beta in plane.betas:
            mean, error = brute_force(model, plane, data, case.loss, alpha, beta)
            here = got.sel(alpha=alpha, beta=beta)
            assert float(here.loss) == pytest.approx(mean, rel=1e-10, abs=1e-12)
            assert float(here.loss_se) == pytest.approx(error, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_loop_and_vmap_agree(name):
    case = CASES[name]
    model, data = case.build()
    runs = [
        ll.evaluate(model, make_plane(model), data, loss=case.loss, method=method, chunk_size=4)
        for method in METHODS
    ]
    for variable in runs[0].data_vars:
        np.testing.assert_allclose(runs[0][variable], runs[1][variable], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_origin_is_the_models_own_loss(name, method):  # oracle 30
    case = CASES[name]
    model, data = case.build()
    got = ll.evaluate(model, make_plane(model), data, loss=case.loss, method=method)
    own = case.loss(copy.deepcopy(model).eval()(data.x), data.y).item()
    assert float(got.loss.sel(alpha=0, beta=0)) == pytest.approx(own, rel=1e-12)


@pytest.mark.filterwarnings("ignore:batchnorm='frozen'")
@pytest.mark.parametrize("name", CASES)
def test_ends_and_swap_symmetry_of_a_line_between_models(name):  # oracle 30
    case = CASES[name]
    first, data = case.build()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.5).add_(0.1)
    alphas = np.arange(-2, 7) / 4
    a, b = ll.weights_of(first), ll.weights_of(second)
    there = ll.evaluate(first, ll.Line.between(a, b, alphas), data, loss=case.loss)
    back = ll.evaluate(first, ll.Line.between(b, a, 1 - alphas), data, loss=case.loss)
    own = [case.loss(copy.deepcopy(m).eval()(data.x), data.y).item() for m in (first, second)]
    assert float(there.loss.sel(alpha=0)) == pytest.approx(own[0], rel=1e-12)
    assert float(there.loss.sel(alpha=1)) == pytest.approx(own[1], rel=1e-12)
    np.testing.assert_allclose(there.loss.values, back.loss.values, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_linear_model_with_squared_error_gives_an_exact_quadratic(method):  # oracle 33
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    data = SimpleNamespace(
        x=torch.randn(17, 4, dtype=torch.float64), y=torch.randn(17, 1, dtype=torch.float64)
    )
    plane = make_plane(model, np.linspace(-2, 2, 9), np.linspace(-2, 2, 9))
    loss = ll.evaluate(model, plane, data, loss=F.mse_loss, method=method).loss.values
    step = plane.alphas[1] - plane.alphas[0]
    ones = torch.cat([data.x, torch.ones(17, 1, dtype=torch.float64)], 1)
    hessian = 2 / 17 * ones.T @ ones
    vectors = [torch.cat([d["weight"].flatten(), d["bias"]]) for d in plane.directions]
    second = np.diff(loss, 2, axis=0) / step**2
    np.testing.assert_allclose(second, float(vectors[0] @ hessian @ vectors[0]), rtol=1e-9)
    mixed = np.diff(np.diff(loss, axis=0), axis=1) / step**2
    np.testing.assert_allclose(mixed, float(vectors[0] @ hessian @ vectors[1]), rtol=1e-8)


def test_linear_model_with_cross_entropy_is_convex_along_lines():  # oracle 33
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    data = SimpleNamespace(x=torch.randn(17, 4, dtype=torch.float64), y=torch.arange(17) % 3)
    for seed in range(5):
        direction = ll.random_direction(
            ll.weights_of(model), generator=torch.Generator().manual_seed(seed)
        )
        line = ll.Line(ll.weights_of(model), direction, np.linspace(-3, 3, 41))
        assert (np.diff(ll.evaluate(model, line, data).loss, 2) > 0).all()


def test_two_layers_of_one_weight_start_on_a_plateau():  # oracle 35
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x):
            return x * self.w.prod()

    data = SimpleNamespace(x=torch.ones(1, 1).double(), y=torch.ones(1, 1).double())
    alphas = np.linspace(0, 1, 201)
    line = ll.Line.between({"w": torch.zeros(2).double()}, {"w": torch.ones(2).double()}, alphas)
    loss = 0.5 * ll.evaluate(Product(), line, data, loss=F.mse_loss).loss.values
    np.testing.assert_allclose(loss, 0.5 * (alphas**2 - 1) ** 2, atol=1e-14)
    assert (np.diff(loss) < 0).all()
    turn = alphas[1:-1][np.argmax(np.diff(loss, 2) > 0)]
    assert turn == pytest.approx(1 / math.sqrt(3), abs=0.005)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_leaves_the_caller_alone(name, method, training):
    case = CASES[name]
    model, data = case.build()
    model.train(training)
    case.loss(model(data.x), data.y).backward()
    before = copy.deepcopy(model)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    ll.evaluate(model, make_plane(model), data, loss=case.loss, method=method, samples=9)
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert old.training == new.training
    for (key, old), new in zip(
        before.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(old, new), key
    for old, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.requires_grad and torch.equal(old, parameter.grad)


def test_caller_is_left_alone_when_a_point_fails():
    model, data = CASES["mlp"].build()
    calls = []

    def loss(output, target, reduction="mean"):
        calls.append(1)
        if len(calls) > 12:
            raise ArithmeticError("no")
        return F.cross_entropy(output, target, reduction=reduction)

    before, state = ll.weights_of(model), torch.get_rng_state()
    with pytest.raises(ArithmeticError) as caught:
        ll.evaluate(model, make_plane(model), data, loss=loss, method="loop")
    assert re.search(r"point \d+ \(alpha=[-\d.]+, beta=", caught.value.__notes__[0])
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in ll.weights_of(model).items())


@pytest.mark.parametrize("method", METHODS)
def test_not_finite_stays_not_finite(method):
    model = nn.Linear(1, 1, bias=False).double()
    data = SimpleNamespace(
        x=torch.tensor([[1.0], [2.0]]).double(), y=torch.tensor([[0.0], [0.0]]).double()
    )

    def loss(output, target, reduction="mean"):
        values = output.log().squeeze(1)  # -inf at 0, NaN below
        return values.mean() if reduction == "mean" else values

    one = {"weight": torch.ones(1, 1).double()}
    line = ll.Line({"weight": torch.zeros(1, 1).double()}, one, [-1.0, 0.0, 1.0])
    got = ll.evaluate(model, line, data, loss=loss, method=method)
    assert np.isnan(got.loss[0]) and np.isneginf(got.loss[1])
    assert float(got.loss[2]) == pytest.approx(math.log(2) / 2)
    assert np.isnan(got.loss_se[:2]).all()


def test_accuracy_of_nan_outputs_is_nan():
    output = torch.tensor([[torch.nan, 1.0], [0.0, 1.0]])
    assert accuracy(output, torch.tensor([0, 1])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("method", METHODS)
def test_class_weights_are_summed_apart_whatever_the_order(method):
    """CASES N3: the mean of all samples, not that of batches of one class each."""
    model, data = CASES["mlp"].build()
    chosen = (torch.arange(1380) % len(data.y))[data.y.repeat(60).sort().indices]
    data = SimpleNamespace(x=data.x[chosen], y=data.y[chosen])
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 0.1]).double())
    got = ll.evaluate(model, make_plane(model), data, loss=loss, method=method)
    here = got.sel(alpha=0, beta=0)
    with torch.no_grad():
        whole = float(loss(model(data.x), data.y))
    assert float(here.loss) == pytest.approx(whole, rel=1e-10)
    assert float(here.loss_se) == 0
    part = [
        ll.evaluate(
            model,
            ll.Line(ll.weights_of(model), ll.weights_of(model), [0.0]),
            data,
            loss=loss,
            samples=200,
            seed=seed,
        )
        for seed in range(60)
    ]
    spread = np.std([float(p.loss[0]) for p in part], ddof=1)
    error = np.mean([float(p.loss_se[0]) for p in part])
    assert error == pytest.approx(spread, rel=0.3)  # of 60 runs, the spread is known to 9 %


def test_subset_is_the_same_at_every_point_and_carries_the_finite_population_correction():
    model, data = CASES["mlp"].build()
    got = ll.evaluate(model, make_plane(model), data, samples=9, seed=4)
    chosen = torch.randperm(23, generator=torch.Generator().manual_seed(4))[:9]
    values = (
        F.cross_entropy(model(data.x[chosen]), data.y[chosen], reduction="none").detach().numpy()
    )
    here = got.sel(alpha=0, beta=0)
    assert float(here.loss) == pytest.approx(values.mean(), rel=1e-12)
    expected = values.std(ddof=1) / 3 * math.sqrt((23 - 9) / 23)  # Cochran, 1977, section 2.6
    assert float(here.loss_se) == pytest.approx(expected, rel=1e-9)
    assert (got.samples == 9).all()
    whole = ll.evaluate(model, make_plane(model), data)
    assert (whole.loss_se == 0).all()


class Crossed(nn.Module):
    """Tied layers behind a batch norm, called in another order than they are registered."""

    def __init__(self):
        super().__init__()
        self.second, self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.second.weight = self.first.weight
        self.filters = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(self.filters(x))))))


@pytest.mark.parametrize("method", METHODS)
def test_tied_weights_are_found_by_all_of_their_names(method):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Crossed().double()
        x = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    data = SimpleNamespace(x=x, y=torch.arange(6) % 3)
    plane = make_plane(model)
    got = ll.evaluate(model, plane, data, method=method)
    mean, _ = brute_force(model, plane, data, F.cross_entropy, 1.0, 0.25)
    assert float(got.loss.sel(alpha=1.0, beta=0.25)) == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["mlp", "cnn with batch norm"])
def test_samples_that_are_not_finite_stay_that_and_the_others_are_measured(name, bad):
    model, data = CASES[name].build()
    expected = F.cross_entropy(model.eval()(data.x), data.y, reduction="none").detach()
    data.x[0] = bad
    got = ll.evaluate(
        model,
        make_plane(model),
        data,
        metrics={"rest": lambda o, t: F.cross_entropy(o, t, reduction="none").nan_to_num(0.0)},
    )
    assert not np.isfinite(got.loss).any()
    here = float(got.rest.sel(alpha=0, beta=0))
    assert here == pytest.approx(float(expected[1:].sum()) / 23, rel=1e-10)


def test_data_may_be_batches_and_nested():
    model, data = CASES["mlp"].build()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x["left"] + x["right"][0])

    nested = SimpleNamespace(x={"left": data.x, "right": (torch.zeros_like(data.x),)}, y=data.y)
    plain = ll.evaluate(model, make_plane(model), data)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.x, data.y), batch_size=7
    )
    wrapped = Wrapped()
    for got in (
        ll.evaluate(model, make_plane(model), loader),
        ll.evaluate(wrapped, rename(make_plane(model), "inner."), nested, batch_size=5),
        ll.evaluate(
            wrapped, rename(make_plane(model), "inner."), nested, method="vmap", chunk_size=2
        ),
    ):
        np.testing.assert_allclose(got.loss, plain.loss, rtol=1e-12)


def rename(plane: ll.Plane, prefix: str) -> ll.Plane:
    def renamed(weights):
        return {prefix + name: tensor for name, tensor in weights.items()}

    return ll.Plane(
        renamed(plane.origin), [renamed(d) for d in plane.directions], plane.alphas, plane.betas
    )


def test_non_square_grids_keep_their_axes():
    model, data = CASES["mlp"].build()
    got = ll.evaluate(model, make_plane(model, [0.0, 1.0, 2.0], [0.0, 0.5]), data)
    assert got.loss.dims == ("alpha", "beta") and got.loss.shape == (3, 2)
    plane = make_plane(model)
    points = ll.Slice(plane.origin, plane.directions, [[2.0, 0.5], [0.0, 0.5]])
    scattered = ll.evaluate(model, points, data)
    assert scattered.loss.dims == ("point",)
    assert float(scattered.loss[0]) == float(got.loss.sel(alpha=2, beta=0.5))
    assert scattered.c1.values.tolist() == [0.5, 0.5]


def test_dropout_in_training_mode_uses_the_same_masks_at_every_point():
    model, data = CASES["dropout"].build()
    frozen = {k: torch.zeros_like(v) for k, v in ll.weights_of(model).items()}
    frozen["3.bias"] = frozen["3.bias"] + 1.0  # the same shift of every output: no change of loss
    line = ll.Line(ll.weights_of(model), frozen, [0.0, 1.0])
    got = ll.evaluate(model, line, data, training=True, batch_size=8)
    assert float(got.loss[0]) == pytest.approx(float(got.loss[1]), rel=1e-12)
    evaluated = ll.evaluate(model, line, data)
    assert abs(float(evaluated.loss[0] - got.loss[0])) > 1e-3


def test_a_store_can_be_opened_as_the_surface_that_it_holds(tmp_path):
    model, data = CASES["mlp"].build()
    plane, store = make_plane(model), tmp_path / "surface.nc"
    few = ll.evaluate(model, plane, data, store=store, points=[0, 3])
    with xr.open_dataset(store, engine="h5netcdf") as kept:
        assert kept.loss.equals(few.loss) and kept.loss.dims == ("alpha", "beta")
        assert int(kept.loss.notnull().sum()) == 2
    full = ll.evaluate(model, plane, data, store=store)
    with xr.open_dataset(store, engine="h5netcdf") as kept:
        for name in full.data_vars:
            assert kept[name].equals(full[name]), name
        assert {
            n: v for n, v in kept.attrs.items() if n in full.attrs
        }.items() <= full.attrs.items()
    points = ll.Slice(plane.origin, plane.directions, np.array([[0.0, 1.0], [0.5, 0.5]]))
    listed = ll.evaluate(model, points, data, store=tmp_path / "points.nc")
    with xr.open_dataset(tmp_path / "points.nc", engine="h5netcdf") as kept:
        assert kept.loss.equals(listed.loss)


def test_store_resumes_to_the_same_bits(tmp_path, monkeypatch):
    model, data = CASES["cnn with batch norm"].build()
    whole = ll.evaluate(model, make_plane(model), data, method="loop")
    run, asked = Task.run, []

    def interrupted(task, indices):
        asked.append(indices)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return run(task, indices)

    monkeypatch.setattr(Task, "run", interrupted)
    path = tmp_path / "surface.nc"
    with pytest.raises(KeyboardInterrupt):
        ll.evaluate(model, make_plane(model), data, method="loop", store=path)
    asked[:] = [None] * 10
    resumed = ll.evaluate(model, make_plane(model), data, method="loop", store=path)
    assert len(asked) == 10 + 6 - 3
    for variable in ("loss", "accuracy"):
        assert resumed[variable].equals(whole[variable])


def test_store_of_another_computation_is_refused_and_untouched(tmp_path):
    model, data = CASES["mlp"].build()
    path = tmp_path / "surface.nc"
    ll.evaluate(model, make_plane(model), data, store=path)
    before = path.read_bytes()
    with pytest.raises(ll.StoreMismatch, match="slice"):
        ll.evaluate(model, make_plane(model, [0.0, 2.0]), data, store=path)
    other = SimpleNamespace(x=data.x + 1, y=data.y)
    with pytest.raises(ll.StoreMismatch, match="data"):
        ll.evaluate(model, make_plane(model), other, store=path)
    with pytest.raises(ll.StoreMismatch, match="dtype"):
        ll.evaluate(model, make_plane(model), data, store=path, dtype=torch.float32)
    assert path.read_bytes() == before
    path.write_bytes(before[:100])
    with pytest.raises(ll.StoreMismatch, match="cannot be read"):
        ll.evaluate(model, make_plane(model), data, store=path)
    assert path.read_bytes() == before[:100]


def test_same_seed_same_bits():
    model, data = CASES["dropout"].build()
    runs = [
        ll.evaluate(model, make_plane(model), data, training=True, samples=11, seed=7)
        for _ in range(2)
    ]
    assert runs[0].equals(runs[1])


def test_float32_and_bfloat16_stay_close_and_say_so():
    model, data = CASES["mlp"].build()
    exact = ll.evaluate(model, make_plane(model), data)
    single = ll.evaluate(model, make_plane(model), data, dtype=torch.float32)
    half = ll.evaluate(model, make_plane(model), data, dtype=torch.bfloat16)
    np.testing.assert_allclose(single.loss, exact.loss, rtol=1e-5)
    np.testing.assert_allclose(half.loss, exact.loss, rtol=5e-2)
    assert (exact.attrs["dtype"], half.attrs["dtype"]) == ("float64", "bfloat16")


def test_result_can_be_saved_whatever_kind_of_text_named_its_settings(tmp_path):
    model, data = CASES["mlp"].build()
    options = {"batchnorm": np.str_("batch"), "method": np.str_("loop")}
    ll.evaluate(model, make_plane(model), data, **options).to_netcdf(
        tmp_path / "surface.nc", engine="h5netcdf"
    )
