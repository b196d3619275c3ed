"""PAL takes the step that its rule says, along one line, and sees the same function twice."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

import landscape_lib as ll
from landscape_lib import runtime
from landscape_lib.runtime import generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def quadratic(n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A positive definite matrix and a centre."""
    root = normal(n, n, seed=seed)
    return root @ root.T + torch.eye(n), normal(n, seed=seed + 1)


def parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone())


def half_square(a: Tensor, c: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (x - c) @ a @ (x - c)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)]
        return nn.Sequential(*layers).double()


X, Y = normal(16, 5, seed=3), torch.arange(16) % 3


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(X), Y)


def take_steps(optimizer: torch.optim.Optimizer, closure: Any, count: int) -> list[float]:
    return [float(optimizer.step(closure)) for _ in range(count)]


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("n", [1, 7])
def test_oracle_12_one_step_reaches_the_minimum_of_an_isotropic_quadratic(mu, n):
    centre = normal(n, seed=1)
    x = parameter(normal(n))
    optimizer = ll.PAL([x], mu=mu, s_max=100.0)
    optimizer.step(lambda: 1.5 * (x - centre).square().sum() + 2.0)
    torch.testing.assert_close(x.detach(), centre, rtol=0, atol=1e-8)
    assert optimizer.last.case == "minimum"
    assert optimizer.last.a == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("mu", [1e-2, 0.1, 1.0])
def test_oracle_13_a_quadratic_without_momentum_is_steepest_descent(mu):
    a, c = quadratic()
    x = parameter(normal(6, seed=2))
    optimizer = ll.PAL([x], mu=mu, s_max=100.0, beta=0.0)
    expected = x.detach().clone()
    for _ in range(5):
        g = a @ (expected - c)
        expected = expected - (g @ g) / (g @ a @ g) * g
        optimizer.step(lambda: half_square(a, c, x))
        torch.testing.assert_close(x.detach(), expected, rtol=1e-7, atol=1e-8)


def test_momentum_turns_the_line_and_the_slope_is_that_of_the_line():  # METHODS B, the rule
    a, c = quadratic()
    x = parameter(normal(6, seed=2))
    optimizer = ll.PAL([x], beta=0.4, s_max=100.0)
    point, v = x.detach().clone(), torch.zeros(6, dtype=torch.float64)
    for _ in range(5):
        g = a @ (point - c)
        v = g + 0.4 * v
        d = -v / v.norm()
        step = max(0.0, float(-(g @ d) / (d @ a @ d)))
        point = point + step * d
        optimizer.step(lambda: half_square(a, c, x))
        assert optimizer.last.b == pytest.approx(float(g @ d), rel=1e-8)
        assert optimizer.last.norm == pytest.approx(float(v.norm()), rel=1e-8)
        assert optimizer.last.step == pytest.approx(step, rel=1e-6)
        torch.testing.assert_close(x.detach(), point, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2, 1.7, 2.0])
def test_oracle_14_alpha_shrinks_the_excess_along_the_line(alpha):
    a, c = quadratic()
    x = parameter(normal(6, seed=2))
    closure = lambda: half_square(a, c, x)  # noqa: E731
    best = parameter(x.detach())
    ll.PAL([best], s_max=100.0).step(lambda: half_square(a, c, best))
    lowest = half_square(a, c, best).item()
    optimizer = ll.PAL([x], alpha=alpha, s_max=100.0)
    before = float(optimizer.step(closure))
    assert closure().item() - lowest == pytest.approx(
        (1 - alpha) ** 2 * (before - lowest), rel=1e-6, abs=1e-8
    )


def test_oracle_15_scale_and_offset_of_the_loss_do_not_matter():
    a, c = quadratic()
    steps = []
    for scale, offset in ((1.0, 0.0), (7.0, -3.0)):
        x = parameter(normal(6, seed=2))
        optimizer = ll.PAL([x])
        for _ in range(4):
            optimizer.step(lambda x=x, k=scale, o=offset: k * half_square(a, c, x) + o)
            steps.append(optimizer.last.step)
    assert steps[:4] == pytest.approx(steps[4:], rel=1e-9)


def test_oracle_15_turning_the_weights_turns_the_steps_but_scaling_does_not():
    a, c = quadratic()
    turn = torch.linalg.qr(normal(6, 6, seed=5)).Q
    start = normal(6, seed=2)
    x, turned, scaled = parameter(start), parameter(turn @ start), parameter(10 * start)
    pairs = [
        (x, lambda: half_square(a, c, x)),
        (turned, lambda: half_square(a, c, turn.T @ turned)),
        (scaled, lambda: half_square(a, c, scaled / 10)),
    ]
    for weights, closure in pairs:
        take_steps(ll.PAL([weights], s_max=0.5), closure, 4)
    torch.testing.assert_close(turn.T @ turned.detach(), x.detach(), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(scaled.detach() / 10, x.detach(), rtol=0.01)


@pytest.mark.parametrize(("mu", "s_max"), [(0.1, 3.6), (2.0, 0.5)])
def test_oracle_16_where_the_line_bends_down_the_step_is_mu_at_most_s_max(mu, s_max):
    x = parameter(torch.tensor([0.3, 0.4], dtype=torch.float64))
    optimizer = ll.PAL([x], mu=mu, s_max=s_max)
    optimizer.step(lambda: -x.square().sum())
    assert optimizer.last.case == "mu"
    assert optimizer.last.step == min(mu, s_max)
    assert float(x.detach().norm()) == pytest.approx(0.5 + min(mu, s_max), rel=1e-12)


def test_oracle_16_where_the_line_rises_the_weights_keep_their_bits():
    x = parameter(normal(50).float())
    sign = 1.0
    optimizer = ll.PAL([x], beta=0.9)
    closure = lambda: sign * x.square().sum()  # noqa: E731
    optimizer.step(closure)
    sign, before = -0.1, x.detach().clone()  # momentum now leads up
    optimizer.step(closure)
    assert optimizer.last.b > 0
    assert optimizer.last.case == "stay"
    assert torch.equal(x.detach(), before)


def test_oracle_16_a_saved_copy_keeps_bits_that_plus_and_minus_mu_do_not():
    weights = normal(10_000).float()
    d = normal(10_000, seed=1).float()
    d /= d.norm()
    assert not torch.equal(weights + 0.1 * d - 0.1 * d, weights)
    x = parameter(weights)
    ll.PAL([x], lr=0.0).step(lambda: (x * d).sin().sum())
    assert torch.equal(x.detach(), weights)


def test_oracle_17_the_first_step_does_not_depend_on_beta_and_later_ones_do():
    a, c = quadratic()
    ends = []
    for beta in (0.0, 0.4):
        x = parameter(normal(6, seed=2))
        optimizer = ll.PAL([x], beta=beta)
        for _ in range(2):
            optimizer.step(lambda x=x: half_square(a, c, x))
            ends.append(x.detach().clone())
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[1], ends[3])


def test_oracle_17_no_step_is_longer_than_s_max():
    model = network()
    optimizer = ll.PAL(model.parameters(), s_max=0.05, alpha=1.7)
    steps = []
    for _ in range(20):
        before = ll.weights_of(model)
        optimizer.step(loss_of(model))
        after = ll.weights_of(model)
        moved = math.sqrt(sum(float((after[k] - before[k]).square().sum()) for k in after))
        assert moved == pytest.approx(optimizer.last.step, abs=1e-12)
        steps.append(optimizer.last.step)
    assert max(steps) == 0.05


def test_oracle_17_a_step_is_two_forward_passes_and_one_backward_pass():
    passes = {"forward": 0, "backward": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            passes["forward"] += 1
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            passes["backward"] += 1
            return gradient

    x = parameter(normal(4))
    optimizer = ll.PAL([x])
    take_steps(optimizer, lambda: Counted.apply(x).square().sum(), 3)
    assert passes == {"forward": 6, "backward": 3}
    group = optimizer.param_groups[0]
    assert (group["forwards"], group["steps"]) == (6, 3)


def test_oracle_18_both_losses_are_those_of_one_function():
    def random_numbers() -> list[float]:  # of numpy and Python, too, as augmentation may use
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def closure() -> Tensor:
        drawn.append(random_numbers())
        return F.cross_entropy(model(X + sum(drawn[-1])), Y)

    model, drawn = network(), []
    with runtime.isolated_random_state(5):
        optimizer = ll.PAL(model.parameters(), mu=1e-300)  # so small that no weight changes
        optimizer.step(closure)
        after = random_numbers()
    assert optimizer.last.loss_at_mu == optimizer.last.loss
    assert drawn[0] == drawn[1]
    model = network()
    with runtime.isolated_random_state(5):
        closure()
        assert after == random_numbers()  # as after one evaluation


def test_oracle_18_buffers_change_once():
    model, reference = network(), network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ll.PAL(model.parameters()).step(loss_of(model))
        torch.manual_seed(5)
        loss_of(reference)()
    for name, buffer in reference.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name
    assert int(model[1].num_batches_tracked) == 1


class Own(nn.Module):
    """Buffers that the forward pass puts in place of the old ones, and uses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * (x.detach() + self.weight.detach())
        return (self.weight * x - self.mean).square().sum()


def spectral() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Tanh())


@pytest.mark.parametrize("build", [Own, spectral])
def test_oracle_18_other_buffers_too_belong_to_the_function(build):
    model, reference = build(), build()
    x = torch.arange(3, dtype=next(model.parameters()).dtype)
    optimizer = ll.PAL(model.parameters(), mu=1e-30)
    optimizer.step(lambda: model(x).sum())
    assert optimizer.last.loss_at_mu == optimizer.last.loss
    reference(x)
    for name, buffer in reference.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", ["loss", "loss at mu", "gradient"])
def test_oracle_19_what_is_not_finite_changes_nothing(bad, when):
    model = network()
    optimizer = ll.PAL(model.parameters())
    optimizer.step(loss_of(model))
    before, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    calls = []

    def closure() -> Tensor:
        loss = F.cross_entropy(model(X), Y)
        calls.append(loss)
        if when == "gradient" and len(calls) == 1:
            loss.register_hook(lambda gradient: gradient * bad)
        wrong = len(calls) == {"loss": 1, "loss at mu": 2, "gradient": 0}[when]
        return loss + bad if wrong else loss

    optimizer.step(closure)
    assert optimizer.last.case == "skipped"
    assert optimizer.last.step == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for number, entries in optimizer.state_dict()["state"].items():
        assert torch.equal(entries["velocity"], memory["state"][number]["velocity"])
    take_steps(optimizer, loss_of(model), 1)
    assert optimizer.last.case != "skipped"
    assert not torch.equal(model[0].weight.detach(), before["0.weight"])


# --- pitfalls -------------------------------------------------------------------------------------


def test_a_straight_line_in_float32_is_straight():  # METHODS B, pitfall 6
    steps, raw = set(), set()
    for seed in range(100):
        x = parameter(normal(200, seed=seed).float())
        direction = normal(200, seed=1000 + seed).float()
        optimizer = ll.PAL([x])
        optimizer.step(lambda x=x, d=direction: x @ d)
        last = optimizer.last
        steps.add((last.case, last.a, last.step))
        raw.add(math.copysign(1, last.loss_at_mu - last.loss - last.b * 0.1))
    assert raw == {-1, 1}  # rounding bends it both ways
    assert steps == {("mu", 0.0, 0.1)}


def test_groups_make_one_line():  # METHODS B, pitfall 4
    one, two = network().eval(), network().eval()
    single = ll.PAL(one.parameters())
    parts = list(two.parameters())
    grouped = ll.PAL([{"params": parts[:2]}, {"params": parts[2:4]}])
    grouped.add_param_group({"params": parts[4:]})
    assert take_steps(single, loss_of(one), 5) == take_steps(grouped, loss_of(two), 5)
    for name, weight in ll.weights_of(one).items():
        assert torch.equal(weight, ll.weights_of(two)[name])


def test_weights_that_the_loss_does_not_see_stay():
    x, unseen = parameter(normal(3)), parameter(normal(3, seed=1))
    optimizer = ll.PAL([x, unseen])
    before = unseen.detach().clone()
    take_steps(optimizer, lambda: x.square().sum(), 2)
    assert torch.equal(unseen.detach(), before)
    assert unseen.grad is None


def test_an_error_in_the_second_evaluation_leaves_the_weights():
    x = parameter(normal(3))
    before, calls = x.detach().clone(), []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return x.square().sum()

    with pytest.raises(KeyboardInterrupt):
        ll.PAL([x]).step(closure)
    assert torch.equal(x.detach(), before)


# --- an optimiser of torch's ----------------------------------------------------------------------


def test_gradients_are_the_steps_own_whoever_clears_them():  # METHODS B, pitfall 8
    model, other = network().eval(), network().eval()
    one, two = ll.PAL(model.parameters()), ll.PAL(other.parameters())
    for _ in range(3):
        gradient = torch.autograd.grad(loss_of(model)(), list(model.parameters()))
        two.zero_grad()
        assert float(one.step(loss_of(model))) == float(two.step(loss_of(other)))
        for p, g in zip(model.parameters(), gradient, strict=True):
            assert torch.equal(p.grad, g)
    one.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_goes_on_from_its_state_dict_to_the_same_bits(tmp_path):
    model = network().eval()
    optimizer = ll.PAL(model.parameters(), decay=0.9)
    take_steps(optimizer, loss_of(model), 3)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = network().eval()
    other.load_state_dict(weights)
    resumed = ll.PAL(other.parameters())
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["forwards"] == 6
    assert take_steps(optimizer, loss_of(model), 3) == take_steps(resumed, loss_of(other), 3)
    assert optimizer.last == resumed.last
    assert copy.deepcopy(optimizer).param_groups[0]["steps"] == 6


def test_decay_shrinks_mu_and_s_max():  # METHODS B: the authors' arguments
    x = parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = ll.PAL([x], mu=1.0, s_max=0.5, decay=0.5)
    seen = []
    for _ in range(4):
        optimizer.step(lambda: -x.square().sum())
        seen.append((optimizer.last.mu, optimizer.last.step))
    assert seen == [(1.0, 0.5), (0.5, 0.25), (0.25, 0.125), (0.125, 0.0625)]


def test_a_schedule_scales_the_step():
    x, y = parameter(normal(3)), parameter(normal(3))
    scheduled, plain = ll.PAL([x], beta=0.0), ll.PAL([y], beta=0.0)
    schedule = ExponentialLR(scheduled, 0.5)
    for rate in (1.0, 0.5, 0.25):
        with torch.no_grad():
            y.copy_(x)
        scheduled.step(lambda: x.square().sum())
        plain.step(lambda: y.square().sum())
        assert scheduled.last.step == pytest.approx(rate * plain.last.step, rel=1e-12)
        schedule.step()


def test_float16_bits_and_channels_last_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(4, 3, 6, 6)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    model = model.bfloat16().to(memory_format=torch.channels_last)
    optimizer = ll.PAL(model.parameters())
    closure = lambda: model(images.bfloat16()).float().square().mean()  # noqa: E731
    losses = take_steps(optimizer, closure, 10)
    assert losses[-1] < losses[0]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "mu": [0, -0.1, math.nan, math.inf, "0.1", True],
        "s_max": [0, -1, math.nan, math.inf, None],
        "alpha": [0, -1, math.nan, "1"],
        "beta": [-0.1, 1, 2, math.nan, None],
        "decay": [0, 1.1, math.nan, "1"],
        "lr": [-1, math.nan, math.inf, None],
    }.items(),
)
def test_settings_out_of_range_are_named(name, values):
    for value in values:
        x = parameter(normal(2))
        with pytest.raises(ValueError, match=f"^{name}: expected .*got {value!r}"):
            ll.PAL([x], **{name: value})
        with pytest.raises(ValueError, match=f"^{name}: expected .*got {value!r}"):
            ll.PAL([{"params": [x], name: value}])


def test_groups_with_their_own_settings_are_refused():
    x, y = parameter(normal(2)), parameter(normal(2))
    optimizer = ll.PAL([x])
    with pytest.raises(ValueError, match=r"^mu: expected one value for all groups .*\[0.1, 0.2\]"):
        optimizer.add_param_group({"params": [y], "mu": 0.2})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [y]})
    LambdaLR(optimizer, [lambda _: 1.0, lambda _: 0.5])
    with pytest.raises(ValueError, match="^lr: expected one value for all groups"):
        optimizer.step(lambda: (x + y).square().sum())


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_that_are_not_real_are_refused(dtype):
    with pytest.raises(TypeError, match="^params: expected dense tensors of real numbers"):
        ll.PAL([torch.ones(2, dtype=dtype)])
    with pytest.raises(ValueError, match="empty parameter list"):
        ll.PAL([])


@pytest.mark.parametrize("optimizer_type", [ll.PAL, ll.EntropySGD])
def test_closures_that_give_no_loss_are_refused(optimizer_type):
    x = parameter(normal(2))
    optimizer = optimizer_type([x])
    before = x.detach().clone()

    def with_backward() -> Tensor:
        loss = x.square().sum()
        loss.backward()
        return loss

    cases: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "^closure: expected a callable .*got NoneType"),
        (x.square().sum(), TypeError, "^closure: expected a callable .*got Tensor"),
        (lambda: 1.0, TypeError, "^closure: expected it to return .*got float"),
        (lambda: x.square(), TypeError, r"^closure: expected it to return .*shape \(2,\)"),
        (with_backward, RuntimeError, "^closure: expected no call of backward"),
        (lambda: x.detach().sum(), RuntimeError, "^closure: expected a loss that depends"),
        (lambda: parameter(x.detach()).sum(), RuntimeError, "^closure: expected a loss that dep"),
    ]
    for closure, error, message in cases:
        with pytest.raises(error, match=message):
            optimizer.step(closure)
        assert torch.equal(x.detach(), before)


def test_a_mu_that_has_decayed_to_nothing_takes_no_step():
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    pal = ll.PAL([w], decay=0.5)
    pal.param_groups[0]["steps"] = 1200
    pal.step(lambda: (w**2 + w).sum())
    assert pal.last.mu == pal.last.step == 0 and w.item() == 1
