"""Spectra: oracles 36, 37, 39 and 40 of METHODS, the exact spectrum, and another library's."""

from __future__ import annotations

import math
from types import SimpleNamespace

import hessian_eigenthings
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from cases import CASES
from torch import Tensor, nn

import landscape_lib as ll
from landscape_lib.curvature.spectrum import lanczos
from landscape_lib.runtime import generator
from landscape_lib.weights import flatten


class Quadratic(nn.Module):
    """A loss ``wᵀ diag(a) w / 2``, at whatever data."""

    def __init__(self, diagonal: Tensor) -> None:
        super().__init__()
        self.diagonal = diagonal
        self.w = nn.Parameter(torch.ones_like(diagonal))

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.diagonal * self.w**2).sum().expand(len(x))


NOTHING = SimpleNamespace(x=torch.zeros(5, 1).double(), y=torch.zeros(5).double())
ITSELF = {"loss": lambda output, target: output.mean(), "batch_size": 2}

# Oracle 39: 94 % zeros, a small positive bulk, one 40, one -0.46.
BULK = [0.001 * (1 + k % 5) for k in range(58)]
A = torch.tensor([0.0] * 940 + BULK + [40.0, -0.46], dtype=torch.float64)
A = A[torch.randperm(1000, generator=generator(0))]


def symmetric(n: int) -> tuple[Tensor, Tensor]:
    source = generator(n)
    a = torch.randn(n, n, generator=source, dtype=torch.float64)
    return (a + a.T) / 2, torch.randn(n, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_lanczos_matches_moments_and_no_more(steps: int) -> None:
    """Oracle 36: Σ w θ^p = vᵀA^p v for p up to 2m - 1, and not for 2m."""
    a, v = symmetric(12)
    nodes, weights = lanczos(lambda u: a @ u, v, steps)
    v = v / v.norm()
    for p in range(2 * steps + 1):
        right = float(v @ torch.linalg.matrix_power(a, p) @ v)
        moment = float(weights @ nodes**p)
        assert (moment == pytest.approx(right, rel=1e-10)) == (p < 2 * steps), p


def test_as_many_steps_as_dimensions_reproduce_the_spectrum() -> None:
    """Oracle 36."""
    a, v = symmetric(40)
    nodes, _ = lanczos(lambda u: a @ u, v, 40)
    np.testing.assert_allclose(nodes, torch.linalg.eigvalsh(a), atol=1e-12)


def test_large_eigenvalues_are_met_once() -> None:
    """Without reorthogonalisation Lanczos finds this 100 again and again (Paige, 1976)."""
    a = torch.cat([torch.linspace(0, 1, 199), torch.tensor([100.0])]).double()
    nodes, weights = lanczos(lambda u: a * u, torch.ones(200).double(), 60)
    assert int((nodes > 50).sum()) == 1
    assert weights[-1] == pytest.approx(1 / 200, rel=1e-10)


def test_density_of_a_network() -> None:
    """Oracle 37: weights at least 0 with sum 1, the density with integral 1 and mean vᵀHv."""
    model, data = CASES["mlp"].build()
    spectrum = ll.curvature.spectral_density(model, data, probes=4, steps=20, seed=3)
    assert spectrum.nodes.shape == (4, 20)
    assert float(spectrum.weights.min()) >= 0
    np.testing.assert_allclose(spectrum.weights.sum("node"), 1.0, rtol=1e-12)
    assert float(spectrum.density.integrate("eigenvalue")) == pytest.approx(1.0, abs=1e-8)
    mean = float((spectrum.density * spectrum.eigenvalue).integrate("eigenvalue"))
    trace = ll.curvature.trace(model, data, probes=4, seed=3)  # with the same probes
    assert mean * 83 == pytest.approx(trace.value, rel=1e-7)
    assert spectrum.attrs["sigma"] == pytest.approx(
        math.sqrt(1e-5) * float(spectrum.nodes.max() - spectrum.nodes.min())
    )


def test_density_from_all_eigenvalues_is_that_of_the_exact_spectrum() -> None:
    """Probes of random signs see each eigenvalue with weight 1/n on average (Hutchinson)."""
    model, data = CASES["mlp"].build()
    exact = torch.linalg.eigvalsh(ll.curvature.hessian(model, data)).numpy()
    settings = {"probes": 20, "steps": 83, "sigma": 0.02, "batch_size": 23}
    spectrum = ll.curvature.spectral_density(model, data, **settings)
    z = (spectrum.eigenvalue.values[:, None] - exact) / 0.02
    right = np.exp(-0.5 * z**2).mean(1) / (0.02 * math.sqrt(2 * math.pi))
    errors = np.abs(spectrum.density.values - right)[right > 0.1] / spectrum.density_se[right > 0.1]
    assert float(errors.mean()) < 1.2 and float(errors.max()) < 5  # 0.8 on average, if normal
    inside = ll.curvature.share(spectrum, -0.01, 0.01)
    assert abs(inside.value - (np.abs(exact) < 0.01).mean()) < 4 * inside.se


def test_mass_at_zero_extremes_and_trace_of_a_diagonal_hessian() -> None:
    """Oracles 37 and 39: all exact, and Lanczos ends after as many steps as distinct values."""
    model = Quadratic(A)
    spectrum = ll.curvature.spectral_density(model, NOTHING, probes=2, steps=100, **ITSELF)
    assert int(np.isfinite(spectrum.nodes).sum()) == 2 * len(A.unique()) == 16
    assert spectrum.attrs["products"] == 16
    zeros = ll.curvature.share(spectrum, -1e-4, 1e-4)
    assert zeros.value == zeros.lowest == zeros.highest == pytest.approx(0.94, abs=1e-12)
    assert ll.curvature.share(spectrum, -1.0, -1e-4).value == pytest.approx(0.001, abs=1e-12)
    assert float(spectrum.nodes.max()) == pytest.approx(40.0, abs=1e-12)
    assert float(spectrum.nodes.min()) == pytest.approx(-0.46, abs=1e-12)
    trace = ll.curvature.trace(model, NOTHING, probes=3, **ITSELF)
    assert trace.value == pytest.approx(float(A.sum()), rel=1e-12)
    assert trace.se < 1e-12


@pytest.mark.parametrize("steps", [4, 12, 40])
def test_shares_lie_within_their_bounds(steps: int) -> None:
    """Chebyshev, Markov and Stieltjes, for the eigenvalues as one probe weighs them."""
    a, v = symmetric(60)
    values, vectors = torch.linalg.eigh(a)
    mass = (vectors.T @ v / v.norm()).square().numpy()
    nodes, weights = lanczos(lambda u: a @ u, v, steps)
    spectrum = xr.Dataset(
        {
            "nodes": (("probe", "node"), nodes[None]),
            "weights": (("probe", "node"), weights[None]),
        }
    )
    widths = []
    for low, high in ((-1.0, 1.0), (-0.1, 0.1), (-20.0, 0.0), (2.0, 20.0), (-20.0, 20.0)):
        share = ll.curvature.share(spectrum, low, high)
        right = mass[(values.numpy() >= low) & (values.numpy() <= high)].sum()
        assert share.lowest - 1e-12 <= right <= share.highest + 1e-12
        assert share.lowest <= share.value <= share.highest + 1e-12
        widths.append(share.highest - share.lowest)
    assert np.mean(widths) < 4 / steps


def test_standard_error_of_the_trace_is_honest() -> None:
    """Its square is the variance over probes, which for random signs is 2 |H - diag H|² each."""
    model, data = CASES["mlp"].build()
    h = ll.curvature.hessian(model, data)
    apart = (h - torch.diag(h.diag())).square().sum()
    found = [ll.curvature.trace(model, data, probes=50, seed=seed) for seed in range(6)]
    right = math.sqrt(2 * float(apart) / 50)
    assert np.mean([f.se for f in found]) == pytest.approx(right, rel=0.15)
    z = [(f.value - float(h.trace())) / f.se for f in found]
    assert max(map(abs, z)) < 3.5 and len({f.value for f in found}) == 6
    assert math.isnan(ll.curvature.trace(model, data, probes=1).se)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_absolute_value_keeps_its_sign(sign: float) -> None:
    """Oracle 40."""
    found = ll.curvature.top_eigenvalues(Quadratic(sign * A), NOTHING, which="magnitude", **ITSELF)
    assert float(found.values[0]) == pytest.approx(sign * 40.0)
    assert float(found.vectors[0]["w"].abs().max()) == pytest.approx(1.0)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("k", [1, 5, 83])
def test_eigenpairs_are_those_of_the_exact_hessian(which: str, k: int) -> None:
    model, data = CASES["mlp"].build()
    h = ll.curvature.hessian(model, data)
    values, _ = torch.linalg.eigh(h)
    if which != "smallest":
        values = values.flip(0)
    if which == "magnitude":
        values = values[values.abs().argsort(descending=True)]
    found = ll.curvature.top_eigenvalues(model, data, k, which=which, tolerance=1e-12)
    torch.testing.assert_close(found.values, values[:k], rtol=1e-9, atol=1e-14)
    vectors = torch.stack([flatten(v) for v in found.vectors], dim=1)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(k).double(), atol=1e-8, rtol=0)
    residuals = (h @ vectors - vectors * found.values).norm(dim=0)
    torch.testing.assert_close(found.residuals, residuals, atol=1e-12, rtol=0)
    assert float(found.residuals.max()) < 1e-8
    assert all(float(flatten(v)[flatten(v).abs().argmax()]) > 0 for v in found.vectors)


def test_a_loose_tolerance_shows_in_the_residuals() -> None:
    """Within a residual of each value lies an eigenvalue (Weinstein)."""
    model, data = CASES["mlp"].build()
    exact = torch.linalg.eigvalsh(ll.curvature.hessian(model, data))
    found = ll.curvature.top_eigenvalues(model, data, 3, tolerance=0.1)
    distance = (found.values[:, None] - exact).abs().min(1).values
    assert bool((distance <= found.residuals + 1e-14).all())


def test_eigenvectors_are_axes_of_a_plane() -> None:
    """In which the Hessian is diagonal, with the eigenvalues."""
    model, data = CASES["mlp"].build()
    top = ll.curvature.top_eigenvalues(model, data, 2, tolerance=1e-12)
    plane = ll.Plane(ll.weights_of(model), top.vectors, [0.0, 0.1], [0.0, 0.1])
    found = ll.curvature.in_plane(model, data, plane)
    torch.testing.assert_close(found, torch.diag(top.values), atol=1e-9, rtol=0)
    assert ll.evaluate(model, plane, data, progress=False).loss.shape == (2, 2)


def test_extremes_and_convexity() -> None:
    """|λmin / λmax|, the quantity of Li et al.'s maps; 1 parameter is its own extremes."""
    model, data = CASES["mlp"].build()
    w = ll.weights.scale(ll.weights_of(model), 1.5)
    values = torch.linalg.eigvalsh(ll.curvature.hessian(model, data, weights=w))
    found = ll.curvature.extremes(model, data, weights=w, tolerance=1e-10)
    assert found.smallest == pytest.approx(float(values[0]))
    assert found.largest == pytest.approx(float(values[-1]))
    assert found.convexity == pytest.approx(abs(float(values[0] / values[-1])))
    few = ll.curvature.extremes(
        Quadratic(torch.tensor([10.0, 11, 0, -1, 0, 1]).double()), NOTHING, **ITSELF
    )
    assert (few.smallest, few.largest) == pytest.approx((-1.0, 11.0))
    one = Quadratic(torch.tensor([3.0]).double())
    assert ll.curvature.extremes(one, NOTHING, **ITSELF).smallest == pytest.approx(3.0)


def test_a_loss_without_curvature() -> None:
    flat = Quadratic(torch.zeros(100).double())
    assert torch.equal(
        ll.curvature.hessian(flat, NOTHING, **ITSELF), torch.zeros(100, 100).double()
    )
    spectrum = ll.curvature.spectral_density(flat, NOTHING, steps=5, **ITSELF)
    assert float(spectrum.nodes[0, 0]) == 0.0 and float(spectrum.weights[0, 0]) == 1.0
    found = ll.curvature.extremes(flat, NOTHING, **ITSELF)
    assert found.largest == 0.0 and math.isnan(found.convexity)


def test_same_as_pytorch_hessian_eigenthings() -> None:
    """An independent implementation (Golmant et al.), its Lanczos run to the end."""
    model, data = CASES["mlp"].build()
    theirs = hessian_eigenthings.HessianOperator(
        model.eval(), [(data.x, data.y)], hessian_eigenthings.supervised_loss(F.cross_entropy)
    )
    for which, name in {"LA": "largest", "SA": "smallest", "LM": "magnitude"}.items():
        right = hessian_eigenthings.lanczos(
            theirs, k=4, max_iter=60, which=which, reorthogonalize=True, seed=0
        )
        found = ll.curvature.top_eigenvalues(model, data, 4, which=name, batch_size=10)
        torch.testing.assert_close(
            found.values.sort().values, right.eigenvalues.sort().values, rtol=1e-8, atol=0
        )


def test_seed_decides_the_probes() -> None:
    model, data = CASES["mlp"].build()
    first, again, other = (
        ll.curvature.spectral_density(model, data, steps=10, seed=seed).drop_attrs()
        for seed in (1, 1, 2)
    )
    assert first.identical(again) and not first.equals(other)


def test_float32_finds_the_same_up_to_its_rounding() -> None:
    """ARPACK in float64 around products in float32 converges."""
    model, data = CASES["mlp"].build()
    exact = ll.curvature.top_eigenvalues(model, data, 3)
    found = ll.curvature.top_eigenvalues(model.float(), data, 3)
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values.double(), exact.values, rtol=1e-5, atol=0)
