"""Evaluating less than everything: tolerance, chosen points, refinement, and its cost."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from test_evaluate import make_plane
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation.sums import mean_and_error


@pytest.fixture(scope="module")
def trained():
    """A small network on digits, a line through it, and the loss on all of the training set."""
    data = ll.data.load("digits", "train", dtype=torch.float64, device="cpu")
    model = ll.models.mlp(64, hidden=(16,), seed=0).double()
    start = ll.weights_of(model)
    ll.train(model, data, torch.optim.Adam(model.parameters(), lr=1e-2), epochs=5)
    line = ll.Line.between(start, ll.weights_of(model), np.arange(11) / 10)
    return model, line, data, ll.evaluate(model, line, data)


def test_stated_intervals_cover_the_value_of_all_data_as_often_as_they_claim(trained):
    model, line, data, full = trained
    runs = 60
    hits = np.zeros(len(line))
    for seed in range(runs):
        part = ll.evaluate(model, line, data, samples=200, seed=seed)
        hits += np.abs(part.loss - full.loss).values <= 1.96 * part.loss_se.values
    # Binomial: 95 % of 60 runs is 57 +- 1.7 at each point; losses are skewed, so a little less.
    assert 0.85 <= (hits / runs).min() and 0.90 <= (hits / runs).mean() <= 0.99


@pytest.mark.parametrize("samples", [256, 1024, 4096])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97, 0.99, 0.995, 0.999])
def test_intervals_of_an_accuracy_near_1_cover_it(share, samples):
    population, runs = 10_000, 50_000
    source = np.random.default_rng(0)
    truth = int(population * share)
    n = np.full(runs, float(samples))
    hits = source.hypergeometric(truth, population - truth, samples, size=runs).astype(float)
    mean, error = mean_and_error(np.stack([hits, hits, hits, n, n], axis=1), samples, population)
    stated = np.isfinite(error)
    assert (stated == (hits < samples)).all()
    # Hits are whole numbers, so that few misses cannot come out at 95 %.
    within = np.abs(mean - share)[stated] <= 2 * error[stated]
    assert 0.89 < within.mean()
    if samples * (1 - share) > 20:
        assert 0.94 < within.mean() < 0.97


def test_a_subset_that_all_agrees_states_no_error(trained):
    model, line, data, _ = trained
    always = {"always": lambda output, target: torch.ones(len(target)).double() / 3}
    got = ll.evaluate(model, line, data, metrics=always, samples=200)
    np.testing.assert_allclose(got["always"], 1 / 3)
    assert got["always_se"].isnull().all() and (got.loss_se > 0).all()
    full = ll.evaluate(model, line, data, metrics=always)
    assert (full["always_se"] == 0).all()


def test_tolerance_is_met_with_no_more_samples_than_needed(trained):
    model, line, data, full = trained
    got = ll.evaluate(model, line, data, tolerance=0.02)
    assert (got.loss_se <= 0.02).all() and (got.accuracy_se <= 0.02).all()
    assert set(np.unique(got.samples)) <= {256, 512, 1024, 1437}
    assert got.samples.min() < 1437
    # At each point: half as many samples would not have been enough.
    for point in range(len(line)):
        n = int(got.samples[point])
        if n > 256:
            order = torch.randperm(1437, generator=torch.Generator().manual_seed(0))
            half = order[: {512: 256, 1024: 512, 1437: 1024}[n]]
            subset = type("Half", (), {"x": data.x[half], "y": data.y[half]})
            small = ll.evaluate(model, line, subset, points=[point], population=math.inf)
            shrink = math.sqrt((1437 - len(half)) / 1436)
            worst = max(float(small.loss_se[point]), float(small.accuracy_se[point]))
            assert worst * shrink > 0.02


def test_a_tolerance_out_of_reach_uses_all_data_and_is_then_exact(trained):
    model, line, data, full = trained
    got = ll.evaluate(model, line, data, tolerance=1e-9)
    assert (got.samples == 1437).all() and (got.loss_se == 0).all()
    np.testing.assert_allclose(got.loss, full.loss, rtol=1e-12)


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_tolerance_is_the_same_by_both_methods(trained, method):
    model, line, data, _ = trained
    a = ll.evaluate(model, line, data, tolerance=0.02, method=method, chunk_size=4)
    b = ll.evaluate(model, line, data, tolerance=0.02, method="loop")
    assert (a.samples == b.samples).all()
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-10)


def test_only_the_chosen_points_are_evaluated_and_stores_add_up(tmp_path):
    model, data = CASES["mlp"].build()
    plane = make_plane(model)
    whole = ll.evaluate(model, plane, data)
    store = tmp_path / "surface.nc"
    part = ll.evaluate(model, plane, data, points=[1, 4], store=store)
    assert np.isfinite(part.loss.values.ravel()).nonzero()[0].tolist() == [1, 4]
    assert part.samples.values.ravel().tolist() == [0, 23, 0, 0, 23, 0]
    rest = ll.evaluate(model, plane, data, store=store)
    assert rest.loss.equals(whole.loss)
    for bad in ([], [6], [-1], [0.5], 3):
        with pytest.raises(ValueError, match="points: expected"):
            ll.evaluate(model, plane, data, points=bad)


class Bumps(nn.Module):
    """A two-weight model whose loss is smooth, with one sharp hill."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        hill = torch.exp(-40 * ((self.w - 0.3) ** 2).sum())
        return x * (1 + 0.3 * (self.w**2).sum() + hill)


def test_refinement_measures_where_the_surface_bends_and_states_its_error():
    data = type("One", (), {"x": torch.ones(1, 1).double(), "y": torch.zeros(1, 1).double()})
    axis = np.linspace(-1, 1, 65)
    units = [{"w": torch.tensor(u).double()} for u in ([1.0, 0.0], [0.0, 1.0])]
    plane = ll.Plane({"w": torch.zeros(2).double()}, units, axis, axis)
    full = ll.evaluate(Bumps(), plane, data, loss=F.mse_loss)
    got = ll.refine(Bumps(), plane, data, loss=F.mse_loss, error=0.01)
    error = np.abs(got.loss - full.loss)
    assert got.loss.where(got.measured).equals(full.loss.where(got.measured))
    assert float(error.max()) < 0.05
    assert got.attrs["refine_measured"] == int(got.measured.sum()) < full.loss.size / 4
    assert 0 < got.attrs["refine_error"] <= float(error.max()) * (1 + 1e-9)
    near = got.measured.sel(alpha=slice(0.1, 0.5), beta=slice(0.1, 0.5)).mean()
    far = got.measured.sel(alpha=slice(-1, -0.3), beta=slice(-1, -0.3)).mean()
    assert float(near) > 3 * float(far)
    assert np.isnan(got.loss_se.where(~got.measured)).all()


def test_refinement_with_a_tolerance_takes_fewer_samples_at_fewer_points(trained):
    model, _, data, _ = trained
    weights = ll.weights_of(model)
    source = torch.Generator().manual_seed(2)
    axis = np.linspace(-1, 1, 17)
    plane = ll.Plane(weights, ll.random_directions(weights, 2, generator=source), axis, axis)
    full = ll.evaluate(model, plane, data)
    room = 0.03 * float(full.loss.max() - full.loss.min())
    got = ll.refine(model, plane, data, error=room, tolerance=room, metrics={})
    assert got.measured.sum() < full.loss.size
    assert (got.samples.where(got.measured, 0) <= len(data.x)).all()
    assert got.attrs["flops"] < full.attrs["flops"]
    work = float(got.samples.where(got.measured, 0).sum() / full.samples.sum())
    assert got.attrs["flops"] == pytest.approx(full.attrs["flops"] * work)
    assert float(np.sqrt(((got.loss - full.loss) ** 2).mean())) < room


def test_refinement_of_a_line_with_a_tiny_tolerance_measures_everything():
    data = type("One", (), {"x": torch.ones(1, 1).double(), "y": torch.zeros(1, 1).double()})
    line = ll.Line(
        {"w": torch.zeros(2).double()}, {"w": torch.ones(2).double()}, np.linspace(-1, 1, 18)
    )
    full = ll.evaluate(Bumps(), line, data, loss=F.mse_loss)
    got = ll.refine(Bumps(), line, data, loss=F.mse_loss, error=1e-12)
    assert got.measured.all() and got.loss.equals(full.loss)
    assert math.isnan(got.attrs["refine_error"])


def test_cost_counts_every_multiplication_once():
    data = ll.data.load("digits", "test")
    model = ll.models.mlp(64, hidden=(16,), classes=10)
    line = ll.Line(ll.weights_of(model), ll.weights_of(model), np.arange(5.0))
    cost = ll.cost(model, line, data, samples=100, gpu="A100")
    assert cost.flops_per_sample == 2 * (64 * 16 + 16 * 10)
    assert cost.flops == 5 * 100 * cost.flops_per_sample
    assert cost.seconds == pytest.approx(cost.flops / (0.2 * 19.5e12))
    rates = {
        ("T4", torch.float16): 0.05 * 65e12,
        ("T4", torch.bfloat16): 0.2 * 8.1e12,  # it has no units for that
        ("T4", torch.float64): 0.2 * 0.25e12,
        ("H100", torch.bfloat16): 0.05 * 989e12,
    }
    for (gpu, dtype), rate in rates.items():
        assert ll.cost(model, line, data, gpu=gpu, dtype=dtype).rate == pytest.approx(rate)
    here = ll.cost(model, line, data)
    assert here.samples == 360 and here.seconds > 0 and "points" in str(here)
    with pytest.raises(ValueError, match="gpu: expected one of .*'T4'.*got 'abacus'"):
        ll.cost(model, line, data, gpu="abacus")


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_paired_differences_are_those_of_the_same_samples(trained, method):
    model, line, data, full = trained
    end = line.weights_at(1.0)
    got = ll.evaluate(model, line, data, samples=300, reference=end, method=method)
    chosen = torch.randperm(1437, generator=torch.Generator().manual_seed(0))[:300].sort().values

    def losses(alpha):
        output = torch.func.functional_call(model, line.weights_at(alpha), (data.x[chosen],))
        return F.cross_entropy(output, data.y[chosen], reduction="none").detach().numpy()

    apart = losses(0.9) - losses(1.0)
    here = got.sel(alpha=0.9)
    assert float(here.loss_difference) == pytest.approx(apart.mean(), rel=1e-9)
    shrink = math.sqrt((1437 - 300) / 1437)
    expected = apart.std(ddof=1) / math.sqrt(300) * shrink
    assert float(here.loss_difference_se) == pytest.approx(expected, rel=1e-8)
    # Sharing the samples is what makes a small difference visible.
    unpaired = math.hypot(float(here.loss_se), float(got.loss_se.sel(alpha=1)))
    assert float(here.loss_difference_se) < 0.3 * unpaired
    at_itself = got.sel(alpha=1)
    assert abs(float(at_itself.loss_difference)) < 1e-12
    assert not float(at_itself.loss_difference_se) > 1e-9  # NaN where all differences are 0
    assert got.loss.equals(ll.evaluate(model, line, data, samples=300, method=method).loss)


def test_paired_intervals_cover_the_difference_on_all_data(trained):
    model, line, data, full = trained
    truth = float(full.loss.sel(alpha=0.8) - full.loss.sel(alpha=1))
    runs, hits = 100, 0
    for seed in range(runs):
        part = ll.evaluate(
            model, line, data, samples=200, seed=seed, reference=line.weights_at(1.0), points=[8]
        )
        apart, error = float(part.loss_difference[8]), float(part.loss_difference_se[8])
        hits += abs(apart - truth) <= 1.96 * error
    assert 0.88 <= hits / runs <= 0.99  # binomial: 95 +- 2.2


def test_a_reference_of_another_model_is_refused(trained):
    model, line, data, _ = trained
    with pytest.raises(ValueError, match="reference: names differ"):
        ll.evaluate(model, line, data, reference={"w": torch.zeros(1)})


class Surface(torch.nn.Module):
    """A model whose loss is a known function of two weights."""

    def __init__(self, function):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2).double())
        self.function = function

    def forward(self, x):
        return self.function(*self.w).expand(len(x), 1)


SURFACES = {
    "waves": lambda a, b: torch.sin(3 * a) + torch.cos(2 * b),
    "hill": lambda a, b: 2 * torch.exp(-8 * ((a - 0.3) ** 2 + (b + 0.2) ** 2)),
    "cliff": lambda a, b: torch.tanh(6 * (a - b)),
    "peak": lambda a, b: 1 / (1 + 10 * (a**2 + b**2)),
    "double well": lambda a, b: 4 * (a**2 - 0.25) ** 2 + b**2,
}


@pytest.mark.parametrize("name", SURFACES)
def test_refinement_keeps_its_promise_where_the_true_error_is_known(name):
    """CASES 5: accepting twice the error asked for fails on the cliff, where it is used up."""
    model = Surface(SURFACES[name])
    one = SimpleNamespace(x=torch.zeros(1, 1).double(), y=torch.zeros(1, 1).double())
    axis = np.linspace(-1, 1, 49)
    sides = [{"w": torch.tensor(side).double()} for side in ([1.0, 0.0], [0.0, 1.0])]
    plane = ll.Plane({"w": torch.zeros(2).double()}, tuple(sides), axis, axis)
    options = {"loss": lambda output, target: output.mean(), "metrics": {}}
    full = ll.evaluate(model, plane, one, **options)
    used = []
    for error in (0.01, 0.03, 0.06):
        got = ll.refine(model, plane, one, error=error, **options)
        used.append(float(np.abs(got.loss - full.loss).max()) / error)
        assert got.measured.sum() < 0.35 * full.loss.size
    assert max(used) <= 1
    if name == "cliff":
        assert min(used) > 0.5


@pytest.mark.parametrize(("slope", "error"), [(20, 0.1032), (60, 0.2272), (200, 0.0469)])
def test_refinement_goes_on_until_points_drawn_at_random_are_predicted(slope, error):
    """CASES 5: on these cliffs one that accepts twice the error stops with 1.8 to 2 times it."""
    model = Surface(lambda a: torch.tanh(slope * (a + 0.37)) + torch.sin(3 * a))
    model.w = torch.nn.Parameter(torch.zeros(1).double())
    one = SimpleNamespace(x=torch.zeros(1, 1).double(), y=torch.zeros(1, 1).double())
    ends = {"w": torch.zeros(1).double()}, {"w": torch.ones(1).double()}
    line = ll.Line(*ends, np.linspace(-1, 1, 257))
    loss = lambda output, target: output.mean()  # noqa: E731
    got = ll.refine(model, line, one, error=error, coarsest=32, loss=loss, metrics={})
    assert got.attrs["refine_error"] <= error


class Counting(nn.Module):
    """Counts the samples that pass, through all copies."""

    seen = 0

    def forward(self, x):
        Counting.seen += len(x)
        return x


def counting_line():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Counting(), nn.Linear(8, 3)).eval()
    weights = ll.weights_of(model)
    line = ll.Line(weights, ll.random_direction(weights, ignore_1d=False), [0.0, 0.5, 1.0])
    data = SimpleNamespace(x=torch.randn(1500, 6), y=torch.randint(0, 3, (1500,)))
    return model, line, data


@pytest.mark.parametrize("policy", ["frozen", "reestimated"])
def test_operations_are_those_of_the_samples_that_pass_the_model(policy):
    model, line, data = counting_line()
    Counting.seen = 0
    got = ll.evaluate(
        model, line, data, samples=200, batchnorm=policy, method="loop", progress=False
    )
    passed = got.attrs["flops"] / (2 * (6 * 8 + 8 * 3))
    assert passed == 3 * (200 + (1024 if policy == "reestimated" else 0))
    assert passed <= Counting.seen <= passed + 100  # the model is tried on a few before


def test_cost_goes_to_a_point_once_whatever_the_number_of_its_batches(monkeypatch):
    """On a clock on which moving takes 10 s and a pass of 8 samples 1 s."""
    from landscape_lib.evaluation.movable import Movable

    model, line, data = counting_line()
    move = Movable.move_to

    def slow_move(*args, **options):
        Counting.seen += 80
        move(*args, **options)

    monkeypatch.setattr(Movable, "move_to", slow_move)
    clock = SimpleNamespace(perf_counter=lambda: Counting.seen / 8)
    monkeypatch.setattr(sys.modules["landscape_lib.evaluation.cost"], "time", clock)
    assert ll.cost(model, line, data, batch_size=8).seconds == 3 * (10 + 1500 / 8)


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1.0, 1e6])
def test_refinement_does_not_depend_on_the_unit_of_the_loss(scale):
    """A cubic spline gives a cubic exactly: two levels are measured, and a tenth to check."""
    model = Surface(lambda a, b: scale * (a**3 + a**2 + 3 * b**2))
    one = SimpleNamespace(x=torch.zeros(1, 1).double(), y=torch.zeros(1, 1).double())
    axis = np.linspace(-1, 1, 33)
    sides = [{"w": torch.tensor(side).double()} for side in ([1.0, 0.0], [0.0, 1.0])]
    plane = ll.Plane({"w": torch.zeros(2).double()}, tuple(sides), axis, axis)
    options = {"loss": lambda output, target: output.mean(), "metrics": {}}
    got = ll.refine(model, plane, one, error=1e-3 * scale, **options)
    full = ll.evaluate(model, plane, one, **options)
    assert got.measured.sum() == 81 + 8
    assert float(abs(got.loss - full.loss).max()) < 1e-12 * scale


def test_refinement_reads_batches_once(trained):
    model, line, data, _ = trained
    pairs = [(data.x[k : k + 500], data.y[k : k + 500]) for k in range(0, 1437, 500)]
    kept = ll.refine(model, line, pairs, error=1e-3)
    assert ll.refine(model, line, iter(pairs), error=1e-3).equals(kept)
    both = torch.utils.data.TensorDataset(data.x, data.y)
    source = torch.Generator().manual_seed(0)
    shuffled = torch.utils.data.DataLoader(both, 500, shuffle=True, generator=source)
    before = torch.get_rng_state()
    got = ll.refine(model, line, shuffled, error=1e-3, batchnorm="batch")
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(got.loss, kept.loss, rtol=1e-9)


def test_refinement_names_what_can_be_watched_before_any_work(trained):
    model, line, data, _ = trained
    forbidden = lambda output, target: pytest.fail("the model was run")  # noqa: E731
    with pytest.raises(ValueError, match=r"variable: expected one of \['loss'\], got 'accuracy'"):
        ll.refine(model, line, data, error=1.0, variable="accuracy", metrics={}, loss=forbidden)
    with pytest.raises(TypeError, match="metrics: expected a mapping .*, got int"):
        ll.refine(model, line, data, error=1.0, metrics=5)
    with pytest.raises(ValueError, match="error: expected a number above 0, got True"):
        ll.refine(model, line, data, error=True)
    with pytest.raises(ValueError, match="tolerance: expected a number above 0, got True"):
        ll.evaluate(model, line, data, tolerance=True)


def test_a_tolerance_waits_for_the_first_sample_that_counts(trained):
    """Of 1,437 samples 10 have a target: among the first 256 there is none for 1 seed in 7."""
    model, line, data, _ = trained
    y = torch.full_like(data.y, -100)
    y[::144] = data.y[::144]
    few = SimpleNamespace(x=data.x, y=y)
    full = ll.evaluate(model, line, few)
    for seed in range(24):
        got = ll.evaluate(model, line, few, tolerance=0.05, seed=seed, points=[0, 5])
        assert np.isfinite(got.loss[[0, 5]]).all() and np.isfinite(got.accuracy[[0, 5]]).all()
        assert (abs(got.loss - full.loss)[[0, 5]] < 5 * 0.05).all()


def test_a_tolerance_changes_nothing_where_there_is_no_standard_error(trained):
    """Not the batches, on which a measure of batches depends (CASES N6)."""
    model, line, data, _ = trained

    def contrast(output, target):  # each sample against the others of its batch
        return F.cross_entropy(output @ output.T, torch.arange(len(output)))

    plain = ll.evaluate(model, line, data, loss=contrast)
    assert ll.evaluate(model, line, data, loss=contrast, tolerance=0.1).loss.equals(plain.loss)


def test_points_at_once_follow_the_largest_batch(trained, monkeypatch):
    model, line, data, _ = trained
    room = sys.modules["landscape_lib.evaluation.task"]
    asked = []
    monkeypatch.setattr(room, "points_at_once", lambda *given: asked.append(given[2]) or 4)
    ll.evaluate(model, line, data, tolerance=1e-9, batch_size=500, method="vmap")
    batches = [(data.x[:3], data.y[:3]), (data.x[3:900], data.y[3:900])]
    ll.evaluate(model, line, batches, method="vmap")
    assert asked == [500, 897]
