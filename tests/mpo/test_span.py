"""The trained vectors and the directions they stand for: METHODS oracles 1 to 4 and 7, float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.mpo.draws import coordinates
from landscape_lib.mpo.span import Span, initial_vectors
from landscape_lib.runtime import generator

N = 31
SCALE = 0.3

each_parametrization = pytest.mark.parametrize("parametrization", ["paper", "code"])


def span(parametrization: str = "paper", dimension: int = 2, seed: int = 0) -> Span:
    vectors = torch.randn(1 + dimension, N, generator=generator(seed), dtype=torch.float64)
    return Span(vectors, SCALE, parametrization)


def moved(old: Span, row: int, vector: Tensor) -> Span:
    """The same with one of the trained vectors exchanged."""
    vectors = old.vectors.detach().clone()
    vectors[row] = vector
    return Span(vectors, SCALE, old.parametrization)


def made_orthogonal(parametrization: str) -> int:
    """The row of the vector that the other one is taken from: phi in METHODS."""
    return 1 if parametrization == "paper" else 2


def smooth(points: Tensor) -> Tensor:
    """Any function of points (K, N), not one of their mutual distances only."""
    slope = torch.linspace(-1, 1, N, dtype=torch.float64)
    return torch.sin(points @ slope) + (points**3).sum(1).cos() + 0.1 * points.square().sum(1)


def points_of(basis: Tensor, places: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(places), 1, dtype=places.dtype), places], 1) @ basis


PLACES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [-3.0, 1.0]], dtype=torch.float64)


@each_parametrization
@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_oracle_1_orthogonal_and_of_equal_length_after_every_step(parametrization, dimension):
    trained = span(parametrization, dimension)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.1)
    places = torch.randn(6, dimension, generator=generator(1), dtype=torch.float64)
    for _ in range(20):
        optimizer.zero_grad()
        smooth(points_of(trained(), places)).sum().backward()
        optimizer.step()
        products = trained.directions().detach()
        products = products @ products.T
        length = products[0, 0]
        expected = length * torch.eye(dimension, dtype=torch.float64)
        torch.testing.assert_close(products, expected, rtol=0, atol=1e-13 * length.item())
    assert not torch.equal(trained.vectors, span(parametrization, dimension).vectors)


@each_parametrization
def test_oracle_2_points_form_a_square_lattice(parametrization):
    trained = span(parametrization)
    basis = trained().detach()
    length = trained.directions()[0].norm().item()
    places = torch.from_numpy(coordinates(np.ones((4, 5), dtype=bool)))
    points = points_of(basis, places)
    for i, j in [(0, 1), (0, 19), (7, 3), (5, 18), (11, 11)]:
        expected = SCALE * length * math.dist(places[i].tolist(), places[j].tolist())
        assert torch.dist(points[i], points[j]).item() == pytest.approx(expected, rel=1e-12)


@each_parametrization
def test_oracle_3_length_and_shear_of_the_orthogonalised_vector_do_not_matter(parametrization):
    trained = span(parametrization)
    phi = made_orthogonal(parametrization)
    other = trained.directions()[2 - phi].detach()  # the direction it is made orthogonal to
    before = trained().detach()
    for k, c in [(2.5, 0.0), (1.0, -3.0), (0.2, 7.0)]:
        after = moved(trained, phi, k * trained.vectors[phi].detach() + c * other)().detach()
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    mirrored = moved(trained, phi, -trained.vectors[phi].detach())().detach()
    before[phi] *= -1
    torch.testing.assert_close(mirrored, before, rtol=0, atol=1e-12)

    smooth(points_of(trained(), PLACES)).sum().backward()
    gradient = trained.vectors.grad[phi]
    size = gradient.norm() * trained.vectors[phi].norm()
    assert abs(gradient @ trained.vectors[phi]).item() < 1e-13 * size
    assert abs(gradient @ other).item() < 1e-13 * size


@each_parametrization
def test_oracle_4_gradients_by_the_formulas(parametrization):
    trained = span(parametrization)
    right, up = trained.directions().detach()
    # G of every cell by itself, at weights that are leaves of their own.
    points = points_of(trained().detach(), PLACES).requires_grad_()
    smooth(points).sum().backward()
    gradients = points.grad
    total, by_right, by_up = gradients.sum(0), PLACES[:, 0] @ gradients, PLACES[:, 1] @ gradients

    trained().backward(torch.stack([total, by_right, by_up]))  # as fit does, once for all cells
    got, got_scale = trained.vectors.grad, trained.scale.grad

    expected_scale = sum(
        g @ (x * right + y * up) for g, (x, y) in zip(gradients, PLACES, strict=True)
    )
    torch.testing.assert_close(got_scale, expected_scale, rtol=1e-12, atol=0)

    phi = made_orthogonal(parametrization)
    kept, made, by_made = (up, right, by_right) if phi == 1 else (right, up, by_up)
    vector = trained.vectors[phi].detach()
    q = vector - (vector @ kept) / (kept @ kept) * kept
    flat = SCALE * by_made
    for direction in (kept, made):
        flat = flat - (flat @ direction) / (direction @ direction) * direction
    expected = made.norm() / q.norm() * flat
    torch.testing.assert_close(got[phi], expected, rtol=1e-11, atol=1e-11)

    if parametrization == "paper":
        torch.testing.assert_close(got[0], total, rtol=0, atol=0)
    else:  # right = R - O: what moves R moves O the other way
        torch.testing.assert_close(got[0], total - got[1], rtol=1e-12, atol=1e-12)


@each_parametrization
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_sums_of_all_cells_give_the_gradient_of_every_parameter(parametrization, dimension):
    """The sums through Gram-Schmidt once, against autograd through all cells."""
    whole, sums = span(parametrization, dimension), span(parametrization, dimension)
    places = torch.randn(7, dimension, generator=generator(2), dtype=torch.float64)
    smooth(points_of(whole(), places)).sum().backward()
    leaf = sums().detach().requires_grad_()
    smooth(points_of(leaf, places)).sum().backward()
    sums().backward(leaf.grad)
    for one, other in zip(whole.parameters(), sums.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_paper_and_code_differ_as_the_source_says():  # METHODS A
    vectors = span().vectors.detach()
    paper, code = (Span(vectors, SCALE, kind).directions().detach() for kind in ("paper", "code"))
    assert torch.equal(paper[1], vectors[2])  # up is trained as it is
    assert torch.equal(code[0], vectors[1] - vectors[0])  # right is, as a difference
    assert paper[0].norm().item() == pytest.approx(vectors[2].norm().item(), rel=1e-12)
    assert code[1].norm().item() == pytest.approx(
        (vectors[1] - vectors[0]).norm().item(), rel=1e-12
    )


@each_parametrization
def test_float32_vectors_are_orthogonalised_in_float64(parametrization):
    vectors = torch.randn(3, 5000, generator=generator(0))
    vectors[2] = vectors[1] + 1e-3 * vectors[2]  # almost parallel
    directions = Span(vectors, SCALE, parametrization).directions()
    assert directions.dtype == torch.float64
    cosine = torch.nn.functional.cosine_similarity(directions[0], directions[1], dim=0)
    assert abs(cosine.item()) < 1e-11
    assert Span(vectors, SCALE, parametrization)().dtype == torch.float32


def test_oracle_7_a_rotated_pattern_is_a_rotated_slice():
    pattern = torch.zeros(5, 5, dtype=torch.bool)
    pattern[0, 1] = pattern[1, 1:4] = pattern[3, 2] = True
    places = torch.from_numpy(coordinates(pattern.numpy()))
    basis = span()().detach()
    losses = smooth(points_of(basis, places)).reshape(5, 5)
    origin, right, up = basis
    turned_basis = torch.stack([origin, -up, right])  # (right, up) -> (-up, right)
    turned = smooth(points_of(turned_basis, places)).reshape(5, 5)
    torch.testing.assert_close(turned, losses.rot90(-1), rtol=0, atol=1e-12)
    on_pattern = turned[pattern.rot90(-1)].sum().item()
    assert on_pattern == pytest.approx(losses[pattern].sum().item(), rel=1e-12)
    assert abs(turned[pattern].sum() - losses[pattern].sum()).item() > 0.1  # the control


# --- initial vectors ----------------------------------------------------------------------------


def network() -> nn.Module:
    return ll.models.small_cnn(channels=(4, 6), batchnorm=True, hidden=8)


def test_initial_vectors_are_independent_and_follow_the_seed():
    model = network()
    state = torch.get_rng_state()
    before = ll.weights_of(model)
    first = initial_vectors(model, 2, "xavier", None, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], w) for name, w in ll.weights_of(model).items())
    assert first.shape == (3, ll.weights.count(before)) and first.dtype == torch.float32
    assert torch.equal(first, initial_vectors(network(), 2, "xavier", None, 5))
    assert not torch.equal(first, initial_vectors(model, 2, "xavier", None, 6))
    assert len({row.sum().item() for row in first}) == 3


@pytest.mark.parametrize("initialization", ["xavier", "pytorch"])
def test_initial_weights_have_the_bounds_of_their_rule(initialization):
    model = network()
    for vector in initial_vectors(model, 2, initialization, None, 0):
        weights = ll.weights.unflatten(vector, ll.weights_of(model))
        for name, tensor in weights.items():
            if tensor.dim() > 1:
                inputs = tensor[0].numel()
                outputs = tensor.shape[0] * tensor[0, 0].numel()
                xavier = math.sqrt(6 / (inputs + outputs))
                bound = xavier if initialization == "xavier" else 1 / math.sqrt(inputs)
                assert 0.9 * bound < tensor.abs().max() <= bound
            elif name.startswith("bn"):
                assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight"))))
            else:
                assert tensor.any() == (initialization == "pytorch")


def test_a_given_origin_replaces_the_first_draw_only():
    model = network()
    free, given = (
        initial_vectors(model, 2, "pytorch", origin, 0) for origin in (None, ll.weights_of(model))
    )
    assert torch.equal(given[0], ll.weights.flatten(ll.weights_of(model)))
    assert torch.equal(given[1:], free[1:])


def test_a_model_that_cannot_be_drawn_anew_is_an_error():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.ones(3, 2))

    with pytest.raises(ValueError, match="no module of Own .* has reset_parameters"):
        initial_vectors(Own(), 2, "pytorch", None, 0)
    assert initial_vectors(Own(), 2, "xavier", None, 0).shape == (3, 6)
