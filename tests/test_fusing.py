"""ReLU in the pass of a convolution: the same numbers, and nothing that broke down is hidden."""

import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

import landscape_lib as ll
from landscape_lib import fusing
from landscape_lib.folding import Folded
from landscape_lib.fusing import ConvolutionWithReLU, can_fuse, fused, is_finite

pytestmark = pytest.mark.skipif(
    not fusing._has_fused_convolutions(), reason="this CPU's convolutions cannot apply ReLU"
)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return x.to(dtype, memory_format=torch.channels_last)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "small CNN": (lambda: ll.models.small_cnn(seed=0), images(3, 1, 28, 28), 3),
    "VGG-9": (lambda: ll.models.vgg9(width=0.25, seed=0), images(3, 3, 32, 32), 4),
    "ResNet-8": (lambda: ll.models.resnet(8, seed=0), images(3, 3, 32, 32), 4),
    "torchvision's ResNet-18": (lambda: resnet18(weights=None), images(2, 3, 64, 64), 9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_fused_is_the_same_function(name: str, dtype: torch.dtype) -> None:
    build, x, count = NETWORKS[name]
    model = Folded(build().eval().requires_grad_(False)).module.to(dtype)
    x = x.to(dtype)
    assert can_fuse(model, x)
    quick = fused(model)
    assert quick is not None
    assert sum(isinstance(m, ConvolutionWithReLU) for m in quick.modules()) == count
    for shift in (0.0, 0.01):  # its convolutions share the model's parameters
        for parameter in model.parameters():
            parameter.add_(shift)
        rounding = 1e-5 if dtype is torch.float32 else 0.02
        expected = model(x)
        torch.testing.assert_close(
            quick(x), expected, rtol=0, atol=rounding * float(expected.abs().max())
        )


class Twice(nn.Module):
    """ReLU and something else read the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.relu(y) + y


class Tied(nn.Module):
    """The convolution is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.conv(x))))


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten())


UNCHANGED: dict[str, Callable[[], nn.Module]] = {
    "another reader": Twice,
    "tied": Tied,
    "in float64": lambda: sequence(nn.Conv2d(2, 3, 3), nn.ReLU()).double(),
    "in training mode": lambda: sequence(nn.Conv2d(2, 3, 3), nn.ReLU()).train(),
    "padding by name": lambda: sequence(nn.Conv2d(2, 3, 3, padding="same"), nn.ReLU()),
    "reflected": lambda: sequence(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
    "volumes": lambda: sequence(nn.Conv1d(2, 3, 3), nn.ReLU()),
    "a layer that takes -inf to 0": lambda: sequence(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Sigmoid()
    ),
    "nothing after it": lambda: sequence(nn.Conv2d(2, 3, 3), nn.Tanh()),
    "pooling between": lambda: sequence(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU()),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_cannot_be_fused_is_left_alone(name: str) -> None:
    model = UNCHANGED[name]()
    assert fused(model if name == "in training mode" else model.eval()) is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_on_the_way_is_not_finite_in_the_output(bad: float) -> None:
    model = Folded(ll.models.vgg9(width=0.25, seed=0).eval().requires_grad_(False)).module
    quick = fused(model)
    assert quick is not None
    x = images(2, 3, 32, 32)
    assert is_finite(quick(x))
    for layer in ("conv1_1", "conv1_2", "conv3_3"):  # with ReLU in it, and with pooling after it
        bias = model.get_submodule(layer).bias
        before = bias[0].clone()
        bias[0] = bad
        assert not is_finite(quick(x))
        bias[0] = before
    assert is_finite(quick(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_point_has_the_numbers_of_the_model_itself(dtype: torch.dtype) -> None:
    """NaN stays, and where ReLU makes 0 of -inf the loss is finite, as it is without fusing."""
    model = ll.models.small_cnn(seed=0)
    weights = ll.weights_of(model)
    direction = {name: torch.zeros_like(w) for name, w in weights.items()}
    direction["conv2.bias"][0] = 2e38  # in float32 and bfloat16 twice that is infinite
    line = ll.Line(weights, direction, [-2.0, -1e-38, 0.0, 1e-38, 2.0])
    x, y = images(5, 1, 28, 28), torch.arange(5)
    found = ll.evaluate(model, line, [(x, y)], dtype=dtype, method="loop")
    for alpha, value in zip(line.alphas, found.loss.values, strict=True):
        moved = {n: w.to(dtype) for n, w in line.weights_at(alpha).items()}
        with torch.no_grad():
            output = torch.func.functional_call(model, moved, (x.to(dtype),))
        expected = float(F.cross_entropy(output.float(), y))
        tolerance = 1e-5 if dtype is torch.float32 else 1e-2
        assert value == pytest.approx(expected, rel=tolerance, nan_ok=True)
    assert found.loss.isnull().values.tolist() == [False, False, False, False, True]


def test_points_take_the_quick_pass_and_travel_with_it() -> None:
    model = ll.models.small_cnn(seed=0)
    weights = ll.weights_of(model)
    line = ll.Line(weights, ll.random_direction(weights), [0.0, 1.0])
    x = images(4, 1, 28, 28)
    points = ll.points.Points(model, line, x, None, False, 0, "frozen", [], [])
    assert points._quick is not None
    again = pickle.loads(pickle.dumps(points))
    assert again._quick is not None
    for one, other in zip(again._quick.parameters(), points._quick.parameters(), strict=True):
        assert torch.equal(one, other)
    line_in_training = ll.points.Points(model, line, x, None, True, 0, "frozen", [], [])
    assert line_in_training._quick is None
