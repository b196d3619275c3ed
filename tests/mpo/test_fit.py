"""Fitting a slice to a pattern: METHODS oracles 1, 2, 5, 9 and 11, resuming, and the quality."""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.mpo.draws import coordinates, draw_cells, draw_images, trained_cells
from landscape_lib.mpo.settings import Settings
from landscape_lib.mpo.span import initial_vectors
from landscape_lib.mpo.steps import Fitting
from landscape_lib.runtime import generator
from landscape_lib.training.checkpoint import CheckpointMismatch
from landscape_lib.weights import dot, flatten, norm, subtract

PATTERN = ["#.#.", ".##.", "...#"]
DIGITS = ll.data.load("digits", "train", samples=240, device="cpu", dtype=torch.float64)


def mlp(*between: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 12), *between, nn.ReLU(), nn.Linear(12, 10)]
        return nn.Sequential(*layers).double()


def cnn() -> nn.Module:
    return ll.models.small_cnn(
        channels=(3, 4), pool=True, batchnorm=True, hidden=6, seed=0
    ).double()


def fit(model: nn.Module | None = None, pattern: Any = PATTERN, **settings: Any) -> ll.mpo.MPOFit:
    defaults: dict[str, Any] = {
        "iterations": 6,
        "cells": 2,
        "batch_size": 5,
        "lr": 1e-2,
        "shared_batch": False,
        "schedule": "constant",
        "record_every": 2,
        "progress": False,
    }
    data = settings.pop("data", DIGITS)
    return ll.mpo.fit(model or mlp(), pattern, data, **(defaults | settings))


def assert_same_fit(first: ll.mpo.MPOFit, second: ll.mpo.MPOFit) -> None:
    for one, other in zip(
        (first.origin, *first.directions), (second.origin, *second.directions), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert first.scale == second.scale
    assert first.history.batch_losses == second.history.batch_losses
    assert first.history.epochs == second.history.epochs


# --- oracle 5: one cell is ordinary training ----------------------------------------------------


@pytest.mark.parametrize("parametrization", ["paper", "code"])
@pytest.mark.parametrize("build", [mlp, lambda: mlp(nn.Dropout(0.3)), cnn])
def test_oracle_5_a_single_cell_is_ordinary_training_bit_for_bit(build, parametrization):
    model = build()
    history = ll.train(
        model,
        DIGITS,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        epochs=2,
        batch_size=40,
        seed=7,
    )
    got = fit(
        build(),
        [[1]],
        iterations=12,
        cells=1,
        batch_size=40,
        seed=7,
        origin=ll.weights_of(build()),
        parametrization=parametrization,
    )
    assert got.method == "loop"
    assert got.history.batch_losses == history.batch_losses
    trained = ll.weights_of(model)
    assert all(torch.equal(got.origin[name], trained[name]) for name in trained)
    assert got.scale == 0.1
    if parametrization == "paper":  # there up is a vector of its own, and it has not moved
        start = fit(build(), [[1]], iterations=1, cells=1, batch_size=40, seed=7)
        assert all(torch.equal(got.up[name], start.up[name]) for name in trained)


def test_oracle_5_the_middle_cell_of_a_larger_pattern():
    middle = fit(pattern=["...", ".#.", "..."], cells=(1, 0), method="loop")
    alone = fit(pattern=["#"], cells=1)
    assert middle.history.batch_losses == alone.history.batch_losses
    assert all(torch.equal(middle.origin[name], alone.origin[name]) for name in alone.origin)
    assert math.isnan(middle.history.epochs[0]["high_loss"])


# --- oracle 9: what cannot be fitted ------------------------------------------------------------


def test_oracle_9_a_linear_softmax_cannot_have_a_bump_and_a_deeper_network_can():
    settings: dict[str, Any] = {
        "iterations": 300,
        "cells": (2, 1),
        "batch_size": 32,
        "lr": 1e-2,
        "record_every": 300,
    }
    gaps = {}
    for name, model in {"linear": ll.models.mlp(64, (), seed=0).double(), "deep": mlp()}.items():
        got = fit(model, "#.#", **settings)
        left, middle, right = ll.evaluate(model, got.slice(), DIGITS, progress=False).loss.values
        gaps[name] = middle - (left + right) / 2
    assert gaps["linear"] <= 1e-12  # cross-entropy is convex in the weights of a linear model
    assert gaps["deep"] > 0.5


# --- the slice ----------------------------------------------------------------------------------


def test_oracle_1_and_2_hold_for_the_result():
    for settings in ({}, {"parametrization": "code"}, {"pattern": np.eye(3)[None] * np.eye(3)}):
        got = fit(**settings)
        assert got.history.epochs[-1]["scale"] == got.scale != 0.1
        length = norm(got.right)
        for k, direction in enumerate(got.directions):
            assert norm(direction) == pytest.approx(length, rel=1e-12)
            for other in got.directions[:k]:
                assert abs(dot(direction, other)) < 1e-13 * length**2
        points, cells = got.slice(), got.slice().coordinates
        for i, j in [(0, 1), (2, 5), (1, 8)]:
            apart = subtract(points.weights_at(*cells[i]), points.weights_at(*cells[j]))
            expected = abs(got.scale) * length * math.dist(cells[i], cells[j])
            assert norm(apart) == pytest.approx(expected, rel=1e-12)


def test_the_plane_has_the_cells_of_the_pattern_columns_along_alpha():
    got = fit()
    plane = got.plane()
    assert plane.alphas.tolist() == [-2, -1, 0, 1] and plane.betas.tolist() == [-1, 0, 1]
    assert got.pattern.shape == (3, 4)
    for i, j in [(0, 0), (1, 2), (2, 3)]:  # METHODS A: O + s((i - H // 2) up + (j - W // 2) right)
        expected = flatten(got.origin) + got.scale * (
            (i - 1) * flatten(got.up) + (j - 2) * flatten(got.right)
        )
        point = flatten(plane.weights_at(j - 2, i - 1))
        torch.testing.assert_close(point, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(flatten(plane.weights_at(0, 0)), flatten(got.origin))

    model = mlp()
    by_plane = ll.evaluate(model, plane, DIGITS, progress=False)
    by_slice = ll.evaluate(model, got.slice(), DIGITS, progress=False)
    assert by_plane.loss.dims == ("alpha", "beta")
    np.testing.assert_allclose(
        by_plane.loss.values.T, by_slice.loss.values.reshape(3, 4), rtol=1e-12
    )
    assert not np.allclose(by_plane.loss.values.T, by_plane.loss.values.T[::-1])


def test_a_fitted_plane_shows_its_pattern_and_not_a_mirrored_or_turned_one():
    pattern = ll.patterns.from_drawing(["###", "#..", "..."])
    got = fit(pattern=pattern, iterations=250, cells=4, lr=2e-2, parametrization="code")
    surface = ll.evaluate(mlp(), got.plane(), DIGITS, progress=False)
    shown = surface.accuracy.values.T > ll.mpo.quality(surface, pattern).threshold
    assert np.array_equal(shown, pattern)
    assert ll.mpo.quality(surface, pattern).gap > 0.4
    assert got.history.epochs[-1]["gap"] > 0.4


@pytest.mark.parametrize("shape", [(5,), (2, 3, 2), (2, 2, 2, 2)])
def test_other_dimensions(shape):
    pattern = np.indices(shape).sum(0) % 2
    got = fit(pattern=pattern)
    assert len(got.directions) == len(shape) and len(got.slice()) == pattern.size
    # Direction k is the axis -1 - k of the pattern.
    cells = got.slice().coordinates.reshape(*shape, len(shape))
    for cell in np.ndindex(shape):
        middle = [side // 2 for side in shape]
        assert cells[cell].tolist() == [c - m for c, m in zip(cell, middle, strict=True)][::-1]
    with pytest.raises(
        ValueError, match=r"pattern: a plane needs one of two dimensions, got shape"
    ):
        got.plane()
    loss = ll.evaluate(mlp(), got.slice(), DIGITS, progress=False).loss
    assert loss.dims == ("point",) and loss.notnull().all()


@pytest.mark.parametrize("method", ["loop", "vmap", "basis"])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_oracle_11_the_map_has_the_losses_of_training(build, method):
    # All cells, one shared minibatch of all images, at the weights before the only step.
    data = DIGITS.subset(30)
    got = fit(
        build(),
        data=data,
        iterations=2,
        cells=12,
        batch_size=30,
        lr=1e-300,
        prune=False,
        shared_batch=True,
        record_every=1,
        method=method,
    )
    surface = ll.evaluate(build(), got.plane(), data, batchnorm="batch", progress=False)
    quality = ll.mpo.quality(surface, PATTERN)
    last = got.history.epochs[-1]
    assert quality.low_loss == pytest.approx(last["low_loss"], rel=1e-10)
    assert quality.high_loss == pytest.approx(last["high_loss"], rel=1e-10)
    assert quality.gap == pytest.approx(last["gap"], abs=1e-12)


# --- defaults and procedures --------------------------------------------------------------------


def test_a_fit_without_arguments_draws_a_picture():
    letter = ["##...", "#....", "####.", "#....", "#...."]
    got = ll.mpo.fit(mlp(), letter, DIGITS, progress=False)
    surface = got.map(mlp(), DIGITS, progress=False)
    quality = got.quality(surface)
    assert quality.gap > 0.5 and quality.iou > 0.7
    # CASES, issue G 6: the map is compared with the pattern as it is, without a transpose.
    values, low = surface.accuracy.values, got.pattern
    assert values[low].mean() - values[~low].mean() == pytest.approx(quality.gap)
    assert got.history.epochs[-1]["iteration"] == 1000


def test_the_defaults_of_small_patterns_and_small_data():
    few = DIGITS.subset(3)
    settings = {"progress": False, "record_every": 1000}
    got = ll.mpo.fit(mlp(), ["#."], few, **settings)
    own = {"cells": 1, "shared_batch": False, "lr": 2e-3, "schedule": "one-cycle"}
    same = ll.mpo.fit(mlp(), ["#."], few, iterations=1000, batch_size=3, **own, **settings)
    assert_same_fit(got, same)
    # 112 LOW and 113 HIGH cells, none pruned: 500 x 113 / 24 steps let each be drawn 500 times.
    board = Settings.of("fast", np.indices((15, 15)).sum(0) % 2 == 1, 240, **GIVEN)
    assert (board.cells, board.batch_size, board.iterations) == ((24, 24), 4, 2355)


GIVEN: dict[str, Any] = dict.fromkeys(Settings.__dataclass_fields__) | {
    "seed": 0,
    "tau": 2.5,
    "high_weight": 1.0,
    "prune": True,
    "parametrization": "paper",
    "initialization": "xavier",
    "scale": 0.1,
    "method": "auto",
    "record_every": 100,
}


def test_the_papers_procedure_is_one_argument_and_explicit_ones_win():  # METHODS A
    pattern = ll.patterns.from_drawing(PATTERN)
    paper = Settings.of("paper", pattern, 60_000, **GIVEN)
    assert (paper.cells, paper.batch_size, paper.lr) == ((50, 50), 512, 3e-4)
    assert paper.shared_batch and paper.schedule == "constant" and paper.iterations == 11_800
    cifar = Settings.of("paper", pattern, 50_000, **GIVEN | {"batch_size": 256})
    assert cifar.iterations == 19_600
    small = Settings.of("paper", pattern, 200, **GIVEN | {"lr": 1e-3, "cells": [3, 2]})
    assert (small.batch_size, small.iterations, small.lr) == (200, 100, 1e-3)
    assert small.cells == (3, 2)
    got = ll.mpo.fit(mlp(), PATTERN, DIGITS, procedure="paper", iterations=3, progress=False)
    written = {"cells": 50, "batch_size": 240, "lr": 3e-4, "shared_batch": True}
    assert_same_fit(got, fit(iterations=3, record_every=100, **written))


def test_two_numbers_of_cells_may_be_a_list():
    assert_same_fit(fit(cells=[2, 1]), fit(cells=(2, 1)))


# --- the map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [PATTERN, ["##.", "#..", "..."], np.eye(4)[:3] > 0])
def test_a_map_has_the_rows_and_columns_of_its_pattern(pattern):
    got = fit(pattern=pattern, iterations=2)
    surface = got.map(mlp(), DIGITS, progress=False)
    assert surface.accuracy.dims == ("beta", "alpha")
    assert all(values.shape == got.pattern.shape for values in surface.data_vars.values())
    for i, j in np.ndindex(got.pattern.shape):
        alpha, beta = j - got.pattern.shape[1] // 2, i - got.pattern.shape[0] // 2
        weights = got.plane().weights_at(alpha, beta)
        output = torch.func.functional_call(mlp(), weights, (DIGITS.x,))
        loss = F.cross_entropy(output, DIGITS.y).item()
        assert surface.loss.values[i, j] == pytest.approx(loss, rel=1e-10)
        assert surface.loss.sel(alpha=alpha, beta=beta).item() == surface.loss.values[i, j]


@pytest.mark.parametrize("shape", [(5,), (2, 3, 2)])
def test_maps_of_other_dimensions_have_the_shape_of_the_pattern(shape):
    got = fit(pattern=np.indices(shape).sum(0) % 2, iterations=2)
    surface = got.map(mlp(), DIGITS, progress=False)
    flat = ll.evaluate(mlp(), got.slice(), DIGITS, progress=False)
    assert surface.loss.dims == tuple(f"axis_{k}" for k in range(len(shape)))
    np.testing.assert_array_equal(surface.loss.values, flat.loss.values.reshape(shape))
    assert surface.attrs["fingerprint"] == flat.attrs["fingerprint"]
    assert got.quality(surface) == ll.mpo.quality(flat, got.pattern)


def test_a_map_uses_batch_statistics_where_training_did():
    got = fit(cnn(), iterations=2)
    told = {"batch_size": 100, "progress": False}
    by_hand = ll.evaluate(cnn(), got.plane(), DIGITS, batchnorm="batch", **told)
    np.testing.assert_array_equal(got.map(cnn(), DIGITS, **told).loss.values, by_hand.loss.values.T)
    frozen = ll.evaluate(cnn(), got.plane(), DIGITS, **told)
    np.testing.assert_array_equal(
        got.map(cnn(), DIGITS, batchnorm="frozen", **told).loss.values, frozen.loss.values.T
    )


# --- how it is fitted ---------------------------------------------------------------------------


@pytest.mark.parametrize("parametrization", ["paper", "code"])
@pytest.mark.parametrize("shared", [False, True])
def test_all_methods_take_the_same_steps(shared, parametrization):
    settings = {"shared_batch": shared, "parametrization": parametrization, "clip": 0.5}
    loop, vmap, basis = (
        fit(cnn(), method=method, chunk_size=3, **settings) for method in ("loop", "vmap", "basis")
    )
    for other in (vmap, basis):
        np.testing.assert_allclose(other.history.batch_losses, loop.history.batch_losses, atol=1e-7)
        assert other.scale == pytest.approx(loop.scale, rel=1e-9)


def test_a_fit_agrees_with_one_written_out():
    """Three vectors, Gram-Schmidt, Adam and the loss of the paper's eq. 1 to 3 in plain PyTorch."""
    got = fit(method="loop", shared_batch=True, iterations=4, tau=2.4, high_weight=0.6, clip=0.3)
    shapes = ll.weights_of(mlp())
    drawn = initial_vectors(mlp(), 2, "xavier", None, 0)
    origin, phi, up = (vector.clone().requires_grad_() for vector in drawn)
    s = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([origin, phi, up, s], lr=1e-2)
    pattern = ll.patterns.from_drawing(PATTERN)
    groups, places = trained_cells(pattern, True), coordinates(pattern)
    draws = zip(draw_cells(groups, (2, 2), 0), draw_images(len(DIGITS), 5, 0), strict=True)
    model, losses = mlp(), []
    for _, (cells, chosen) in zip(range(4), draws, strict=False):
        q = phi - (phi @ up) / (up @ up) * up
        right = q * up.norm() / q.norm()
        each = []
        for cell in cells.tolist():
            alpha, beta = places[cell]
            point = origin + s * (alpha * right + beta * up)
            output = torch.func.functional_call(
                model, ll.weights.unflatten(point, shapes), (DIGITS.x[chosen],)
            )
            each.append(F.cross_entropy(output, DIGITS.y[chosen]))
        high = torch.stack(each[2:]).clamp(max=2.4).mean()
        objective = torch.stack(each[:2]).mean() - 0.6 * high
        optimizer.zero_grad()
        objective.backward()
        nn.utils.clip_grad_norm_([origin, phi, up, s], 0.3)
        optimizer.step()
        losses.append(objective.item())
    assert got.history.batch_losses == pytest.approx(losses, rel=1e-10)
    torch.testing.assert_close(flatten(got.origin), origin.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(flatten(got.up), up.detach(), rtol=1e-9, atol=1e-10)
    assert got.scale == pytest.approx(s.item(), rel=1e-9)


def test_equal_seeds_give_equal_bits_and_leave_the_caller_alone():
    model = cnn()
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    first = fit(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    torch.rand(3)
    assert_same_fit(first, fit(cnn()))
    assert fit(cnn(), seed=1).history.batch_losses != first.history.batch_losses


def test_cells_and_images_are_drawn_without_replacement():
    low, high = trained_cells(ll.patterns.draw("star", 20), True)
    assert not set(low.tolist()) & set(high.tolist())
    for drawn, _ in zip(draw_cells((low, high), (9, 7), 0), range(20), strict=False):
        assert len(set(drawn.tolist())) == 16
        assert set(drawn[:9].tolist()) <= set(low.tolist())
        assert set(drawn[9:].tolist()) <= set(high.tolist())
    images = draw_images(10, 4, 0)
    seen = torch.cat([next(images) for _ in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))


def test_fewer_cells_than_asked_for_and_pruning():
    got = fit(cells=(50, 3))
    assert got.history.batch_losses
    whole = ll.patterns.from_drawing(np.arange(49).reshape(7, 7) < 21)
    assert len(trained_cells(whole, True)[0]) == 7 and len(trained_cells(whole, False)[0]) == 21
    pruned, all_cells = (fit(pattern=whole, prune=p) for p in (True, False))
    assert pruned.history.batch_losses != all_cells.history.batch_losses


def test_schedules_and_the_history():
    constant, cycle = fit(iterations=7), fit(iterations=10, schedule="one-cycle", record_every=1)
    assert [row["iteration"] for row in constant.history.epochs] == [2, 4, 6, 7]
    assert {row["learning_rate"] for row in constant.history.epochs} == {1e-2}
    rates = [row["learning_rate"] for row in cycle.history.epochs]
    assert max(rates) == pytest.approx(1e-2) and rates[0] < 1e-3 and rates[-1] < 1e-5
    assert fit(iterations=1, schedule="one-cycle").history.epochs[0]["iteration"] == 1
    losses = constant.history.batch_losses
    assert constant.history.epochs[1]["loss"] == pytest.approx((losses[2] + losses[3]) / 2)
    assert set(constant.history.curves()) >= {"gap", "low_loss", "high_accuracy", "scale"}
    assert constant.history.seconds > 0


def test_a_fit_stops_once_the_gap_is_reached(tmp_path):
    settings = {"iterations": 400, "lr": 2e-2, "record_every": 20, "stop_gap": 0.3}
    got = fit(**settings, checkpoint=tmp_path / "fit.pt")
    gaps = [row["gap"] for row in got.history.epochs]
    assert gaps[-1] >= 0.3 > max(gaps[:-1]) and len(gaps) < 20
    assert_same_fit(fit(**settings, checkpoint=tmp_path / "fit.pt"), got)


def test_low_precision_keeps_float32_vectors():
    model, data = mlp().float(), DIGITS.to(dtype=torch.float32)
    low, full = (fit(model, data=data, dtype=dtype) for dtype in (torch.bfloat16, None))
    assert {t.dtype for t in low.origin.values()} == {torch.float32}
    assert low.history.batch_losses != full.history.batch_losses
    assert low.history.batch_losses == pytest.approx(full.history.batch_losses, abs=0.1)
    assert abs(dot(low.up, low.right)) < 1e-6 * norm(low.up) ** 2


def test_targets_that_are_no_classes_have_losses_but_no_accuracies():
    data = SimpleNamespace(x=DIGITS.x, y=DIGITS.x.flatten(1)[:, :10])
    got = fit(data=data, loss=F.mse_loss, tau=5.0)
    assert got.history.epochs[0]["low_loss"] > 0 and math.isnan(got.history.epochs[0]["gap"])
    surface = ll.evaluate(mlp(), got.plane(), data, loss=F.mse_loss, progress=False)
    assert math.isnan(ll.mpo.quality(surface, PATTERN, variable="loss").gap)


def test_an_objective_that_is_not_a_number_ends_the_fit():
    data = SimpleNamespace(x=DIGITS.x.clone(), y=DIGITS.y)
    data.x[3] = math.nan
    with pytest.raises(FloatingPointError, match="the objective became NaN at or before iteration"):
        fit(data=data, iterations=20)


# --- interruption -------------------------------------------------------------------------------


def noise(x: Tensor, source: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=source, dtype=x.dtype)


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupt the fit in the step of that number."""
    calls, take = itertools.count(1), Fitting.step

    def take_or_stop(*arguments: Any) -> Tensor:
        if next(calls) == step:
            raise KeyboardInterrupt
        return take(*arguments)

    patch.setattr(Fitting, "step", take_or_stop)


@pytest.mark.parametrize("method", ["loop", "vmap", "basis"])
@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_an_interrupted_fit_resumes_to_the_same_bits(stop, method, tmp_path, monkeypatch):
    path = tmp_path / "fit.pt"
    settings = {"iterations": 7, "method": method, "schedule": "one-cycle"}
    settings |= {"augment": noise}
    whole = fit(mlp(nn.Dropout(0.3)), **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(stop, patch)
        fit(mlp(nn.Dropout(0.3)), checkpoint=path, **settings)
    assert path.exists() == (stop > 2)
    resumed = fit(mlp(nn.Dropout(0.3)), checkpoint=path, **settings)
    assert_same_fit(resumed, whole)
    stop_at(1, monkeypatch)
    again = fit(mlp(nn.Dropout(0.3)), checkpoint=path, **settings)
    assert_same_fit(again, whole)  # a finished fit is loaded, not trained


KILLED = """
import os, signal, sys
import torch
sys.path.insert(0, {tests!r})
import test_fit
from landscape_lib.training.checkpoint import Run
save, saved = Run.save, []
def save_then_die(run, path):
    save(run, path)
    saved.append(path)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Run.save = save_then_die
test_fit.fit(checkpoint={path!r})
"""


def test_a_killed_fit_resumes_to_the_same_bits(tmp_path):
    path = str(tmp_path / "fit.pt")
    code = KILLED.format(tests=str(Path(__file__).parent), path=path)
    environment = os.environ | {"PYTHONPATH": str(Path(ll.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert torch.load(path, weights_only=True)["history"]["epochs"][-1]["iteration"] == 4
    assert_same_fit(fit(checkpoint=path), fit())


def test_every_row_of_the_history_can_be_looked_at(tmp_path):
    seen: list[ll.mpo.MPOFit] = []
    last = fit(on_record=seen.append)
    assert [len(one.history.epochs) for one in seen] == [1, 2, 3]
    assert_same_fit(seen[-1], last)
    # A fit so far is that of the same run stopped there, not a view of what is still being trained.
    path = tmp_path / "fit.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=path, on_record=interrupt_at(2))
    early = torch.load(path, weights_only=True)["model"]["vectors"][0]
    torch.testing.assert_close(flatten(seen[1].origin), early, rtol=0, atol=0)
    assert not torch.equal(flatten(seen[0].origin), flatten(seen[1].origin))
    resumed: list[ll.mpo.MPOFit] = []
    assert_same_fit(fit(checkpoint=path, on_record=resumed.append), last)
    assert [len(one.history.epochs) for one in resumed] == [3]


@pytest.mark.parametrize("method", ["loop", "basis"])
def test_random_numbers_of_on_record_leave_those_of_the_fit_alone(method, tmp_path):  # CASES N22
    path = tmp_path / "fit.pt"
    settings = {"method": method, "model": mlp(nn.Dropout(0.3)), "iterations": 8}
    drawn: list[float] = []

    def draw(so_far: ll.mpo.MPOFit) -> None:
        drawn.append(torch.rand(7).sum().item())
        interrupt_at(stop)(so_far)

    stop = 0
    whole = fit(on_record=draw, **settings)
    assert_same_fit(whole, fit(**settings))
    first, stop = list(drawn), 2
    with pytest.raises(KeyboardInterrupt):
        fit(on_record=draw, checkpoint=path, **settings)
    stop = 0
    drawn.clear()
    assert_same_fit(fit(on_record=draw, checkpoint=path, **settings), whole)
    assert drawn == first[2:]


def interrupt_at(row: int):
    def interrupt(fit: ll.mpo.MPOFit) -> None:
        if len(fit.history.epochs) == row:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize(
    "change, named",
    [
        ({"pattern": ["#.#.", ".##.", "#..."]}, "pattern"),
        ({"lr": 1e-3}, "lr"),
        ({"seed": 1}, "initial weights, seed"),
        ({"tau": 2.0}, "tau"),
        ({"parametrization": "code"}, "architecture, parametrization"),
        ({"model": mlp(nn.Identity())}, "network"),
        ({"method": "loop"}, "method"),
        ({"shared_batch": True}, "shared_batch"),
    ],
    ids=str,
)
def test_the_checkpoint_of_another_fit_is_refused(change, named, tmp_path):
    path = tmp_path / "fit.pt"
    fit(iterations=2, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(CheckpointMismatch, match=f"{named}.* differ"):
        fit(iterations=2, checkpoint=path, **change)
    assert path.read_bytes() == before


# --- quality ------------------------------------------------------------------------------------


def surface_of(low: float, high: float, pattern: Any = PATTERN) -> xr.Dataset:
    """A map on which the cells of each class are all alike, over (alpha, beta)."""
    cells = ll.patterns.from_drawing(pattern).T
    return xr.Dataset(
        {
            "accuracy": (("alpha", "beta"), np.where(cells, low, high)),
            "loss": (("alpha", "beta"), np.where(cells, 1 - low, 3 - high)),
        }
    )


def test_quality_of_a_perfect_map():
    quality = ll.mpo.quality(surface_of(0.9, 0.2), PATTERN)
    assert quality.gap == pytest.approx(0.7) and quality.iou == 1.0
    assert (quality.low_accuracy, quality.high_accuracy) == pytest.approx((0.9, 0.2))
    assert (quality.low_loss, quality.high_loss) == pytest.approx((0.1, 2.8))
    assert quality.loss_gap == pytest.approx(2.7)
    assert quality.threshold == pytest.approx(0.55) and quality.cells == 12
    by_loss = ll.mpo.quality(surface_of(0.9, 0.2), PATTERN, variable="loss")
    assert by_loss.iou == 1.0 and by_loss.threshold == pytest.approx(1.45)


def test_quality_is_honest_about_a_bad_map():
    assert ll.mpo.quality(surface_of(0.2, 0.9), PATTERN).iou == 0.0  # upside down
    assert ll.mpo.quality(surface_of(0.2, 0.9), PATTERN).gap == pytest.approx(-0.7)
    assert ll.mpo.quality(surface_of(0.9, 0.2), PATTERN, threshold=0.95).iou == 0.0
    # Everything shown LOW, of which five of twelve are.
    assert ll.mpo.quality(surface_of(0.9, 0.2), PATTERN, threshold=0.1).iou == pytest.approx(5 / 12)


def test_intersection_over_union_by_hand():
    surface = surface_of(0.9, 0.2, ["##..", "...."])
    surface.accuracy[1, 0] = 0.1  # one LOW cell missed
    surface.accuracy[3, 1] = 0.8  # and one HIGH cell shown LOW
    got = ll.mpo.quality(surface, ["##..", "...."], threshold=0.5)
    assert got.iou == pytest.approx(1 / 3)
    assert got.low_accuracy == pytest.approx(0.5)
    assert got.high_accuracy == pytest.approx((5 * 0.2 + 0.8) / 6)


def test_pruned_cells_can_be_left_out():
    pattern = ["......", "......", "......", "....#."]
    surface = surface_of(0.9, 0.2, pattern)
    surface.accuracy[0, 0] = 1.0  # far from the only LOW cell
    whole, trained = (ll.mpo.quality(surface, pattern, pruned=p) for p in (True, False))
    assert (whole.cells, trained.cells) == (24, 6)
    assert whole.iou == 0.5 and trained.iou == 1.0
    assert trained.high_accuracy == pytest.approx(0.2)
    assert whole.high_accuracy > 0.21


def test_trained_cells_and_the_loss_map_stand_beside_all_cells():  # CASES N23
    face = ll.patterns.draw("smiley", 24)
    surface = surface_of(0.9, 0.2, face)
    missing = np.zeros_like(face)
    left = slice(5, 11), slice(6, 10)  # rows and columns of one eye
    missing[left] = ~face[left]
    assert missing.any() and not missing[:, 12:].any()
    surface.accuracy.values[missing.T], surface.loss.values[missing.T] = 0.9, 0.1
    got, kinds = ll.mpo.quality(surface, face), ll.patterns.prune(face)
    assert got.trained == ll.mpo.quality(surface, face, pruned=False)
    assert got.trained is not None and got.trained.trained is None
    wrong = (missing & (kinds != 0)).sum()
    assert got.iou == got.loss_iou == pytest.approx(face.sum() / (face.sum() + missing.sum()))
    low = (kinds == 1).sum()
    assert got.trained.iou == got.trained.loss_iou == pytest.approx(low / (low + wrong))
    assert got.trained.iou < got.iou - 0.01 and got.trained.cells == (kinds != 0).sum()


def test_the_loss_map_has_the_threshold_of_the_fit():
    surface = surface_of(0.9, 0.2)  # losses .1 and 2.8
    assert ll.mpo.quality(surface, PATTERN).loss_iou == 1.0
    assert ll.mpo.quality(surface, PATTERN, tau=2.9).loss_iou == pytest.approx(5 / 12)
    assert fit(iterations=1, tau=2.9).quality(surface).loss_iou == pytest.approx(5 / 12)
    assert fit(iterations=1, tau=2.9).quality(surface, tau=2.5).loss_iou == 1.0
    surface.loss[0, 0] = math.nan  # a network that has diverged is not LOW
    assert ll.mpo.quality(surface, PATTERN).loss_iou == pytest.approx(4 / 5)


def test_quality_of_a_single_cell_has_no_gap():
    quality = ll.mpo.quality(surface_of(0.9, 0.2, "#"), "#", threshold=0.5)
    assert quality.iou == 1.0 and quality.low_accuracy == 0.9
    assert math.isnan(quality.gap) and math.isnan(quality.high_loss)


def test_quality_of_a_map_over_points():
    surface = surface_of(0.9, 0.2)
    flat = xr.Dataset({n: ("point", surface[n].values.T.ravel()) for n in ("accuracy", "loss")})
    assert ll.mpo.quality(flat, PATTERN) == ll.mpo.quality(surface, PATTERN)


# --- mistakes -----------------------------------------------------------------------------------


def nan_origin() -> Any:
    weights = ll.weights_of(mlp())
    weights["1.bias"][0] = math.nan
    return weights


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "grey pattern": (
        {"pattern": [[0, 0.5]]},
        ValueError,
        "pattern: expected only 0 and 1, got 0.5",
    ),
    "one class": (
        {"pattern": np.zeros((3, 3))},
        ValueError,
        "pattern: expected LOW and HIGH cells",
    ),
    "pattern of no dimension": ({"pattern": 1}, ValueError, "pattern: expected at least one dim"),
    "huge pattern": (
        {"pattern": np.broadcast_to(np.array([0, 1]), (1 << 30, 2))},
        ValueError,
        "pattern: expected 1 to 4,194,304 cells, got shape",
    ),
    "more dimensions than weights": (
        {"model": nn.Linear(1, 1), "pattern": np.indices((2, 2, 2)).sum(0) % 2},
        ValueError,
        "pattern: 3 orthogonal directions need as many weights, got a model with 2",
    ),
    "no module": ({"model": F.relu}, TypeError, "model: expected a torch.nn.Module, got function"),
    "no weights": ({"model": nn.ReLU()}, ValueError, "model: ReLU has no parameters"),
    "batches": ({"data": [(1, 2)]}, TypeError, "data: expected a data set of tensors x and y"),
    "unequal data": (
        {"data": SimpleNamespace(x=torch.ones(9, 64), y=torch.ones(8))},
        ValueError,
        "data: x and y must hold tensors of one common length",
    ),
    "no data": (
        {"data": SimpleNamespace(x=torch.ones(0, 64), y=torch.ones(0))},
        ValueError,
        "data: has no samples",
    ),
    "batch too large": ({"batch_size": 241}, ValueError, "batch_size: expected .* from 1 to 240"),
    "batch of none": ({"batch_size": 0}, ValueError, "batch_size: expected a whole number"),
    "no iterations": ({"iterations": 0}, ValueError, "iterations: expected a whole number"),
    "no cells": ({"cells": 0}, ValueError, "cells: expected a whole number of at least 1.* got 0"),
    "no LOW cells": ({"cells": (0, 3)}, ValueError, r"cells: expected .* got \(0, 3\)"),
    "three numbers of cells": ({"cells": (1, 2, 3)}, ValueError, r"cells: .* got \(1, 2, 3\)"),
    "cells as text": ({"cells": "22"}, ValueError, "cells: expected .* got '22'"),
    "a list of three": ({"cells": [2, 2, 2]}, ValueError, r"cells: .* got \[2, 2, 2\]"),
    "procedure": ({"procedure": "slow"}, ValueError, "procedure: expected one of .* got 'slow'"),
    "ragged pattern": (
        {"pattern": [[1, 0], [1]]},
        ValueError,
        r"pattern: expected rows of one length, got rows of \[2, 1\]",
    ),
    "half a cell": ({"cells": 2.5}, ValueError, "cells: expected .* got 2.5"),
    "lr": ({"lr": 0}, ValueError, "lr: expected a finite number above 0, got 0"),
    "lr as text": ({"lr": "1e-3"}, ValueError, "lr: expected a finite number above 0, got '1e-3'"),
    "scale": ({"scale": math.inf}, ValueError, "scale: expected a finite number above 0, got inf"),
    "tau": ({"tau": -1.0}, ValueError, "tau: expected a finite number above 0, got -1.0"),
    "weight": ({"high_weight": -1}, ValueError, "high_weight: expected .* of at least 0, got -1"),
    "clip": ({"clip": 0.0}, ValueError, "clip: expected a finite number above 0, got 0.0"),
    "stop_gap": ({"stop_gap": math.nan}, ValueError, "stop_gap: expected a finite number"),
    "stop_gap without classes": (
        {"stop_gap": 0.5, "data": SimpleNamespace(x=DIGITS.x, y=DIGITS.x)},
        ValueError,
        "stop_gap: needs accuracies",
    ),
    "seed": ({"seed": 0.5}, TypeError, "seed: expected a whole number, got 0.5"),
    "parametrization": ({"parametrization": "x"}, ValueError, "parametrization: expected one of"),
    "initialization": ({"initialization": "x"}, ValueError, "initialization: expected one of"),
    "schedule": ({"schedule": "cosine"}, ValueError, "schedule: expected one of .* got 'cosine'"),
    "method": ({"method": "fast"}, ValueError, "method: expected one of .* got 'fast'"),
    "shared": ({"shared_batch": 1}, TypeError, "shared_batch: expected True or False, got 1"),
    "pruned 1": ({"prune": 1}, TypeError, "prune: expected True, False or a whole number of 2"),
    "pruned a half": ({"prune": 2.5}, TypeError, "whole number of 2 or more, got 2.5"),
    "chunk": ({"chunk_size": 0}, ValueError, "chunk_size: expected a whole number"),
    "record": ({"record_every": -1}, ValueError, "record_every: expected a whole number"),
    "dtype": ({"dtype": torch.int8}, ValueError, "dtype: expected a floating-point torch.dtype"),
    "loss": ({"loss": 3}, TypeError, "loss: expected a callable, got int"),
    "augment": ({"augment": 3}, TypeError, "augment: expected a callable, got int"),
    "checkpoint": (
        {"checkpoint": 3},
        TypeError,
        "checkpoint: expected the path of a file, got int",
    ),
    "another origin": (
        {"origin": ll.weights_of(cnn())},
        ValueError,
        "origin: names differ from the model's parameters",
    ),
    "NaN in the origin": ({"origin": nan_origin()}, ValueError, "origin: expected finite entries"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_any_work(name, monkeypatch):
    settings, kind, message = MISTAKES[name]
    state = torch.get_rng_state()
    monkeypatch.setattr(
        sys.modules["landscape_lib.mpo.fit"], "initial_vectors", None
    )  # work would fail otherwise
    with pytest.raises(kind, match=message) as caught:
        fit(**settings)
    assert caught.type is kind
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pattern": ["#.", ".#"]}, "surface: expected a map of the pattern's 2 x 2 cells"),
        ({"variable": "recall"}, "variable: expected 'accuracy' or 'loss', got 'recall'"),
        ({"threshold": math.nan}, "threshold: expected a finite number, got nan"),
        ({"tau": 0}, "tau: expected a finite number above 0, got 0"),
        ({"threshold": "half"}, "threshold: expected a finite number, got 'half'"),
        ({"surface": surface_of(0.9, 0.2).drop_vars("accuracy")}, r"got 'accuracy'"),
        ({"surface": surface_of(math.nan, 0.2)}, "surface: expected accuracy at every cell, 5 are"),
    ],
    ids=str,
)
def test_mistakes_about_quality_are_named(arguments, message):
    arguments = {"surface": surface_of(0.9, 0.2), "pattern": PATTERN} | arguments
    with pytest.raises(ValueError, match=message):
        ll.mpo.quality(**arguments)


def test_draws_follow_the_seed_alone():
    groups = (torch.arange(5), torch.arange(5, 9))
    first, second = (next(draw_cells(groups, (2, 2), 4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(next(draw_images(9, 9, 4)), torch.randperm(9, generator=generator(4)))
