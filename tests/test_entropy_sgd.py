"""Entropy-SGD descends on the local entropy: against closed forms, quadrature and plain SGD."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

import landscape_lib as ll
from landscape_lib import runtime
from landscape_lib.local_entropy import local_entropy
from landscape_lib.runtime import generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone())


def quadratic(n: int = 5) -> tuple[Tensor, Tensor]:
    """A positive definite matrix with eigenvalues between 0.5 and 4, and a centre."""
    basis = torch.linalg.qr(normal(n, n)).Q
    return basis @ torch.diag(torch.linspace(0.5, 4, n).double()) @ basis.T, normal(n, seed=1)


def half_square(a: Tensor, c: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (x - c) @ a @ (x - c)


GRID = torch.linspace(-30, 30, 60_001, dtype=torch.float64)


def entropy(f: Callable[[Tensor], Tensor], points: Tensor, gamma: float) -> Tensor:
    return local_entropy(f(GRID), GRID, points, gamma)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


class Batches:
    """A closure that gives another batch at each call."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls = model, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        x, y = normal(8, 5, seed=self.calls), torch.arange(8) % 3
        return F.cross_entropy(self.model(x), y)


def take_steps(optimizer: torch.optim.Optimizer, closure: Any, count: int) -> list[float]:
    return [float(optimizer.step(closure)) for _ in range(count)]


# --- oracles of the local entropy -----------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("curvature", [0.3, 4.0])
def test_oracle_20_the_local_entropy_of_a_quadratic(gamma, curvature):
    points = torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = entropy(lambda y: curvature / 2 * (y - 0.7).square(), points, gamma)
    narrowed = gamma * curvature / (curvature + gamma)
    expected = -narrowed / 2 * (points - 0.7).square() + 0.5 * math.log(
        2 * math.pi / (curvature + gamma)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.05, 0.5, 5.0])
def test_oracle_20_the_inner_loop_finds_the_mean_and_the_outer_step_the_gradient(gamma):
    a, c = quadratic()
    start, eye = normal(5, seed=2), torch.eye(5, dtype=torch.float64)
    x = parameter(start)
    optimizer = ll.EntropySGD(
        [x], lr=0.3, inner_steps=1500, noise=0, gamma=gamma, scoping=0, outer="gamma"
    )
    optimizer.step(lambda: half_square(a, c, x))
    mean = torch.linalg.solve(a + gamma * eye, a @ c + gamma * start)
    gradient = gamma * a @ torch.linalg.solve(a + gamma * eye, start - c)
    torch.testing.assert_close(gamma * (start - mean), gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(x.detach(), start - 0.3 * gradient, rtol=0, atol=1e-10)
    assert optimizer.last.distance == pytest.approx(float((start - mean).norm()), rel=1e-10)


@pytest.mark.parametrize("curvature", [0.2, 1.0, 6.0])
def test_oracle_21_the_curvature_of_the_local_entropy(curvature):
    h, found = 0.1, {}
    for gamma in (1e-2, 1.0, 1e3):
        below, here, above = -entropy(
            lambda y: curvature / 2 * y.square(),
            torch.tensor([-h, 0, h], dtype=torch.float64),
            gamma,
        )
        found[gamma] = float(below - 2 * here + above) / h**2
        assert found[gamma] == pytest.approx(curvature * gamma / (curvature + gamma), rel=1e-6)
        assert found[gamma] < min(curvature, gamma)
    assert found[1e3] == pytest.approx(curvature, rel=1e-2)  # the swapped limits of the report
    assert found[1e-2] == pytest.approx(0, abs=1.1e-2)


def test_oracle_22_the_local_entropy_far_out_is_the_loss_with_a_correction():
    points = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    f = lambda y: torch.cos(2 * y) + 0.1 * y**4  # noqa: E731
    slope = -2 * torch.sin(2 * points) + 0.4 * points**3
    bend = -4 * torch.cos(2 * points) + 1.2 * points**2
    errors = []
    for gamma in (100.0, 200.0):
        first = f(points) + 0.5 * math.log(gamma / 2 / math.pi) + (bend - slope**2) / (2 * gamma)
        errors.append(float((-entropy(f, points, gamma) - first).abs().max()))
    assert errors[0] < 20 / 100**2
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)  # of second order


def double_well(y: Tensor) -> Tensor:
    """A sharp well at -1, the deeper one, and a wide well at 1.5."""
    sharp, wide = torch.exp(-(((y + 1) / 0.1) ** 2)), torch.exp(-(((y - 1.5) / 1.0) ** 2))
    return 3 - 3.5 * sharp - 3 * wide + 0.02 * y**2


def test_oracle_23_the_minimum_moves_from_the_sharp_to_the_wide_valley():
    points, grid = (torch.linspace(-8, 8, n, dtype=torch.float64) for n in (801, 6401))
    lowest = {}
    for gamma in (1e3, 1.0):
        lowest[gamma] = float(
            points[local_entropy(double_well(grid), grid, points, gamma).argmax()]
        )
    assert float(points[double_well(points).argmin()]) == pytest.approx(-1, abs=0.02)
    assert lowest[1e3] == pytest.approx(-1, abs=0.02)
    assert lowest[1.0] == pytest.approx(1.5, abs=0.2)


# --- oracles of the algorithm ---------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("averaging", [0.3, 0.75, 1.0])
def test_oracle_24_the_mean_of_the_inner_loop_in_closed_form(steps, averaging):
    curvature, gamma, rate, centre, start = 2.0, 0.5, 0.1, 0.7, 3.0
    x = parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = ll.EntropySGD(
        [x], inner_lr=rate, inner_steps=steps, gamma=gamma, noise=0, averaging=averaging
    )
    optimizer.step(lambda: (curvature / 2 * (x - centre).square()).sum())
    h, old = curvature + gamma, 1 - averaging
    r, m = 1 - rate * h, (curvature * centre + gamma * start) / h
    weight = old**steps + (1 - old) * r * (r**steps - old**steps) / (r - old)
    assert x.item() == pytest.approx(m + (start - m) * weight, rel=1e-12)


def test_oracle_25_mean_and_variance_of_the_langevin_samples():
    curvature, gamma, rate, centre, start = 2.0, 1.0, 0.2, 0.5, 1.5
    noise, chains = 0.3, 4000
    x = parameter(torch.full((chains,), start, dtype=torch.float64))
    samples: list[Tensor] = []

    def closure() -> Tensor:
        samples.append(x.detach().clone())
        return (curvature / 2 * (x - centre).square()).sum()

    optimizer = ll.EntropySGD([x], inner_lr=rate, inner_steps=120, gamma=gamma, noise=noise)
    optimizer.step(closure)
    settled = torch.stack(samples[40::8])  # nearly independent: (1 - rate h)^8 = 7e-4
    h, temperature = curvature + gamma, noise**2 / 2
    mean = (curvature * centre + gamma * start) / h
    variance = temperature / (h * (1 - rate * h / 2))
    count = settled.numel()
    assert float(settled.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert float(settled.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("averaging", [0.25, 0.75])
def test_oracle_26_one_inner_step_without_noise_is_sgd(averaging):
    a, c = quadratic()
    x, y = parameter(normal(5, seed=2)), parameter(normal(5, seed=2))
    entropic = ll.EntropySGD(
        [x], lr=0.7, inner_lr=0.2, inner_steps=1, noise=0, gamma=9.0, averaging=averaging
    )
    plain = torch.optim.SGD([y], lr=0.7 * 0.2 * averaging)
    for _ in range(5):
        entropic.step(lambda: half_square(a, c, x))
        plain.zero_grad()
        half_square(a, c, y).backward()
        plain.step()
        torch.testing.assert_close(x.detach(), y.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("outer", ["gamma", "dropped-gamma"])
def test_oracle_26_no_inner_steps_is_sgd_with_nesterov_momentum(momentum, outer):
    model, other = network(), network()
    entropic = ll.EntropySGD(
        model.parameters(), lr=0.1, inner_steps=0, momentum=momentum, outer=outer
    )
    plain = torch.optim.SGD(other.parameters(), lr=0.1, momentum=momentum, nesterov=momentum > 0)
    closure, reference = Batches(model), Batches(other)
    for _ in range(6):
        loss = entropic.step(closure)
        plain.zero_grad()
        expected = reference()
        expected.backward()
        plain.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    assert closure.calls == 6
    assert entropic.batches_per_step == 1


def test_oracle_27_the_outer_conventions_part_for_large_gamma():
    a, c = quadratic()
    start, rate = normal(5, seed=2), 0.3
    gradient = a @ (start - c)
    moved = {}
    for outer in ("gamma", "dropped-gamma"):
        for gamma in (1e4, 1e6):
            x = parameter(start)
            ll.EntropySGD(
                [x], lr=rate, inner_lr=0.5 / gamma, inner_steps=80, gamma=gamma, noise=0,
                outer=outer,
            ).step(lambda x=x: half_square(a, c, x))  # fmt: skip
            moved[outer, gamma] = (start - x.detach()) / rate
    for gamma in (1e4, 1e6):
        torch.testing.assert_close(moved["gamma", gamma], gradient, rtol=10 / gamma, atol=1e-6)
        torch.testing.assert_close(
            moved["dropped-gamma", gamma], gradient / gamma, rtol=10 / gamma, atol=1e-9
        )


def test_oracle_28_gamma_grows_and_gradients_are_counted():
    model = network()
    optimizer = ll.EntropySGD(model.parameters(), gamma=0.03, scoping=0.1, inner_steps=4)
    closure = Batches(model)
    seen = []
    for _ in range(5):
        optimizer.step(closure)
        seen.append(optimizer.last.gamma)
        assert len(optimizer.last.losses) == 4
    assert seen == pytest.approx([0.03 * 1.1**t for t in range(5)], rel=1e-12)
    assert closure.calls == optimizer.param_groups[0]["gradients"] == 20


def test_oracle_28_the_grown_gamma_is_the_one_that_pulls():
    a, c = quadratic()
    x, y = parameter(normal(5, seed=2)), parameter(normal(5, seed=2))
    growing = ll.EntropySGD([x], gamma=0.5, scoping=1.0, inner_steps=5, noise=0)
    for gamma in (0.5, 1.0, 2.0):
        growing.step(lambda: half_square(a, c, x))
        fixed = ll.EntropySGD([y], gamma=gamma, scoping=0, inner_steps=5, noise=0)
        fixed.step(lambda: half_square(a, c, y))
        torch.testing.assert_close(x.detach(), y.detach(), rtol=1e-12, atol=1e-12)


def test_momentum_of_the_inner_loop_starts_anew():  # METHODS C: the buffer is zeroed
    a, c = quadratic()
    gamma, rate, momentum, averaging = 0.5, 0.05, 0.9, 0.6
    x = parameter(normal(5, seed=2))
    optimizer = ll.EntropySGD(
        [x], inner_lr=rate, inner_steps=3, gamma=gamma, scoping=0, noise=0, averaging=averaging,
        momentum=momentum, lr=0.8,
    )  # fmt: skip
    point = x.detach().clone()
    for _ in range(2):
        y, mean, v = point.clone(), point.clone(), torch.zeros(5, dtype=torch.float64)
        for _ in range(3):
            g = a @ (y - c)
            v = momentum * v + g
            y = y - rate * (g + momentum * v - gamma * (point - y))  # the force after momentum
            mean = (1 - averaging) * mean + averaging * y
        point = point - 0.8 * (point - mean)
        optimizer.step(lambda: half_square(a, c, x))
        torch.testing.assert_close(x.detach(), point, rtol=1e-12, atol=1e-12)


# --- noise ----------------------------------------------------------------------------------------


def test_noise_follows_the_seed_and_the_step_and_leaves_the_global_state():
    ends = {}
    for seed in (0, 0, 1):
        x = parameter(torch.zeros(1000, dtype=torch.float64))
        optimizer = ll.EntropySGD(
            [x], inner_steps=1, inner_lr=0.25, noise=2.0, averaging=1.0, seed=seed
        )
        with runtime.isolated_random_state(0):
            expected = torch.get_rng_state()
            for step in range(2):
                before = x.detach().clone()
                optimizer.step(lambda x=x: 0 * x.sum())
                shift = x.detach() - before
                assert torch.equal(ends.setdefault((seed, step), shift), shift)
                assert float(shift.std()) == pytest.approx(math.sqrt(0.25) * 2.0, rel=0.1)
            assert torch.equal(torch.get_rng_state(), expected)
    shifts = torch.stack(list(ends.values()))
    assert len(shifts) == 4
    assert float((torch.corrcoef(shifts) - torch.eye(4)).abs().max()) < 0.15


# --- an optimiser of torch's ----------------------------------------------------------------------


@pytest.mark.parametrize("inner_steps", [0, 3])
def test_goes_on_from_its_state_dict_to_the_same_bits(tmp_path, inner_steps):
    def build(model: nn.Module, **settings: Any) -> ll.EntropySGD:
        return ll.EntropySGD(model.parameters(), inner_lr=0.05, noise=0.1, **settings)

    model, other = network(), network()
    settings = {"inner_steps": inner_steps, "momentum": 0.9, "scoping": 0.2, "lr": 0.3, "seed": 3}
    optimizer, closure = build(model, **settings), Batches(model)
    take_steps(optimizer, closure, 3)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(weights)
    resumed, rest = build(other), Batches(other)
    resumed.load_state_dict(state)
    rest.calls = closure.calls
    assert take_steps(optimizer, closure, 3) == take_steps(resumed, rest, 3)
    assert optimizer.last == resumed.last
    assert resumed.param_groups == [
        group | {"params": list(other.parameters())} for group in optimizer.param_groups
    ]
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert copy.deepcopy(optimizer).param_groups[0]["steps"] == 6


def test_groups_step_as_one_and_may_have_their_own_rates():
    one, two = network(), network()
    parts = list(two.parameters())
    single = ll.EntropySGD(one.parameters(), inner_steps=4)
    grouped = ll.EntropySGD([{"params": parts[:1]}, {"params": parts[1:]}], inner_steps=4)
    assert take_steps(single, Batches(one), 3) == take_steps(grouped, Batches(two), 3)
    frozen = ll.EntropySGD([{"params": parts[:1], "lr": 0.0}, {"params": parts[1:]}])
    before = [p.detach().clone() for p in parts]
    take_steps(frozen, Batches(two), 1)
    assert torch.equal(parts[0], before[0])
    assert not any(torch.equal(p, b) for p, b in zip(parts[1:], before[1:], strict=True))


def test_a_schedule_scales_the_outer_step():
    x, y = parameter(normal(3)), parameter(normal(3))
    scheduled = ll.EntropySGD([x], scoping=0, noise=0, outer="gamma", gamma=1.0)
    plain = ll.EntropySGD([y], scoping=0, noise=0, outer="gamma", gamma=1.0)
    schedule = ExponentialLR(scheduled, 0.5)
    for rate in (1.0, 0.5, 0.25):
        with torch.no_grad():
            y.copy_(x)
        start = x.detach().clone()
        scheduled.step(lambda: x.square().sum())
        plain.step(lambda: y.square().sum())
        torch.testing.assert_close(x.detach() - start, rate * (y.detach() - start))
        schedule.step()


def test_gradients_do_not_add_up_and_unseen_weights_stay():
    x, unseen = parameter(normal(3)), parameter(normal(3, seed=1))
    before = unseen.detach().clone()
    optimizer = ll.EntropySGD([x, unseen], noise=1.0, inner_steps=3)
    points: list[Tensor] = []

    def closure() -> Tensor:
        points.append(x.detach().clone())
        return x.square().sum()

    x.grad = torch.full_like(x, 7.0)
    optimizer.step(closure)
    assert torch.equal(unseen.detach(), before)
    torch.testing.assert_close(x.grad, 2 * points[-1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("call", [1, 3, 5])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights(bad, call, where):
    model = network()
    batches = Batches(model)

    def closure() -> Tensor:
        loss = batches()
        if batches.calls != call:
            return loss
        if where == "gradient":
            loss.register_hook(lambda gradient: gradient * bad)
            return loss
        return loss + bad

    before = [p.detach().clone() for p in model.parameters()]
    optimizer = ll.EntropySGD(model.parameters(), inner_steps=5)
    optimizer.step(closure)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert math.isnan(optimizer.last.distance)
    assert optimizer.param_groups[0]["gradients"] == 5
    optimizer.step(closure)
    assert math.isfinite(optimizer.last.distance)


def test_an_error_within_the_inner_loop_leaves_the_weights():
    model = network()
    batches = Batches(model)

    def closure() -> Tensor:
        if batches.calls == 3:
            raise KeyboardInterrupt
        return batches()

    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        ll.EntropySGD(model.parameters()).step(closure)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "lr": [-1, math.nan, math.inf, None],
        "inner_lr": [0, -0.1, math.nan, math.inf, "0.1"],
        "inner_steps": [-1, 1.5, True, None],
        "gamma": [-1, math.nan, math.inf, "1"],
        "scoping": [-0.1, math.nan, None],
        "noise": [-1e-4, math.inf, "0"],
        "averaging": [0, -1, 1.1, math.nan, None],
        "momentum": [-0.1, 1, math.nan, None],
        "outer": ["paper", None, 1],
        "seed": [-1, 0.5, None, True],
    }.items(),
)
def test_settings_out_of_range_are_named(name, values):
    for value in values:
        x = parameter(normal(2))
        with pytest.raises(ValueError, match=f"^{name}: expected .*got {value!r}"):
            ll.EntropySGD([x], **{name: value})
        with pytest.raises(ValueError, match=f"^{name}: expected .*got {value!r}"):
            ll.EntropySGD([{"params": [x], name: value}])


@pytest.mark.parametrize("name", ["inner_steps", "seed"])
def test_groups_share_batches_and_noise(name):
    optimizer = ll.EntropySGD([parameter(normal(2))])
    with pytest.raises(ValueError, match=f"^{name}: expected one value for all groups"):
        optimizer.add_param_group({"params": [parameter(normal(2))], name: 7})
    assert len(optimizer.param_groups) == 1


def test_weights_that_are_not_real_are_refused():
    with pytest.raises(TypeError, match="^params: expected dense tensors of real numbers"):
        ll.EntropySGD([torch.ones(2, dtype=torch.int64)])


def test_bad_input_of_local_entropy_is_named():
    with pytest.raises(ValueError, match="^gamma: expected a finite number above 0, got 0"):
        local_entropy(GRID, GRID, GRID[:2], 0)
    with pytest.raises(ValueError, match=r"^grid: expected .*shapes \(3,\) and \(2,\)"):
        local_entropy(GRID[:2], GRID[:3], GRID[:2], 1.0)
    with pytest.raises(ValueError, match="^grid: expected a rising one"):
        local_entropy(GRID, GRID.flip(0), GRID[:2], 1.0)
