"""Slices are exact (DESIGN section 3), and laid out as they say."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.weights import Weights


def draw(seed: int, dtype: torch.dtype = torch.float64) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3), "bias": (4,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def bits(weights: Weights) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in weights.values()]


class Position(nn.Module):
    """A model whose loss says where it is: w0 + 100 w1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.w[0] + 100 * self.w[1])


def place(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()


POSITION = SimpleNamespace(x=torch.ones(2, 1).double(), y=torch.ones(2, 1).double())
E0 = {"w": torch.tensor([1.0, 0.0], dtype=torch.float64)}
E1 = {"w": torch.tensor([0.0, 1.0], dtype=torch.float64)}
ORIGIN = {"w": torch.zeros(2, dtype=torch.float64)}


# --- exactness ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_both_ends_of_a_line_between_models_are_met_bit_for_bit(dtype):
    start, end = draw(0, dtype), draw(1, dtype)
    end["bias"][0] = -0.0
    line = ll.Line.between(start, end, np.arange(-10, 51) / 40)
    for alpha, expected in ((0.0, start), (1.0, end)):
        met = line.weights_at(alpha)
        assert all(torch.equal(met[k], expected[k]) for k in expected)
        assert [t.signbit().tolist() for t in met.values()] == [
            t.signbit().tolist() for t in expected.values()
        ]


def test_a_difference_added_to_its_start_would_miss_the_end():
    # The negative control: why a line between two models keeps both as its basis.
    start, end = {"w": torch.tensor([1e8, 1.0])}, {"w": torch.tensor([0.1, 1e-9])}
    naive = ll.Line(start, ll.weights.subtract(end, start), [0.0, 1.0]).weights_at(1.0)
    assert not torch.equal(naive["w"], end["w"])
    assert torch.equal(ll.Line.between(start, end, [0.0, 1.0]).weights_at(1.0)["w"], end["w"])


def test_the_origin_is_met_bit_for_bit():
    origin = draw(0)
    directions = [draw(k) for k in (1, 2, 3)]
    for points in (
        ll.Line(origin, directions[0], [0.0, 1.0]),
        ll.Plane(origin, directions[:2], [0.0, 1.0], [0.0]),
        ll.Slice(origin, directions, [[1.0, 2.0, 3.0]]),
    ):
        zero = [0.0] * len(points.directions)
        assert bits(points.weights_at(*zero)) == bits(origin)


def test_every_point_is_one_sum_of_products_without_drift():
    # Peers step the weights in place, so that rounding errors pile up along the grid. Here every
    # entry is within two roundings of the sum that exact fractions give.
    origin, direction = draw(0), draw(1)
    alphas = np.linspace(-1, 1, 51)
    line = ll.Line(origin, direction, alphas)
    for alpha in (alphas[0], alphas[17], alphas[50], 0.1, -1e6):
        here = line.weights_at(alpha)
        for name in origin:
            for w, d, got in zip(
                *(t[name].flatten().tolist() for t in (origin, direction, here)), strict=True
            ):
                exact = Fraction(w) + Fraction(float(alpha)) * Fraction(d)
                scale = abs(w) + abs(alpha * d)
                assert abs(Fraction(got) - exact) <= Fraction(2.0**-52 * scale)


def test_the_order_of_the_points_does_not_change_them():
    # No state is carried from one point to the next: backwards gives the same bits.
    model = nn.Linear(3, 4).double()
    data = SimpleNamespace(x=torch.linspace(-1, 1, 15).double().view(5, 3), y=torch.arange(5) % 4)
    alphas = np.linspace(-1, 1, 21)
    lines = [ll.Line(draw(0), draw(1), order) for order in (alphas, alphas[::-1], alphas[3:4])]
    there, back, one = (ll.evaluate(model, line, data, method="loop").loss for line in lines)
    assert there.values.tobytes() == back.values[::-1].tobytes()
    assert there.values[3] == one.values[0]


def test_axes_contain_zero_and_one_exactly():
    alphas = ll.Line.between(draw(0), draw(1), np.arange(-10, 51) / 40).alphas
    assert alphas[10] == 0.0 and alphas[50] == 1.0
    for half in (0.1, 0.3, 0.5, 1.0, 10 / 3):
        for count in range(3, 121, 2):
            line = ll.Line(draw(0), draw(1), np.linspace(-half, half, count))
            assert line.alphas[count // 2] == 0.0, (half, count)
            assert line.alphas[0] == -half and line.alphas[-1] == half


def test_small_coordinates_are_not_mistaken_for_zero():
    for alphas in ([1e-300, 1.0, 2.0], [-1.0, 1e-15, 1.0], [-1.0, 1e-300, 2.0], [1e-20]):
        assert ll.Line(draw(0), draw(1), alphas).alphas.tolist() == alphas


def test_coordinates_are_copies():
    alphas = np.array([0.0, 1.0])
    line = ll.Line(draw(0), draw(1), alphas)
    alphas[0] = 9.0
    assert line.alphas.tolist() == line.coordinates[:, 0].tolist() == [0.0, 1.0]


# --- what the slices are ------------------------------------------------------------------------


def test_weights_at_any_point_of_any_slice():
    origin, *directions = (draw(k) for k in range(4))
    points = ll.Slice(origin, directions, [[0.5, -1.0, 2.0], [1.0, 0.0, 0.25]])
    assert (len(points), points.dims, points.shape, points.axes) == (2, ("point",), (2,), {})
    for place in ([0.5, -1.0, 2.0], [7.0, 0.0, -3.5]):  # one of its own, and another
        here = points.weights_at(*place)
        for name in origin:
            expected = origin[name] + sum(
                c * d[name] for c, d in zip(place, directions, strict=True)
            )
            torch.testing.assert_close(here[name], expected, rtol=1e-14, atol=1e-14)


def test_basis_and_coefficients_give_the_points():
    start, end = draw(0), draw(1)
    for points in (
        ll.Line.between(start, end, [-0.25, 0.0, 0.5, 1.25]),
        ll.Plane(start, (draw(2), draw(3)), [0.0, 1.0], [-1.0, 0.0, 0.5]),
    ):
        assert points.coefficients(points.coordinates).shape == (len(points), len(points.basis))
        for place, row in zip(
            points.coordinates, points.coefficients(points.coordinates), strict=True
        ):
            mixed = ll.weights.combine(points.basis, row.tolist())
            assert bits(mixed) == bits(points.weights_at(*place))


def test_a_line_between_models_is_the_line_along_their_difference():
    start, end = draw(0), draw(1)
    line = ll.Line.between(start, end, [0.0, 0.5, 2.0])
    assert isinstance(line, ll.Line) and line.dims == ("alpha",)
    assert bits(line.directions[0]) == bits(ll.weights.subtract(end, start))
    for alpha in (-0.5, 0.3, 2.0):
        expected = ll.Line(start, line.directions[0], [0.0]).weights_at(alpha)
        here = line.weights_at(alpha)
        for name in start:
            torch.testing.assert_close(here[name], expected[name], rtol=1e-13, atol=1e-13)


def test_a_plane_is_laid_out_alpha_first():
    plane = ll.Plane(ORIGIN, (E0, E1), [0.0, 1.0, 2.0], [0.0, 5.0])
    assert plane.dims == ("alpha", "beta") and plane.shape == (3, 2) and len(plane) == 6
    assert plane.coordinates.tolist() == [
        [0.0, 0.0],
        [0.0, 5.0],
        [1.0, 0.0],
        [1.0, 5.0],
        [2.0, 0.0],
        [2.0, 5.0],
    ]


@pytest.mark.parametrize("method", ["loop", "vmap"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1), (1, 1)])
def test_every_value_of_a_grid_stands_at_its_coordinates(method, shape):
    # Peers fill non-square grids transposed, or shift every other row (snake traversal).
    alphas, betas = np.arange(shape[0]) - 1.0, np.arange(shape[1]) / 2
    plane = ll.Plane(ORIGIN, (E0, E1), alphas, betas)
    loss = ll.evaluate(Position(), plane, POSITION, loss=place, method=method, chunk_size=4).loss
    assert loss.dims == ("alpha", "beta") and loss.shape == shape
    np.testing.assert_array_equal(loss.alpha, alphas)
    np.testing.assert_array_equal(loss.beta, betas)
    np.testing.assert_array_equal(loss, alphas[:, None] + 100 * betas)
    assert (loss == loss.alpha + 100 * loss.beta).all()


def test_a_plane_is_spanned_by_two_directions():
    first, second = draw(1), draw(2)
    for factor in (1.0, -2.0, 1e-8, 1 / 3):
        with pytest.raises(ValueError, match="directions: the two are parallel"):
            ll.Plane(draw(0), (first, ll.weights.scale(first, factor)), [0.0], [0.0])
    single = draw(1, torch.float32)
    with pytest.raises(ValueError, match="directions: the two are parallel"):
        ll.Plane(draw(0, torch.float32), (single, ll.weights.scale(single, 1 / 3)), [0.0], [0.0])
    # Directions that are nearly parallel still span a plane.
    for small, direction in ((1e-12, first), (1e-4, single)):
        near = ll.weights.add(direction, ll.weights.scale(second, small))
        assert len(ll.Plane(draw(0), (direction, near), [0.0], [0.0])) == 1


def test_directions_of_very_different_length_span_a_plane():
    long = ll.weights.scale(draw(2), 1e12)
    assert len(ll.Plane(draw(0), (draw(1), long), [0.0], [0.0])) == 1
    assert len(ll.Plane(draw(0), (long, draw(1)), [0.0], [0.0])) == 1
