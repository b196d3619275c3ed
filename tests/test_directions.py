"""Directions: normal, normalised per filter, orthogonal at once; and those of a trajectory."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.runtime import generator
from landscape_lib.weights import Weights, flatten


def draw(seed: int = 0, **shapes: tuple[int, ...]) -> Weights:
    shapes = shapes or {"conv": (4, 2, 3, 3), "fc": (5, 7), "bias": (5,), "scale": ()}
    source = generator(seed)
    return {
        name: torch.randn(shape, generator=source, dtype=torch.float64)
        * (1 + torch.arange(math.prod(shape)).view(shape).double())
        for name, shape in shapes.items()
    }


def filter_norms(weights: Weights) -> dict[str, Tensor]:
    return {
        name: tensor.flatten(1).norm(dim=1) if tensor.dim() > 1 else tensor.abs()
        for name, tensor in weights.items()
    }


# --- norms: oracle 29 ---------------------------------------------------------------------------


def test_every_filter_has_the_norm_of_its_filter():  # oracle 29; Li et al. 2018, section 4
    weights = draw()
    direction = ll.random_direction(weights, generator=generator(1))
    for name, norms in filter_norms(direction).items():
        if weights[name].dim() > 1:
            torch.testing.assert_close(norms, filter_norms(weights)[name], rtol=1e-13, atol=0)
        else:
            assert not direction[name].any()  # biases and batch-norm parameters stay
    # The filters of one tensor differ in length, so a norm per tensor would not do.
    ratios = direction["fc"].norm() * weights["fc"].norm(dim=1) / weights["fc"].norm()
    assert (ratios - direction["fc"].norm(dim=1)).abs().max() < 1e-9
    assert float(weights["fc"].norm(dim=1).std()) > 1


def test_entries_of_a_bias_are_filters_of_their_own_if_asked():
    weights = draw()
    direction = ll.random_direction(weights, ignore_1d=False, generator=generator(1))
    for name in ("bias", "scale"):
        torch.testing.assert_close(direction[name].abs(), weights[name].abs())


def test_layer_normalisation_gives_every_tensor_its_norm():
    weights = draw()
    direction = ll.random_direction(weights, normalize="layer", generator=generator(1))
    for name in ("conv", "fc"):
        assert float(direction[name].norm()) == pytest.approx(float(weights[name].norm()))
    uneven = direction["fc"].norm(dim=1) / weights["fc"].norm(dim=1)
    assert float(uneven.max() / uneven.min()) > 2  # not per filter under that name


@pytest.mark.parametrize("count", [1, 2])
def test_a_zero_filter_gets_a_zero_direction(count):  # oracle 29
    weights = draw()
    weights["conv"][2] = 0.0
    for direction in ll.random_directions(weights, count, generator=generator(1)):
        assert not direction["conv"][2].any() and direction["conv"].isfinite().all()
        assert direction["conv"][1].any()


@pytest.mark.parametrize("normalize", ["filter", "layer", None])
@pytest.mark.parametrize("count", [2, 3])
def test_directions_are_orthogonal_and_normalised_at_once(normalize, count):
    # Peers orthogonalise, then normalise, and lose the orthogonality; or divide wrongly in
    # Gram-Schmidt, and end with a cosine of 0.99.
    weights = draw()
    directions = ll.random_directions(weights, count, normalize=normalize, generator=generator(2))
    for i, first in enumerate(directions):
        for second in directions[:i]:
            cosine = ll.weights.dot(first, second) / (
                ll.weights.norm(first) * ll.weights.norm(second)
            )
            assert abs(cosine) < 1e-15
        if normalize == "filter":
            for name in ("conv", "fc"):
                torch.testing.assert_close(filter_norms(first)[name], filter_norms(weights)[name])
        if normalize == "layer":
            for name in ("conv", "fc"):
                torch.testing.assert_close(first[name].norm(), weights[name].norm())


def test_independent_directions_are_not_orthogonal():
    # The negative control of the test above: it takes more than two draws.
    weights = draw()
    pair = [ll.random_direction(weights, generator=generator(seed)) for seed in (1, 2)]
    assert abs(ll.weights.dot(*pair)) > 1e-3 * ll.weights.norm(pair[0]) ** 2


def test_a_filter_too_small_for_so_many_directions_is_zero_in_the_last():
    weights = draw(0, tiny=(3, 1), fc=(2, 4))
    first, second = ll.random_directions(weights, 2, generator=generator(0))
    assert first["tiny"].abs().tolist() == weights["tiny"].abs().tolist()
    assert not second["tiny"].any() and second["fc"].any()
    assert abs(ll.weights.dot(first, second)) < 1e-13 * ll.weights.dot(first, first)


# --- randomness ---------------------------------------------------------------------------------


def test_equal_seeds_give_equal_directions_and_leave_the_global_state_alone():
    weights = draw()
    state = torch.get_rng_state()
    first, same, other = (
        ll.random_direction(weights, generator=generator(seed))["fc"] for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same) and not torch.equal(first, other)
    pair = ll.random_directions(weights, 2, generator=generator(1))
    assert torch.equal(pair[0]["fc"], first) and not torch.equal(pair[1]["fc"], first)


def test_without_a_generator_the_global_random_state_decides():
    weights = draw()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = (ll.random_direction(weights)["fc"] for _ in range(2))
    same = ll.random_direction(weights, generator=generator(3))["fc"]
    assert torch.equal(first, same) and not torch.equal(first, second)


def test_weights_are_left_alone():
    weights = draw()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    for direction in ll.random_directions(weights, 2, ignore_1d=False, generator=generator(0)):
        for tensor in direction.values():
            tensor.fill_(9.0)
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_entries_are_normal_not_uniform():
    # Peers draw from U[0, 1), with mean 1/2 and kurtosis 1.8. The bounds are five standard errors
    # of the moments of n normal numbers: 1/n, 2/n, 6/n and 24/n are their variances.
    n = 200_000
    direction = ll.random_direction(
        {"w": torch.ones(2, n // 2, dtype=torch.float64)}, normalize=None, generator=generator(0)
    )["w"]
    assert abs(float(direction.mean())) < 5 * math.sqrt(1 / n)
    assert abs(float(direction.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((direction**3).mean())) < 5 * math.sqrt(15 / n)
    kurtosis = float((direction**4).mean() / direction.square().mean() ** 2)
    assert abs(kurtosis - 3) < 5 * math.sqrt(24 / n)


# --- what normalisation is for: oracles 31 and 32 -----------------------------------------------


class Mlp(nn.Module):
    """Two hidden ReLU layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def surface(model: nn.Module, data: SimpleNamespace, normalize: str | None) -> np.ndarray:
    center = ll.weights_of(model)
    pair = ll.random_directions(center, 2, normalize=normalize, generator=generator(5))
    plane = ll.Plane(center, pair, np.linspace(-1, 1, 5), np.linspace(-1, 1, 3))
    return ll.evaluate(model, plane, data).loss.values


def rescaled(model: Mlp, k: float | Tensor) -> Mlp:
    """Return the same function with other weights: the first layer times k, the second over k."""
    other = Mlp().double()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        factor = torch.as_tensor(k, dtype=torch.float64).expand(7)
        other.a.weight *= factor[:, None]
        other.a.bias *= factor
        other.b.weight /= factor
    return other


@pytest.fixture
def network() -> tuple[Mlp, SimpleNamespace]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mlp().double()
        x = torch.randn(40, 5, dtype=torch.float64)
    return model, SimpleNamespace(x=x, y=torch.arange(40) % 3)


@pytest.mark.parametrize("normalize", ["filter", "layer"])
@pytest.mark.parametrize("k", [0.1, 8.0])
def test_rescaling_a_layer_leaves_the_normalised_surface_as_it_is(network, normalize, k):
    model, data = network  # oracle 31
    changed = surface(rescaled(model, k), data, normalize)
    np.testing.assert_allclose(changed, surface(model, data, normalize), rtol=1e-13)


def test_rescaling_a_layer_changes_the_surface_of_plain_directions(network):  # oracle 32
    model, data = network
    plain = surface(model, data, None)
    other = surface(rescaled(model, 8.0), data, None)
    assert plain[2, 1] == pytest.approx(other[2, 1], rel=1e-13)  # the same network at the origin
    assert np.abs(other / plain - 1).max() > 0.1


def test_rescaling_single_neurons_changes_the_surface_in_spite_of_filter_normalisation(network):
    model, data = network  # oracle 31, the negative half
    k = torch.tensor([8.0, 0.2, 1.0, 1.0, 3.0, 0.5, 1.0])
    before, after = surface(model, data, "filter"), surface(rescaled(model, k), data, "filter")
    assert before[2, 1] == pytest.approx(after[2, 1], rel=1e-13)
    assert np.abs(after / before - 1).max() > 0.01


def test_rescaling_filters_before_batch_norm_leaves_the_surface_as_it_is():  # oracle 31
    def build(k: Tensor) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(2, 4, 3, bias=False),
                nn.BatchNorm2d(4, eps=1e-300),  # not every version of torch takes 0
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(16, 3),
            ).double()
        conv, norm = model[0], model[1]
        with torch.no_grad():
            conv.weight *= k[:, None, None, None]
            norm.running_mean.copy_(torch.arange(4) * 0.1 * k)
            norm.running_var.copy_((1 + torch.arange(4)) * k**2)
        return model

    source = generator(1)
    x = torch.randn(20, 2, 4, 4, generator=source, dtype=torch.float64)
    data = SimpleNamespace(x=x, y=torch.arange(20) % 3)
    ones, k = torch.ones(4).double(), torch.tensor([0.1, 2.0, 5.0, 1.0]).double()
    before, after = (surface(build(factor), data, "filter") for factor in (ones, k))
    np.testing.assert_allclose(after, before, rtol=1e-13)
    plain = [surface(build(factor), data, None) for factor in (ones, k)]
    assert np.abs(plain[1] / plain[0] - 1).max() > 0.01  # the control: oracle 32


# --- curvature along random directions: oracle 34 -----------------------------------------------

ROWS, COLUMNS, DRAWS = 3, 4, 4000


def hessian_and_weights() -> tuple[Tensor, Weights]:
    source = generator(7)
    root = torch.randn(12, 12, generator=source, dtype=torch.float64)
    root *= torch.linspace(0.2, 3, 12, dtype=torch.float64)[:, None]  # rows of uneven curvature
    weights = torch.randn(ROWS, COLUMNS, generator=source, dtype=torch.float64)
    weights *= torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)[:, None]
    return root @ root.T, {"w": weights}


def mean_curvature(normalize: str | None) -> tuple[float, float]:
    """Return the mean of d^T H d over many directions, and its standard error."""
    hessian, weights = hessian_and_weights()
    source = generator(11)
    flat = torch.stack(
        [
            ll.random_direction(weights, normalize=normalize, generator=source)["w"].flatten()
            for _ in range(DRAWS)
        ]
    )
    values = ((flat @ hessian) * flat).sum(1)
    return float(values.mean()), float(values.std()) / math.sqrt(DRAWS)


def expected_curvature(normalize: str | None) -> float:
    """Oracle 34: a direction uniform on a sphere of radius r in n dimensions has E[dd^T] = r²/n."""
    hessian, weights = hessian_and_weights()
    if normalize is None:
        return float(hessian.trace())
    if normalize == "layer":
        return float(weights["w"].square().sum()) / 12 * float(hessian.trace())
    blocks = [slice(f * COLUMNS, (f + 1) * COLUMNS) for f in range(ROWS)]
    return sum(
        float(row.square().sum()) / COLUMNS * float(hessian[block, block].trace())
        for row, block in zip(weights["w"], blocks, strict=True)
    )


@pytest.mark.parametrize("normalize", ["filter", "layer", None])
def test_mean_curvature_along_random_directions(normalize):  # oracle 34
    mean, error = mean_curvature(normalize)
    # Five standard errors: the seed is fixed, and one seed in two million would miss by chance.
    assert abs(mean - expected_curvature(normalize)) < 5 * error
    # The three kinds are told apart by it, or the test above would say little.
    others = {"filter", "layer", None} - {normalize}
    assert all(abs(mean - expected_curvature(other)) > 20 * error for other in others)


# --- trajectories -------------------------------------------------------------------------------


def trajectory(steps: int = 12, noise: float = 0.0) -> tuple[list[Weights], Tensor]:
    """Return a spiral in a random plane through its last point, and the plane's basis (n, 2)."""
    source = generator(3)
    shapes = {"w": (6, 5), "b": (6,)}
    basis = torch.linalg.qr(torch.randn(36, 2, generator=source, dtype=torch.float64)).Q
    end = torch.randn(36, generator=source, dtype=torch.float64)
    like = {name: torch.empty(shape) for name, shape in shapes.items()}
    points = []
    for t in torch.linspace(1, 0, steps, dtype=torch.float64).tolist():
        point = end + basis @ torch.tensor([3 * t, math.sin(5 * t)], dtype=torch.float64)
        point = point + noise * t * torch.randn(36, generator=source, dtype=torch.float64)
        points.append(ll.weights.unflatten(point, like))
    return points, basis


def rows(vectors: list[Weights]) -> np.ndarray:
    return np.stack([ll.weights.flatten(vector).numpy() for vector in vectors])


def test_principal_directions_recover_a_planted_plane():
    points, basis = trajectory()
    directions, explained = ll.pca_directions(points)
    plane = rows(directions)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-15)
    projector = (basis @ basis.T).numpy()
    np.testing.assert_allclose(plane.T @ plane, projector, atol=1e-12)
    assert sum(explained) == pytest.approx(1, abs=1e-12)
    # The plane passes through the last point: from there, every point lies in it.
    offsets = rows(points) - rows(points)[-1]
    np.testing.assert_allclose(offsets @ projector, offsets, atol=1e-12)
    assert [list(d) for d in directions] == [["w", "b"]] * 2
    assert directions[0]["w"].shape == (6, 5)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_principal_directions_agree_with_a_singular_value_decomposition(k):
    points, _ = trajectory(noise=0.2)
    directions, explained = ll.pca_directions(points, k)
    offsets = (rows(points) - rows(points)[-1])[:-1]  # seen from the last point, not centred
    _, values, vectors = np.linalg.svd(offsets, full_matrices=False)
    np.testing.assert_allclose(explained, (values**2 / (values**2).sum())[:k], rtol=1e-10)
    np.testing.assert_allclose(np.abs(rows(directions) @ vectors[:k].T), np.eye(k), atol=1e-10)
    assert (rows(directions) @ offsets[0] >= 0).all()  # the start is on the positive side


def test_directions_stay_orthonormal_where_the_second_explains_almost_nothing():
    first, second = torch.linalg.qr(
        torch.randn(100, 2, generator=generator(0), dtype=torch.float64)
    ).Q.T
    points = [
        {"w": t * first + 1e-6 * math.sin(7 * t) * second} for t in np.linspace(1, 0, 20).tolist()
    ]
    directions, explained = ll.pca_directions(points)
    np.testing.assert_allclose(rows(directions) @ rows(directions).T, np.eye(2), atol=1e-14)
    assert abs(float(directions[1]["w"] @ second)) > 1 - 1e-6
    assert 0 < explained[1] < 1e-11


def test_directions_have_the_dtype_of_the_trajectory():
    points, _ = trajectory()
    single = [{name: tensor.float() for name, tensor in point.items()} for point in points]
    directions, explained = ll.pca_directions(single)
    assert directions[1]["w"].dtype == torch.float32
    assert explained == pytest.approx(ll.pca_directions(points)[1], rel=1e-5)


def test_a_trajectory_must_span_the_directions_asked_for():
    points, _ = trajectory()
    with pytest.raises(ValueError, match="trajectory: 3 directions need at least 4 points, got 3"):
        ll.pca_directions(points[:3], 3)
    with pytest.raises(ValueError, match=r"trajectory: spans fewer than 3 direction"):
        ll.pca_directions(points, 3)
    with pytest.raises(ValueError, match=r"trajectory: spans fewer than 1 direction"):
        ll.pca_directions([points[0]] * 4, 1)


def test_the_foot_of_a_perpendicular_and_its_length():
    start = {"w": torch.tensor([1.0, 1.0, 0.0]).double()}
    end = {"w": torch.tensor([1.0, 3.0, 0.0]).double()}  # a line of length 2 along the second axis
    points = [start, end, {"w": torch.tensor([4.0, 2.0, 4.0]).double()}]
    foot, distance = ll.directions.project_on_line(points, start, end)
    assert foot == pytest.approx([0.0, 1.0, 0.5]) and distance == pytest.approx([0.0, 0.0, 2.5])
    with pytest.raises(ValueError, match="end: equals start"):
        ll.directions.project_on_line(points, start, start)
    with pytest.raises(ValueError, match=r"trajectory\[1\]: names differ"):
        ll.directions.project_on_line([start, {"v": start["w"]}], start, end)


def test_projection_is_least_squares_for_any_two_directions():
    generator = torch.Generator().manual_seed(0)
    like = {"a": torch.zeros(3, 2, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}
    draw = lambda: {  # noqa: E731
        n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in like.items()
    }  # noqa: E731
    origin, d1, d2 = draw(), draw(), draw()
    points = [draw() for _ in range(3)]
    found = ll.directions.project(points, ll.Plane(origin, (d1, d2), [0.0], [0.0]))
    axes = torch.stack([flatten(d1), flatten(d2)], dim=1)
    for k, point in enumerate(points):
        offset = flatten(point) - flatten(origin)
        best = torch.linalg.lstsq(axes, offset[:, None])
        torch.testing.assert_close(torch.tensor(found.coordinates.values[k]), best.solution[:, 0])
        rest = float((offset - axes @ best.solution[:, 0]).norm())
        assert float(found.distance[k]) == pytest.approx(rest)
    with pytest.raises(ValueError, match="linearly dependent"):
        twice = {n: 2 * t for n, t in d1.items()}
        ll.directions.project(points, ll.Slice(origin, [d1, twice], [[0.0, 0.0]]))
    with pytest.raises(ValueError, match="at least one"):
        ll.directions.project([], ll.Plane(origin, (d1, d2), [0.0], [0.0]))


@pytest.mark.parametrize("normalize", [None, "filter", "layer"])
def test_directions_in_16_bits_are_orthogonal(normalize):
    """CASES N14: sums are float64, so that only the rounding of the result is left."""
    weights = {"w": torch.ones(400, 400, dtype=torch.float16), "n": torch.tensor([3, 4])}
    first, second = ll.random_directions(
        weights, 2, normalize=normalize, generator=generator(0), ignore_1d=False
    )
    cosine = ll.weights.dot(first, second) / ll.weights.norm(first) / ll.weights.norm(second)
    assert abs(cosine) < 1e-5
    assert first["w"].dtype == torch.float16 and not first["n"].any()
