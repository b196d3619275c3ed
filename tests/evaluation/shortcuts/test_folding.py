"""Folded models compute the same function; models that cannot be folded are left alone."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

import landscape_lib as ll
from landscape_lib.evaluation.batchnorm import mean_zero
from landscape_lib.evaluation.shortcuts.folding import Folded, can_fold, load


def unsettled(model: nn.Module) -> nn.Module:
    """Give batch norm statistics and factors that differ from those of a new layer."""
    source = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=source) * 0.3)
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=source) + 0.5)
    return model.double().eval().requires_grad_(False)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


FOLDABLE: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "VGG-9": (lambda: ll.models.vgg9(width=0.1, seed=0), images(3, 3, 32, 32), 7),
    "ResNet-8": (lambda: ll.models.resnet(8, width=4, seed=0), images(3, 3, 16, 16), 9),
    "ResNet without shortcuts": (
        lambda: ll.models.resnet(8, shortcuts=False, width=4, seed=0),
        images(3, 3, 16, 16),
        7,
    ),
    "torchvision's ResNet-18": (lambda: resnet18(weights=None), images(2, 3, 32, 32), 20),
    "volumes": (
        lambda: nn.Sequential(nn.Conv3d(1, 3, 2, bias=False), nn.BatchNorm3d(3), nn.ReLU()),
        images(2, 1, 4, 4, 4),
        1,
    ),
    "no factors": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(2)),
        images(2, 2, 9),
        1,
    ),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_folded_is_the_same_function(name: str) -> None:
    build, x, count = FOLDABLE[name]
    model = unsettled(build())
    folded = Folded(model)
    assert can_fold(model, x)
    assert len(folded.folded) == count
    for shift in (0.0, 0.1):  # at the weights it was made at, and at others
        for parameter in model.parameters():
            parameter.add_(shift * torch.ones_like(parameter))
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        load(folded.module, folded.weights(tensors))
        torch.testing.assert_close(folded.module(x), model(x), rtol=1e-10, atol=1e-10)


def test_folding_leaves_the_model_as_it_is() -> None:
    model = unsettled(ll.models.vgg9(width=0.1, seed=0))
    text, before = repr(model), {n: t.clone() for n, t in model.state_dict().items()}
    assert can_fold(model, images(2, 3, 32, 32))
    assert repr(model) == text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.conv(x)))


LIGHTER: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "3 x 3 to 4 x 4 pixels": (lambda: ll.models.small_cnn(pool=True), images(3, 1, 28, 28)),
    "1 x 1 to 4 x 4 pixels": (lambda: ll.models.small_cnn(pool=True), images(3, 1, 8, 8)),
    "8 x 8 to 1 x 1 pixel": (lambda: ll.models.resnet(8, width=4), images(3, 3, 32, 32)),
    "batch norm": (lambda: ll.models.small_cnn(pool=True, batchnorm=True), images(3, 1, 28, 28)),
    "mean-zero batch norm": (
        lambda: mean_zero(ll.models.small_cnn(pool=True, batchnorm=True)),
        images(3, 1, 28, 28),
    ),
}


class Twice(nn.Module):
    """A convolution that is used twice, once before batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.conv(x)


class Both(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Reads(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.conv.weight.sum()


class Tied(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(2, 2, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.bn(self.conv(x)))


class Branches(Twice):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):  # tracing hands over something else
            x = 2 * x
        return self.bn(self.conv(x))


class Decides(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.mean() > 0 else self.conv(x)


class Draws(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + torch.rand(1)


class Makes(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + torch.tensor([1.0])


class Hooked(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, args, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Batchwise(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


UNFOLDABLE = [Twice, Both, Reads, Tied, Branches, Decides, Draws, Makes, Hooked, Batchwise]


@pytest.mark.parametrize("kind", UNFOLDABLE)
def test_what_cannot_be_folded_is_left_alone(kind: type[nn.Module]) -> None:
    model = kind().eval().requires_grad_(False)
    assert not can_fold(model, torch.randn(2, 2, 5, 5))


@pytest.mark.parametrize("kind", [k for k in UNFOLDABLE if k not in (Draws, Batchwise)])
def test_what_cannot_be_folded_is_evaluated_as_it_is(kind: type[nn.Module]) -> None:
    model = kind().double()
    source = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, 5, 5, generator=source, dtype=torch.float64)
    direction = ll.random_direction(ll.weights_of(model), normalize=None, generator=source)
    line = ll.Line(ll.weights_of(model), direction, [-1.0, 0.0, 0.5])
    batches = [(x, torch.zeros(7, 2, 5, 5, dtype=torch.float64))]
    found = ll.evaluate(model, line, batches, loss=F.mse_loss)
    for alpha, value in zip(line.alphas, found.loss.values, strict=True):
        with torch.no_grad():
            model.eval()
            output = torch.func.functional_call(model, line.weights_at(alpha), (x,))
        assert value == pytest.approx(float(output.square().mean()), rel=1e-10)


class Shared(nn.Module):
    """What ReLU reads is also read by others, or is the input, a parameter or a view of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(torch.relu(x))
        z = torch.relu(y) - y
        return self.last(z) * torch.relu(self.scale) + torch.relu(self.scale.view(1, 6))


class Named(nn.Module):
    """ReLU and pooling called with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(input=self.relu(input=self.conv(x)))


class Remembered(nn.Module):
    """What ReLU reads is a tensor that has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + 20
        z = torch.zeros_like(y)
        return torch.relu(torch.add(y, -10 * y[:, :1], out=z)) + z


def clamped() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    model[1].forward = lambda x: x.clamp(0, 6)  # type: ignore
    return model
