"""Networks that are chains of layers: MLP, small CNN, LeNet, VGG-9; how their weights begin."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from landscape_lib.runtime import generator


def mlp(
    inputs: int = 784,
    hidden: Sequence[int] = (256, 128),
    classes: int = 10,
    width: float = 1.0,
    seed: int | None = None,
) -> nn.Sequential:
    """Build a fully connected ReLU network on flattened images.

    Args:
        inputs: values per image, C x H x W.
        hidden: units of each hidden layer; ``()`` gives softmax regression.
        classes: outputs.
        width: multiplies ``hidden``.
        seed: of the initial weights (PyTorch's default distributions).

    Returns:
        A module from (N, ...) images to (N, classes) logits.

    Raises:
        ValueError: a size is below 1.
    """
    sizes = [count("inputs", inputs), *_scaled("hidden", hidden, width)]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    with initial_weights(seed):
        for i, (before, after) in enumerate(pairwise(sizes), start=1):
            layers[f"fc{i}"] = nn.Linear(before, after)
            layers[f"relu{i}"] = nn.ReLU()
        layers["output"] = nn.Linear(sizes[-1], count("classes", classes))
    return nn.Sequential(layers)


def small_cnn(
    in_channels: int = 1,
    classes: int = 10,
    channels: Sequence[int] = (8, 32, 64),
    pool: bool | Sequence[int] = False,
    batchnorm: bool = False,
    hidden: int = 128,
    width: float = 1.0,
    seed: int | None = None,
) -> nn.Sequential:
    """Build the network of multi-point optimisation, for images of any size.

    Blocks of 3x3 convolution, batch norm and 2x2 max pooling if asked, and ReLU; then average
    pooling to 4x4 and a hidden layer. The paper's Fashion-MNIST network is the default: 153,402
    parameters. Source: Skorokhodov and Burtsev 2019, appendix B, and the authors' code, which has
    pooling as an option, biases also before batch norm, and 16 first channels for CIFAR-10.

    Args:
        in_channels: of the images.
        classes: outputs.
        channels: of each convolution.
        pool: halve the picture after each convolution, at a tenth of the cost, or after those of
            these numbers, 1 for the first; n times needs at least 2 ** n pixels a side.
        batchnorm: normalise after each convolution.
        hidden: units of the hidden layer.
        width: multiplies ``channels`` and ``hidden``.
        seed: of the initial weights (PyTorch's default distributions).

    Returns:
        A module from (N, in_channels, H, W) images to (N, classes) logits.

    Raises:
        ValueError: a size is below 1, ``channels`` is empty, or ``pool`` names no convolution.
    """
    counts = _scaled("channels", channels, width)
    if not counts:
        raise ValueError("channels: expected at least one convolution, got none")
    numbers = range(1, len(counts) + 1)
    pooled = set(numbers if pool is True else pool or ())
    if not pooled <= set(numbers):
        raise ValueError(f"pool: expected numbers of convolutions, 1 to {len(counts)}, got {pool}")
    units = _scaled("hidden", [hidden], width)[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = count("in_channels", in_channels)
    with initial_weights(seed):
        for i, after in enumerate(counts, start=1):
            layers[f"conv{i}"] = nn.Conv2d(before, after, 3, padding=1)
            if batchnorm:
                layers[f"bn{i}"] = nn.BatchNorm2d(after)
            if i in pooled:
                layers[f"pool{i}"] = nn.MaxPool2d(2)
            layers[f"relu{i}"] = nn.ReLU()
            before = after
        layers["average"] = nn.AdaptiveAvgPool2d(4)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(16 * before, units)
        layers["fc_relu"] = nn.ReLU()
        layers["output"] = nn.Linear(units, count("classes", classes))
    return nn.Sequential(layers)


def lenet(
    in_channels: int = 1,
    classes: int = 10,
    image_size: int = 28,
    channels: Sequence[int] = (20, 50),
    hidden: int = 500,
    padding: int = 0,
    width: float = 1.0,
    seed: int | None = None,
) -> nn.Sequential:
    """Build LeNet: two 5x5 convolutions, each with 2x2 max pooling and ReLU, and a hidden layer.

    ``channels=(10, 20), hidden=128`` is the small-LeNet of Chaudhari et al. 2017 (Entropy-SGD)
    whose Hessian they computed: 47,658 parameters. The default sizes are those of Caffe's LeNet.

    Args:
        in_channels: of the images.
        classes: outputs.
        image_size: height and width of the images, in pixels.
        channels: of the two convolutions.
        hidden: units of the hidden layer.
        padding: pixels around each convolution's input; 2 makes room for 8x8 digits.
        width: multiplies ``channels`` and ``hidden``.
        seed: of the initial weights (PyTorch's default distributions).

    Returns:
        A module from (N, in_channels, image_size, image_size) images to (N, classes) logits.

    Raises:
        ValueError: a size is below 1, or the image is too small.
    """
    counts = _scaled("channels", channels, width)
    if len(counts) != 2:
        raise ValueError(f"channels: expected two convolutions, got {tuple(channels)}")
    if padding < 0:
        raise ValueError(f"padding: expected 0 or more, got {padding}")
    smallest = max(1, 16 - 6 * padding)
    side = count("image_size", image_size)
    if side < smallest:
        raise ValueError(
            f"image_size: expected at least {smallest} with padding={padding}, got {image_size}; "
            "padding=2 makes room for 4 and more"
        )
    for _ in counts:
        side = (side + 2 * padding - 4) // 2
    first, second = counts
    units = _scaled("hidden", [hidden], width)[0]
    with initial_weights(seed):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(count("in_channels", in_channels), first, 5, padding=padding),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 5, padding=padding),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(second * side * side, units),
            fc_relu=nn.ReLU(),
            output=nn.Linear(units, count("classes", classes)),
        )
    return nn.Sequential(layers)


def vgg9(
    in_channels: int = 3,
    classes: int = 10,
    image_size: int = 32,
    width: float = 1.0,
    batchnorm: bool = True,
    seed: int | None = None,
) -> nn.Sequential:
    """Build VGG-9 for CIFAR-10: 64-64-M-128-128-M-256-256-256-M, a hidden layer of 256.

    2.79 million parameters and 191.6 million multiplications per image at full width. Source:
    Li et al. 2018 and their code, including the initialisation of :func:`resnet`.

    Args:
        in_channels: of the images.
        classes: outputs.
        image_size: height and width of the images, in pixels.
        width: multiplies the channels and the hidden layer.
        batchnorm: normalise after each convolution and after the hidden layer.
        seed: of the initial weights.

    Returns:
        A module from (N, in_channels, image_size, image_size) images to (N, classes) logits.

    Raises:
        ValueError: a size is below 1, or the image is smaller than 8x8.
    """
    if count("image_size", image_size) < 8:
        raise ValueError(
            f"image_size: VGG-9 pools three times and needs 8 or more, got {image_size}"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = count("in_channels", in_channels)
    with initial_weights(seed):
        for stage, counts in enumerate([(64, 64), (128, 128), (256, 256, 256)], start=1):
            for i, after in enumerate(_scaled("channels", counts, width), start=1):
                layers[f"conv{stage}_{i}"] = nn.Conv2d(before, after, 3, padding=1)
                if batchnorm:
                    layers[f"bn{stage}_{i}"] = nn.BatchNorm2d(after)
                if i == len(counts):
                    layers[f"pool{stage}"] = nn.MaxPool2d(2)
                layers[f"relu{stage}_{i}"] = nn.ReLU()
                before = after
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(before * (image_size // 8) ** 2, before)
        if batchnorm:
            layers["fc_bn"] = nn.BatchNorm1d(before)
        layers["fc_relu"] = nn.ReLU()
        layers["output"] = nn.Linear(before, count("classes", classes))
        return initialised(nn.Sequential(layers))


def initialised(model: nn.Sequential) -> nn.Sequential:
    """Draw the initial weights of Li et al.: Kaiming for convolutions, N(0, 0.001) for linear."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1e-3)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


@contextlib.contextmanager
def initial_weights(seed: int | None) -> Iterator[None]:
    """Build modules on the CPU; with a seed, on a random stream of their own."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:  # torch.manual_seed would touch the GPU's
            torch.set_rng_state(generator(seed).get_state())
        yield


def count(name: str, value: int) -> int:
    """Return a whole number of at least 1, or raise a ``ValueError``."""
    if int(value) != value or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return int(value)


def _scaled(name: str, counts: Sequence[int], width: float) -> list[int]:
    """Multiply channel or unit counts by ``width``, rounded half up, at least 1."""
    if not (width > 0 and math.isfinite(width)):
        raise ValueError(f"width: expected a positive finite factor, got {width}")
    return [max(1, math.floor(count(name, one) * width + 0.5)) for one in counts]
