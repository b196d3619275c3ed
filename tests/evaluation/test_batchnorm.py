"""The four batch-norm policies against their definitions."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from test_evaluate import make_plane
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation import batchnorm


def build():
    return CASES["cnn with batch norm"].build()


def moved_copy(model, slice, *coordinates):
    moved = copy.deepcopy(model).eval()
    ll.load_weights(moved, slice.weights_at(*coordinates))
    return moved


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_batch_uses_the_statistics_of_each_batch(method):  # MPO paper: as in training
    model, data = build()
    plane = make_plane(model)
    got = ll.evaluate(model, plane, data, batchnorm="batch", batch_size=23, method=method)
    for alpha in plane.alphas:
        moved = moved_copy(model, plane, alpha, 0.25).train()
        expected = F.cross_entropy(moved(data.x), data.y).item()
        assert float(got.loss.sel(alpha=alpha, beta=0.25)) == pytest.approx(expected, rel=1e-10)
    halves = ll.evaluate(model, plane, data, batchnorm="batch", batch_size=12, method=method)
    assert not np.allclose(got.loss, halves.loss)  # that is why the batch size must be said


def test_reestimated_averages_over_the_calibration_batches():
    model, data = build()
    plane = make_plane(model)
    got = ll.evaluate(
        model, plane, data, batchnorm="reestimated", calibration_samples=16, batch_size=8, seed=5
    )
    chosen = torch.randperm(23, generator=torch.Generator().manual_seed(5))[:16].sort().values
    for alpha in plane.alphas:
        moved = moved_copy(model, plane, alpha, 0.0)
        inputs = moved[0](data.x[chosen]).detach()
        halves = inputs.split(8)
        mean = torch.stack([h.mean((0, 2, 3)) for h in halves]).mean(0)
        variance = torch.stack([h.var((0, 2, 3), unbiased=True) for h in halves]).mean(0)
        moved[1].running_mean.copy_(mean)
        moved[1].running_var.copy_(variance)
        expected = F.cross_entropy(moved(data.x), data.y).item()
        assert float(got.loss.sel(alpha=alpha, beta=0)) == pytest.approx(expected, rel=1e-10)


def test_reestimated_takes_the_first_samples_of_an_iterable_and_reads_it_once():
    model, data = build()
    plane = make_plane(model)
    batches = zip(data.x.split(5), data.y.split(5), strict=True)
    got = ll.evaluate(model, plane, batches, batchnorm="reestimated", calibration_samples=12)
    for alpha in plane.alphas:
        moved = moved_copy(model, plane, alpha, 0.25)
        batchnorm.reestimate(moved, data.x[:12].split(5))
        expected = F.cross_entropy(moved(data.x), data.y).item()
        assert float(got.loss.sel(alpha=alpha, beta=0.25)) == pytest.approx(expected, rel=1e-10)


def two_models():
    first, data = build()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for tensor in (*second.parameters(), second[1].running_mean):
            tensor.add_(0.2)
        second[1].running_var.mul_(3)
    return first, second, data


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_interpolated_meets_both_models_and_mixes_between_them(method):
    first, second, data = two_models()
    line = ll.Line.between(ll.weights_of(first), ll.weights_of(second), [0.0, 0.25, 1.0])
    statistics = [batchnorm.statistics_of(m) for m in (first, second)]
    got = ll.evaluate(
        first, line, data, batchnorm="interpolated", statistics=statistics, method=method
    )
    for alpha, own in ((0.0, first), (1.0, second)):
        expected = F.cross_entropy(copy.deepcopy(own).eval()(data.x), data.y).item()
        assert float(got.loss.sel(alpha=alpha)) == pytest.approx(expected, rel=1e-10)
    middle = moved_copy(first, line, 0.25)
    for name in ("running_mean", "running_var"):
        mixed = 0.75 * getattr(first[1], name) + 0.25 * getattr(second[1], name)
        getattr(middle[1], name).copy_(mixed)
    expected = F.cross_entropy(middle(data.x), data.y).item()
    assert float(got.loss.sel(alpha=0.25)) == pytest.approx(expected, rel=1e-10)
    assert got.attrs["variance_clamped_points"] == 0


def test_extrapolated_variance_stays_positive_and_is_said():  # METHODS D, pitfalls
    first, second, data = two_models()
    line = ll.Line.between(ll.weights_of(first), ll.weights_of(second), [-1.0, 0.0, 1.0])
    statistics = [batchnorm.statistics_of(m) for m in (first, second)]
    got = ll.evaluate(first, line, data, batchnorm="interpolated", statistics=statistics)
    assert got.attrs["variance_clamped_points"] == 1  # 2 v - 3 v < 0
    assert not got.loss.isnull().any()


@pytest.mark.filterwarnings("ignore:batchnorm='frozen'")
@pytest.mark.parametrize("policy", ["batch", "reestimated"])
def test_scale_of_the_weights_before_the_layer_is_forgotten(policy):  # oracle 31, per filter
    model, data = build()
    model[1].eps = 1e-14
    scaled = {k: v.clone() for k, v in ll.weights_of(model).items()}
    factors = torch.tensor([0.5, 2.0, 3.0, 7.0], dtype=torch.float64)
    scaled["0.weight"] *= factors[:, None, None, None]
    scaled["0.bias"] *= factors
    line = ll.Line.between(ll.weights_of(model), scaled, [0.0, 1.0])
    same = ll.evaluate(model, line, data, batchnorm=policy, batch_size=23)
    assert float(same.loss[0]) == pytest.approx(float(same.loss[1]), rel=1e-9)
    frozen = ll.evaluate(model, line, data)  # keeps the sensitivity
    assert abs(float(frozen.loss[0] - frozen.loss[1])) > 1e-3


@pytest.mark.parametrize("policy", batchnorm.POLICIES)
def test_no_policy_changes_the_caller(policy):
    model, data = build()
    model.train()
    before = copy.deepcopy(model.state_dict())
    plane = make_plane(model)
    statistics = [batchnorm.statistics_of(model)] * 3 if policy == "interpolated" else None
    ll.evaluate(model, plane, data, batchnorm=policy, statistics=statistics)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_bad_statistics_are_named():
    model, data = build()
    plane = make_plane(model)
    with pytest.raises(ValueError, match="statistics: .*each of the 3 vectors.*got none"):
        ll.evaluate(model, plane, data, batchnorm="interpolated")
    with pytest.raises(ValueError, match="statistics: only for"):
        ll.evaluate(model, plane, data, statistics=[])
    with pytest.raises(ValueError, match="method: .*'reestimated'"):
        ll.evaluate(model, plane, data, batchnorm="reestimated", method="vmap")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
    with pytest.raises(ValueError, match="batch-norm layers"):
        ll.evaluate(
            plain, make_plane(plain), data, batchnorm="interpolated", statistics=[{}, {}, {}]
        )


def test_a_line_between_models_says_that_statistics_stay():
    """CASES N15: with frozen statistics the end of the line is not the second model."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    data = SimpleNamespace(x=torch.randn(8, 4), y=torch.arange(8) % 3)
    start = ll.weights_of(model)
    line = ll.Line.between(start, {n: 2 * t + 1 for n, t in start.items()}, [0.0, 1.0])
    with pytest.warns(UserWarning, match="statistics_of"):
        ll.evaluate(model, line, data)
    statistics = [ll.batchnorm.statistics_of(model)] * 2
    ll.evaluate(model, line, data, batchnorm="interpolated", statistics=statistics)
    ll.evaluate(model, ll.Line(start, start, [0.0]), data)
