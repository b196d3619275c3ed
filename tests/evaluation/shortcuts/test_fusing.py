"""Convolution, bias, sum and ReLU in one kernel. The kernel itself needs a GPU: see the end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation.shortcuts import fusing
from landscape_lib.evaluation.shortcuts.fusing import ConvolutionReLU, can_fuse, fused

BFLOAT16 = torch.bfloat16


class Residual(nn.Module):
    """ReLU of a sum: of a convolution and the input, in either order, and of one and itself."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.convolution, self.other = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        y = self.convolution(x)
        if self.order == "first":
            y = F.relu(y + x)
        elif self.order == "second":
            y = torch.relu(x + y)
        elif self.order == "in place":
            y += x
            y = F.relu(y, inplace=True)
        elif self.order == "two convolutions":
            y = F.relu(y + self.other(x))
        elif self.order == "itself":
            y = F.relu(y + y)
        elif self.order == "a number":
            y = F.relu(y + 0.1)
        elif self.order == "scaled":
            y = F.relu(torch.add(y, x, alpha=2))
        elif self.order == "broadcast":
            y = F.relu(y + x[:, :1])
        elif self.order == "used twice":
            y = F.relu(y + x) + y
        return self.out(y.mean((2, 3)))


def chain(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


MODELS = {
    "ReLU": (lambda: chain(nn.Conv2d(4, 5, 3, stride=2), nn.ReLU()), 1),
    "one channel": (
        lambda: chain(nn.Conv2d(4, 1, 3), nn.ReLU(), nn.Conv2d(1, 5, 3, bias=False), nn.ReLU()),
        2,
    ),
    "no bias, groups": (lambda: chain(nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.ReLU()), 1),
    "ReLU in place": (lambda: chain(nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True)), 1),
    "batch norm": (lambda: chain(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()), 0),
    "other padding": (
        lambda: chain(nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        0,
    ),
    "padding by name": (lambda: chain(nn.Conv2d(4, 5, 3, padding="same"), nn.ReLU()), 0),
    "tanh": (lambda: chain(nn.Conv2d(4, 5, 3), nn.Tanh()), 0),
    "first": (lambda: Residual("first"), 1),
    "second": (lambda: Residual("second"), 1),
    "in place": (lambda: Residual("in place"), 1),
    "two convolutions": (lambda: Residual("two convolutions"), 1),
    "itself": (lambda: Residual("itself"), 0),
    "a number": (lambda: Residual("a number"), 0),
    "scaled": (lambda: Residual("scaled"), 0),
    "used twice": (lambda: Residual("used twice"), 0),
    "ResNet-8": (lambda: ll.models.resnet(8, in_channels=4, classes=3, width=4), 0),
}


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(20, 4, 8, 8).double(), torch.arange(20) % 3
        model = MODELS[name][0]().double()
        model.train()(x)  # running statistics, and lazy layers
        return model.eval(), SimpleNamespace(x=x, y=y)


def one_kernel(x, weight, bias, *shape):
    return torch.relu(F.conv2d(x, weight, bias, *shape))


def one_kernel_with_a_sum(x, weight, summand, alpha, bias, *shape):
    y = F.conv2d(x, weight, bias, *shape)
    assert y.shape == summand.shape  # cuDNN does not broadcast
    return torch.relu(y + alpha * summand)


@pytest.fixture
def kernels(monkeypatch):
    """Let the CPU have the kernels of a GPU."""
    monkeypatch.setattr(torch, "cudnn_convolution_relu", one_kernel)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", one_kernel_with_a_sum)
    monkeypatch.setattr(fusing, "available", lambda device: True)


def count(model):
    return sum(isinstance(module, ConvolutionReLU) for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_joins_what_it_may(name, kernels):
    model, data = build(name)
    found, expected = fused(model), MODELS[name][1]
    assert (0 if found is None else count(found)) == expected
    assert can_fuse(model, data.x[:2]) == (expected > 0)
    if found is not None:
        with torch.no_grad():
            torch.testing.assert_close(found(data.x), model(data.x), rtol=1e-12, atol=1e-12)
        assert {id(p) for p in found.parameters()} <= {id(p) for p in model.parameters()}


def line_through(model, dtype):
    """Return the same line in any dtype: random numbers depend on theirs."""
    weights = ll.weights_of(model.double().cpu())
    direction = ll.random_direction(weights, generator=torch.Generator().manual_seed(1))
    model.to(dtype)
    line = ({name: t.to(dtype) for name, t in vector.items()} for vector in (weights, direction))
    return ll.Line(*line, [-0.5, 0.0, 0.5])


# In 16 bits with channels of zeros.
@pytest.mark.parametrize("name", [name for name, (_, joined) in MODELS.items() if joined])
def test_in_16_bits(name, kernels):
    model, data = build(name)
    model, x = model.to(BFLOAT16), data.x.to(BFLOAT16)
    with torch.no_grad():
        torch.testing.assert_close(fused(model)(x), model(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", MODELS)
def test_points_are_what_they_are_without_it(name, kernels, monkeypatch):
    model, data = build(name)
    line = line_through(model, torch.float32)
    data.x = data.x.float()
    got = ll.evaluate(model, line, data, method="loop")
    monkeypatch.setattr(fusing, "available", lambda device: False)
    exact = ll.evaluate(model, line, data, method="loop", dtype=torch.float64)
    np.testing.assert_allclose(got.loss, exact.loss, rtol=1e-5)


def test_a_kernel_that_makes_0_of_nan_is_not_used(kernels, monkeypatch):
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda *a: one_kernel(*a).nan_to_num(0.0))
    model, data = build("ReLU")
    assert not can_fuse(model, data.x[:2])


def test_sizes_without_a_kernel_are_computed_as_usual(kernels, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no engine")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", refuse)
    for name in ("ReLU", "first"):
        model, data = build(name)
        with torch.no_grad():
            torch.testing.assert_close(fused(model)(data.x), model(data.x))


def test_a_sum_that_broadcasts_is_left_alone(kernels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual("broadcast").double().eval()
    assert not can_fuse(model, torch.randn(2, 4, 8, 8).double())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [None, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", MODELS if torch.cuda.is_available() else ["ReLU"])
def test_on_a_gpu(name, dtype):
    model, data = build(name)
    exact = ll.evaluate(model, line_through(model, torch.float64), data)
    data.x = data.x.float()
    line = line_through(model, torch.float32)
    got = ll.evaluate(model.cuda(), line, data, method="loop", dtype=dtype)
    np.testing.assert_allclose(got.loss, exact.loss, rtol=5e-2 if dtype else 2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_a_gpus_kernel_keeps_nan(dtype):
    model, data = build("ReLU")
    model, x = model.to("cuda", dtype), data.x[:2].to("cuda", dtype)
    assert can_fuse(model, x)
