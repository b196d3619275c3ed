"""All methods give the losses and gradients of cells one by one: METHODS oracles 6, 10 and 11."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import landscape_lib as ll
from landscape_lib.evaluation import batchnorm
from landscape_lib.mpo.cells import Cells
from landscape_lib.mpo.draws import Objective
from landscape_lib.runtime import generator

OBJECTIVE = Objective(low=3, high=2, high_weight=0.7, tau=2.0)
K = OBJECTIVE.low + OBJECTIVE.high


class Strided(nn.Module):
    """Strides, dilation, no bias, a functional activation, a residual sum, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, stride=2, padding=2, dilation=2, bias=False)
        self.again = nn.Conv2d(5, 5, 1)
        self.out = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        x = x + self.again(F.relu(self.again(x)))
        return self.out(x.mean((2, 3)))


class Sequence(nn.Module):
    """A linear layer on samples that are sequences, then a one-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Linear(6, 7)
        self.conv = nn.Conv1d(7, 4, 3)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.token(x)).transpose(1, 2)
        return self.out(self.conv(x).amax(2))


def mean_zero(initialization: str) -> nn.Module:
    return batchnorm.mean_zero(CASES["cnn with batch norm"].build()[0], initialization)


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: CASES["mlp"].build()[0], (6,)),
    "small cnn": (lambda: ll.models.small_cnn(2, 3, (4, 6), hidden=8, seed=0), (2, 6, 6)),
    "small cnn, pooled": (
        lambda: ll.models.small_cnn(2, 3, (4, 6), pool=True, hidden=8, seed=0),
        (2, 8, 8),
    ),
    "batch norm": (lambda: CASES["cnn with batch norm"].build()[0], (2, 6, 6)),
    "batch norm, paper's mean zero": (lambda: mean_zero("paper"), (2, 6, 6)),
    "batch norm, code's mean zero": (lambda: mean_zero("code"), (2, 6, 6)),
    "resnet": (lambda: ll.models.resnet(8, in_channels=2, classes=3, width=2, seed=0), (2, 6, 6)),
    "strided": (Strided, (2, 7, 7)),
    "sequence": (Sequence, (5, 6)),
    "one layer": (lambda: nn.Linear(6, 3), (6,)),
}


def batch_norm_1d() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))


MODELS["batch norm of features"] = (batch_norm_1d, (6,))


def setup(name: str, dimension: int = 2, images: int = 3, shared: bool = False) -> tuple[Any, ...]:
    build, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double()
    source = generator(1)
    count = images if shared else K * images
    x = torch.randn(count, *shape, generator=source, dtype=torch.float64)
    y = torch.randint(0, 3, (count,), generator=source)
    center = ll.weights.flatten(ll.weights_of(model))
    noise = torch.randn(dimension, len(center), generator=source, dtype=torch.float64)
    basis = torch.cat([center[None], 0.2 * noise])
    places = torch.randint(-3, 4, (K, dimension), generator=source).double()
    coefficients = torch.cat([torch.ones(K, 1, dtype=torch.float64), places], 1)
    return model, x, y, basis, coefficients


def step(method: str, setting: tuple[Any, ...], images: int, chunk: int | None = None) -> Any:
    model, x, y, basis, coefficients = setting
    cells = Cells(model, F.cross_entropy)
    assert cells.choose(method, x, y, K, images) == method
    batch = cells.lay_out(x, y)
    return cells.step(basis, coefficients, batch, images, OBJECTIVE.terms, method, chunk)


def by_hand(setting: tuple[Any, ...], images: int) -> tuple[list[Tensor], Tensor]:
    """Autograd through the weights of every cell, all kept, and the objective written out."""
    model, x, y, basis, coefficients = setting
    model = copy.deepcopy(model).train()
    leaf, losses = basis.clone().requires_grad_(), []
    for k, c in enumerate(coefficients):
        weights = ll.weights.unflatten(c @ leaf, ll.weights_of(model))
        own = slice(0, images) if len(y) == images else slice(k * images, (k + 1) * images)
        losses.append(F.cross_entropy(functional_call(model, weights, (x[own],)), y[own]))
    low = sum(losses[:3]) / 3
    high = sum(torch.clamp(loss, max=2.0) for loss in losses[3:]) / 2
    (low - 0.7 * high).backward()
    return [loss.detach() for loss in losses], leaf.grad


# --- oracle 11: the methods agree ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["loop", "vmap", "basis"])
@pytest.mark.parametrize("shared", [False, True], ids=["own images", "shared images"])
@pytest.mark.parametrize("name", MODELS)
def test_oracle_11_losses_and_gradients_of_every_vector(name, shared, method):
    setting = setup(name, shared=shared)
    losses, gradient = by_hand(setting, 3)
    found = step(method, setting, 3, chunk=2)  # five cells in chunks of two: the last is short
    torch.testing.assert_close(found.losses, torch.stack(losses), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-10, atol=1e-10)
    assert found.gradient.any()


@pytest.mark.parametrize("method", ["vmap", "basis"])
@pytest.mark.parametrize("dimension", [1, 3])
def test_oracle_11_in_other_dimensions(dimension, method):
    setting = setup("small cnn, pooled", dimension)
    losses, gradient = by_hand(setting, 3)
    found = step(method, setting, 3)
    torch.testing.assert_close(found.losses, torch.stack(losses), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["loop", "vmap", "basis"])
def test_one_image_per_cell(method):
    setting = setup("small cnn", images=1)
    losses, gradient = by_hand(setting, 1)
    found = step(method, setting, 1)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-10, atol=1e-10)
    assert set(found.accuracies.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("method", ["loop", "vmap", "basis"])
def test_tied_weights_and_targets_that_are_no_classes(method):
    case = CASES["tied weights"]
    model, data = case.build()
    center = ll.weights.flatten(ll.weights_of(model))
    basis = torch.stack([center, torch.ones_like(center).cumsum(0) / 100])
    coefficients = torch.tensor([[1.0, 0.5], [1.0, -1.0]], dtype=torch.float64)
    x, y = data.x[:6], data.y[:6]
    cells = Cells(model, case.loss)
    assert cells.choose(method, x, y, 2, 3) == method
    batch = cells.lay_out(x, y)
    found = cells.step(basis, coefficients, batch, 3, lambda losses, _: losses, method)
    expected = []
    for k, c in enumerate(coefficients):
        moved = copy.deepcopy(model)
        ll.load_weights(moved, ll.weights.unflatten(c @ basis, ll.weights_of(model)))
        expected.append(case.loss(moved(x[3 * k : 3 * k + 3]), y[3 * k : 3 * k + 3]).item())
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.accuracies.isnan().all()


def test_accuracies_are_those_of_the_loop():
    setting = setup("mlp", images=9)
    expected = step("loop", setting, 9).accuracies
    assert len(set(expected.tolist())) > 1
    for method in ("vmap", "basis"):
        assert torch.equal(step(method, setting, 9).accuracies, expected)


def test_lower_precision_computes_in_it_but_keeps_the_gradient_in_the_wider_type():
    model, x, y, basis, coefficients = setup("small cnn", images=8)
    model, basis = model.float(), basis.float()
    found = {}
    for method in ("loop", "basis"):
        for dtype in (torch.float32, torch.bfloat16):
            cells = Cells(model, F.cross_entropy, dtype)
            cells.choose(method, x, y, K, 8)
            batch = cells.lay_out(x, y)
            found[dtype] = cells.step(basis, coefficients, batch, 8, OBJECTIVE.terms, method)
        full, low = found[torch.float32], found[torch.bfloat16]
        assert low.gradient.dtype == low.losses.dtype == torch.float32
        assert not torch.equal(low.losses, full.losses)
        torch.testing.assert_close(low.losses, full.losses, rtol=0.05, atol=0.05)
        assert torch.dist(low.gradient, full.gradient) < 0.1 * full.gradient.norm()


# --- memory -------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.entries = max(self.entries, leaf.numel())
        return result


@pytest.mark.parametrize("method", ["loop", "basis"])
def test_the_weights_of_all_cells_are_never_stored(method):
    model = ll.models.mlp(16, (300,), seed=0)
    n, cells_count = ll.weights.count(ll.weights_of(model)), 100
    x, y = torch.randn(cells_count, 16, generator=generator(0)), torch.zeros(cells_count).long()
    basis = torch.randn(3, n, generator=generator(1))
    coefficients = torch.ones(cells_count, 3)
    cells = Cells(model, F.cross_entropy)
    cells.choose(method, x, y, cells_count, 1)
    batch = cells.lay_out(x, y)
    with Largest() as largest:
        cells.step(basis, coefficients, batch, 1, lambda losses, _: losses, method)
    assert 3 * n <= largest.entries < 15 * n < cells_count * n


# --- oracle 6: the objective --------------------------------------------------------------------


def test_oracle_6_high_cells_above_tau_have_no_gradient():
    objective = Objective(low=2, high=3, high_weight=0.5, tau=2.5)
    losses = torch.tensor([0.3, 0.8, 2.6, 9.0, 2.4], dtype=torch.float64, requires_grad=True)
    value = objective.terms(losses, slice(None)).sum()
    assert value.item() == pytest.approx(0.55 - 0.5 * (2.5 + 2.5 + 2.4) / 3, rel=1e-14)
    value.backward()
    assert losses.grad.tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0, -0.5 / 3], rel=1e-14)
    assert losses.grad[2] == 0 == losses.grad[3]
    for values in torch.rand(50, 5, generator=generator(0)) * 20:
        assert objective.terms(values, slice(None)).sum() >= -0.5 * 2.5


@pytest.mark.parametrize("method", ["loop", "vmap", "basis"])
def test_oracle_6_through_every_method(method):
    # With tau below every loss the step is that of the LOW cells alone, to the last bit.
    model, x, y, basis, coefficients = setup("small cnn")
    cells = Cells(model, F.cross_entropy)
    cells.choose(method, x, y, K, 3)
    batch = cells.lay_out(x, y)
    none, ignored = (Objective(3, 2, c, 1e-3) for c in (0.0, 5.0))
    found = [
        cells.step(basis, coefficients, batch, 3, objective.terms, method)
        for objective in (none, ignored)
    ]
    assert torch.equal(found[0].gradient, found[1].gradient)


def test_the_clamp_acts_on_the_mean_of_a_cell_not_on_its_samples():  # METHODS A
    # One hopeless sample among easy ones: the cell's mean is below tau, so all of it counts.
    model = nn.Linear(2, 2, bias=False).double()
    x = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 9.0], [0.0, 9.0]], dtype=torch.float64)
    y = torch.tensor([1, 1, 1, 1])
    basis = torch.stack([torch.tensor([1.0, 0.0, 0.0, 1.0]).double(), torch.zeros(4).double()])
    coefficients = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    cells = Cells(model, F.cross_entropy)
    cells.choose("loop", x, y, 1, 4)
    found = cells.step(
        basis, coefficients, cells.lay_out(x, y), 4, lambda losses, _: losses.clamp(max=2.5), "loop"
    )
    assert found.losses.item() == pytest.approx(9 / 4, rel=1e-3)
    assert found.gradient[0].abs().max() > 1


# --- oracle 10 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("initialization, offset", [("paper", 0.5), ("code", 1.0)])
@pytest.mark.parametrize("training", [True, False])
def test_oracle_10_mean_zero_batch_norm_is_batch_norm(initialization, offset, training):
    model, data = CASES["cnn with batch norm"].build()
    changed = batchnorm.mean_zero(model, initialization, seed=1).train(training)
    scale = changed.get_submodule("1.scale")
    plain = copy.deepcopy(model).train(training)
    with torch.no_grad():
        scale.bias.uniform_(-1, 1)
        plain[1].weight.copy_(scale.weight + offset)
        plain[1].bias.copy_(scale.bias)
    torch.testing.assert_close(changed(data.x), plain(data.x), rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(changed[1].norm, name), getattr(plain[1], name))


def test_mean_zero_scales_start_as_the_two_sources_say():
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 400, 1), bn=nn.BatchNorm2d(400)))
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    paper, code = (batchnorm.mean_zero(model, kind) for kind in ("paper", "code"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    weight = paper.bn.scale.weight
    assert -0.5 <= weight.min() < -0.48 and 0.48 < weight.max() < 0.5
    assert abs(weight.mean().item()) < 0.05
    assert not code.bn.scale.weight.any()
    x = torch.randn(3, 1, 5, 5, generator=generator(0))
    torch.testing.assert_close(code(x), model(x))  # scales start at 1 there
    assert "initialization='paper'" in repr(paper) and repr(paper) != repr(code)


def test_mistakes_of_mean_zero_are_named():
    with pytest.raises(ValueError, match="initialization: expected one of .* got 'ones'"):
        batchnorm.mean_zero(nn.Sequential(nn.BatchNorm1d(2)), "ones")
    with pytest.raises(ValueError, match="initialization: expected one of .* got 'ones'"):
        batchnorm.MeanZeroScale(2, "ones")
    with pytest.raises(ValueError, match="model: Sequential has no batch-norm layers with a scale"):
        batchnorm.mean_zero(nn.Sequential(nn.Linear(2, 2)))


# --- which method -------------------------------------------------------------------------------


class Mixing(nn.Module):
    """Its samples see one another outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(0))


def choose(model: nn.Module, method: str = "auto", cells: int = 9, images: int = 2) -> str:
    x, y = torch.randn(20, 6, generator=generator(0)), torch.arange(20) % 3
    return Cells(model, F.cross_entropy).choose(method, x, y, cells, images)


def mlp(*between: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), *between, nn.ReLU(), nn.Linear(width, 3))


def test_auto_takes_the_cheapest_method_that_the_model_allows():
    assert choose(mlp()) == "basis"
    assert choose(mlp(nn.BatchNorm1d(8))) == "basis"
    assert choose(mlp(nn.Dropout(0.5))) == "basis"
    assert choose(mlp(nn.LayerNorm(8))) == "vmap"
    assert choose(Mixing()) == "vmap"
    assert choose(mlp(), cells=1) == "loop"  # ordinary training, to the same bits
    assert choose(mlp(width=50_000), images=20) == "vmap"  # three times the arithmetic costs more
    assert choose(mlp(width=1_000_000), images=20) == "loop"


@pytest.mark.parametrize(
    "model, reason",
    [
        (mlp(nn.LayerNorm(8)), "1 is a LayerNorm"),
        (Mixing(), "samples meet outside"),
        (nn.Sequential(nn.Conv1d(6, 6, 1, groups=2)), "a convolution with groups"),
        (nn.Sequential(nn.Conv1d(6, 6, 1, padding_mode="circular")), "or another padding"),
    ],
)
def test_basis_says_why_it_refuses_a_model(model, reason):
    x, y = torch.randn(20, 6, generator=generator(0)), torch.arange(20) % 3
    if not isinstance(model, Mixing) and isinstance(model[0], nn.Conv1d):
        x = x[..., None]
        model.append(nn.Flatten())
    with pytest.raises(ValueError, match=f"method: 'basis' does not run on this model: .*{reason}"):
        Cells(model, F.cross_entropy).choose("basis", x, y, 9, 2)


def test_vmap_says_why_it_refuses_a_model_and_auto_loops():
    class Data(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight * (1.0 if float(self.weight.detach().sum()) > 0 else 2.0)

    with pytest.raises(ValueError, match="method: 'vmap' does not run on this model: "):
        choose(Data(), "vmap")
    assert choose(Data()) == "loop"


def test_a_loss_without_a_mean_is_an_error():
    def unreduced(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")

    cells = Cells(mlp(), unreduced)
    x, y = torch.randn(4, 6), torch.arange(4) % 3
    with pytest.raises(TypeError, match=r"loss: expected it to return a scalar tensor, got \(2,\)"):
        cells.choose("auto", x, y, 9, 2)
