"""Figures show what was measured: what is not finite is marked as that, and nothing is replaced."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm

from landscape_lib import plots

NAN, INF = np.nan, np.inf


@pytest.fixture(autouse=True)
def figure() -> Iterator[None]:
    """A figure of its own for each test, on no screen; it must be drawable to the end."""
    with plt.rc_context(), plt.style.context("default"):
        plt.switch_backend("agg")
        plots.use_style()
        plt.figure()
        yield
        plt.gcf().canvas.draw()
        plt.close("all")


def line(values: list[float], alphas: list[float] | None = None, **more: object) -> xr.Dataset:
    alphas = np.arange(len(values)) / 4 if alphas is None else alphas
    return xr.Dataset(
        {"loss": ("alpha", np.array(values)), **{k: ("alpha", v) for k, v in more.items()}},
        coords={"alpha": alphas},
    )


def grid(values: object) -> xr.Dataset:
    """Return a surface whose rows belong to alpha and whose columns to beta."""
    array = np.array(values, dtype=float)
    coordinates = {"alpha": np.arange(array.shape[0]) / 2, "beta": np.arange(array.shape[1]) - 1.0}
    return xr.Dataset({"loss": (("alpha", "beta"), array)}, coords=coordinates)


# --- curves -------------------------------------------------------------------------------------


def test_a_curve_draws_every_value_and_its_band():
    error = np.array([0.1, 0.2, 0.3])
    ax = plots.curve(line([3.0, 1.0, 2.0], loss_se=error), band=2, label="here")
    (drawn,) = ax.lines
    assert drawn.get_xydata().tolist() == [[0.0, 3.0], [0.25, 1.0], [0.5, 2.0]]
    (band,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    corners = {tuple(vertex) for vertex in np.round(band.get_paths()[0].vertices, 9)}
    for x, middle, half in zip([0, 0.25, 0.5], [3.0, 1.0, 2.0], 2 * error, strict=True):
        assert {(x, round(middle - half, 9)), (x, round(middle + half, 9))} <= corners
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("α", "loss")


def test_a_curve_without_errors_has_no_band():
    ax = plots.curve(line([3.0, 1.0, 2.0]))
    assert len(ax.lines) == 1 and not ax.collections


@pytest.mark.parametrize("lost", [NAN, INF, -INF])
def test_a_value_that_is_not_finite_is_a_gap_and_a_cross(lost):
    # Peers replace NaN by the mean and inf by the maximum.
    errors = np.array([0.1, NAN, 0.1, 0.1])
    ax = plots.curve(line([3.0, lost, 2.0, 1.0], loss_se=errors))
    drawn, crosses = ax.lines
    np.testing.assert_array_equal(drawn.get_ydata(), [3.0, lost, 2.0, 1.0])
    assert crosses.get_marker() == "x" and crosses.get_linestyle() == "None"
    assert crosses.get_xdata().tolist() == [0.25]
    assert crosses.get_color() == drawn.get_color()
    # The cross stands on the lower edge, wherever that is, and does not stretch the axis.
    ax.figure.canvas.draw()
    _, pixel = crosses.get_transform().transform((0.25, float(crosses.get_ydata()[0])))
    assert pixel == pytest.approx(ax.get_window_extent().y0)
    assert np.isfinite(ax.get_ylim()).all() and ax.get_ylim()[0] > 0


def test_a_curve_of_nothing_finite_is_crosses_alone():
    ax = plots.curve(line([NAN, INF, NAN]))
    assert ax.lines[1].get_xdata().tolist() == [0.0, 0.25, 0.5]


def test_points_are_joined_in_the_order_of_the_axis():
    dataset = line([1.0, 2.0, NAN, 4.0], [0.5, -1.0, 2.0, 0.0])
    drawn, crosses = plots.curve(dataset).lines
    assert drawn.get_xdata().tolist() == [-1.0, 0.0, 0.5, 2.0]
    np.testing.assert_array_equal(drawn.get_ydata(), [2.0, 4.0, 1.0, NAN])
    assert crosses.get_xdata().tolist() == [2.0]
    assert dataset.alpha.values.tolist() == [0.5, -1.0, 2.0, 0.0]  # the caller's stays


def test_a_curve_goes_where_it_is_told():
    _, (left, right) = plt.subplots(1, 2)
    assert plots.curve(line([1.0, 2.0]), ax=left, color="red", linestyle=":") is left
    assert left.lines[0].get_color() == "red" and not right.lines
    epochs = xr.Dataset({"test_loss": ("epoch", [2.0, 1.0])}, coords={"epoch": [1, 2]})
    plots.curve(epochs, "test_loss", ax=right)
    assert (right.get_xlabel(), right.get_ylabel()) == ("epoch", "test loss")


def test_a_curve_needs_one_dimension():
    with pytest.raises(ValueError, match=r"variable: expected one dimension, got \('alpha', 'be"):
        plots.curve(grid(np.ones((2, 3))))
    with pytest.raises(KeyError, match="error"):
        plots.curve(line([1.0]), "error")


# --- surfaces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 3), (3, 1), (1, 1)])
def test_every_cell_stands_at_its_coordinates(shape):
    values = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    mesh = plots.heat(grid(values))
    # pcolormesh wants rows for the vertical axis, which is beta.
    np.testing.assert_array_equal(mesh.get_array().reshape(shape[1], shape[0]), values.T)
    assert mesh.get_cmap().name == plots.LOSS_COLORS
    ax = plt.gcf().axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("α", "β")
    corners = mesh.get_coordinates()
    centers = (corners[:-1, :-1] + corners[1:, 1:]) / 2
    if min(shape) > 1:
        np.testing.assert_allclose(centers[0, :, 0], np.arange(shape[0]) / 2)
        np.testing.assert_allclose(centers[:, 0, 1], np.arange(shape[1]) - 1.0)


@pytest.mark.parametrize("log", [False, True])
def test_cells_that_are_not_finite_are_left_out_and_hatched(log):
    values = np.array([[1.0, NAN, 3.0], [INF, 5.0, 6.0], [7.0, -INF, 9.0]])
    mesh = plots.heat(grid(values), log=log)
    lost = ~np.isfinite(values)
    drawn = mesh.get_array().reshape(3, 3)
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), lost.T)
    np.testing.assert_array_equal(np.ma.filled(drawn, 0), np.where(lost, 0, values).T)
    assert (mesh.norm.vmin, mesh.norm.vmax) == (1.0, 9.0)
    # What shows through is a hatched patch behind the mesh.
    mesh.figure.canvas.draw()
    colors = mesh.get_facecolor().reshape(3, 3, 4)
    assert (colors[lost.T][:, 3] == 0).all() and (colors[~lost.T][:, 3] == 1).all()
    assert plt.gcf().axes[0].patch.get_hatch() == "///"


@pytest.mark.parametrize("log", [False, True])
def test_a_surface_of_nothing_finite_is_hatched_all_over(log):
    mesh = plots.heat(grid([[NAN, INF], [NAN, NAN]]), log=log)
    assert np.ma.getmaskarray(mesh.get_array()).all()


@pytest.mark.parametrize("log", [False, True])
def test_colours_span_the_data_or_the_limits(log):
    surface = grid([[1.0, 2.0], [3.0, 100.0]])
    assert (plots.heat(surface, log=log).norm.vmin, plots.heat(surface).norm.vmax) == (1.0, 100.0)
    mesh = plots.heat(surface, log=log, limits=(0.5, 4.0))
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0.5, 4.0)
    assert isinstance(mesh.norm, LogNorm) == log
    # A value beyond the limits has their last colour; it is not left out.
    mesh.figure.canvas.draw()
    top = mesh.get_cmap()(1.0)
    np.testing.assert_allclose(mesh.get_facecolor().reshape(2, 2, 4)[1, 1], top)


def test_a_zero_below_the_limits_is_the_lowest_colour_also_on_a_logarithmic_scale():
    mesh = plots.heat(grid([[0.0, 1.0], [2.0, 3.0]]), log=True, limits=(0.1, 10.0))
    mesh.figure.canvas.draw()
    lowest = mesh.get_cmap()(0.0)
    np.testing.assert_allclose(mesh.get_facecolor().reshape(2, 2, 4)[0, 0], lowest)


def contour_levels() -> list[float]:
    ax = plt.gcf().axes[0]
    return [level for c in ax.collections for level in getattr(c, "levels", [])]


def test_contour_lines_divide_the_limits_evenly():
    surface = grid([[0.0, 1.0], [2.0, 4.0]])
    plots.heat(surface, levels=3)
    assert contour_levels() == [1.0, 2.0, 3.0]


def test_contour_lines_on_a_logarithmic_scale_have_equal_ratios():
    plots.heat(grid([[1.0, 2.0], [4.0, 16.0]]), levels=3, log=True)
    np.testing.assert_allclose(contour_levels(), [2.0, 4.0, 8.0])


@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], {"levels": 0}),
        ([[2.0, 2.0], [2.0, 2.0]], {}),  # nothing changes
        ([[1.0, 2.0], [3.0, 4.0]], {"limits": (10.0, 20.0)}),  # none inside the data
        ([[1.0, 2.0, 3.0]], {}),  # a single row
    ],
)
def test_no_contour_lines_where_there_are_none(values, arguments):
    plots.heat(grid(values), **arguments)
    assert contour_levels() == []


def test_a_surface_may_come_in_any_order():
    surface = grid([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    shuffled = surface.isel(alpha=[1, 0], beta=[2, 0, 1]).transpose("beta", "alpha")
    first, second = plots.heat(surface).get_array(), plots.heat(shuffled).get_array()
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (line([1.0, 2.0]), {}, r"variable: expected dimensions .* got \('alpha',\) of 'loss'"),
        (grid(np.eye(2)), {"log": True}, "log: expected .* above 0, got 0"),
        (grid(-np.eye(2)), {"log": True}, "log: expected .* above 0, got -1"),
        (grid(np.eye(2) + 1), {"log": True, "limits": (0, 1)}, "log: expected .* above 0, got 0"),
        (grid(np.eye(2)), {"limits": (2.0, 1.0)}, r"limits: expected .* got \(2.0, 1.0\)"),
        (grid(np.eye(2)), {"limits": (1.0, 1.0)}, r"limits: expected .* got \(1.0, 1.0\)"),
        (grid(np.eye(2)), {"limits": (NAN, 1.0)}, r"limits: expected .* got \(nan, 1.0\)"),
    ],
)
def test_what_cannot_be_drawn_is_named(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.heat(dataset, **arguments)
    assert not plt.gcf().axes  # before anything is drawn


def test_a_gallery_has_one_scale_of_colours_and_pictures_stand_upright():
    surfaces = {name: grid(np.full((2, 3), value)) for name, value in {"a": 1.0, "b": 4.0}.items()}
    figure = plots.gallery(surfaces, log=True, columns=3)
    first, second, bar = figure.axes
    assert [ax.get_title() for ax in (first, second)] == ["a", "b"]
    meshes = [ax.collections[0] for ax in (first, second)]
    assert all(isinstance(m.norm, LogNorm) and (m.norm.vmin, m.norm.vmax) == (1, 4) for m in meshes)
    assert bar.get_ylabel() == "loss"
    for ax in (first, second):
        bottom, top = ax.get_ylim()
        assert bottom > top  # beta counts rows, downwards
        assert ax.get_aspect() == 1


def test_a_gallery_leaves_empty_places_empty_and_takes_limits():
    surfaces = {str(k): grid(np.full((2, 2), k + 1.0)) for k in range(4)}
    figure = plots.gallery(surfaces, columns=3, limits=(0, 10))
    drawn = [ax for ax in figure.axes if ax.collections and ax.get_title()]
    assert len(drawn) == 4 and sum(not ax.axison for ax in figure.axes) == 2
    assert {ax.collections[0].norm.vmax for ax in drawn} == {10}
    for value in (2.0, NAN):  # nothing to spread the colours over
        plots.gallery({"flat": grid(np.full((2, 2), value))})
    with pytest.raises(ValueError, match="surfaces, columns: expected at least one map"):
        plots.gallery({})


def test_a_map_can_go_without_a_colour_bar():
    plots.heat(grid(np.ones((2, 2))), colorbar=False)
    assert len(plt.gcf().axes) == 1
