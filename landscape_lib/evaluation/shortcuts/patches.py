"""The first convolution as a matrix product with patches that are gathered once for all points.

All points of a slice see the same images. On a CPU, a convolution of images with one channel takes
most of its time to gather what it multiplies: measured with filters of 3 x 3 pixels in float32, the
product alone takes a third of the time, in float64 a fifth. In 16 bits, and with more channels,
patches take longer to read than to gather.

Where 2 x 2 max pooling comes next, the four pixels of each maximum lie in four separate parts, so
that it is a maximum over whole tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_lib.evaluation.shortcuts.graphs import plain_layers, trace
from landscape_lib.evaluation.shortcuts.pooling import max_of_2x2
from landscape_lib.evaluation.trials import move_somewhere, output_of, same_values

# Pixels of a filter up to which the product is faster.
MOST_PIXELS = 25

# Gathering takes as long as two to four convolutions.
FEWEST_POINTS = 8

# What the patches of all samples may take: those of 10,000 images of 28 x 28 take 299 MiB.
MOST_BYTES = 512 << 20


class ProductWithPatches(nn.Conv2d):
    """A convolution that reads the patches of :func:`gather`."""

    def forward(self, patches: Tensor) -> Tensor:
        """Map (N, height, width, values) or (4, N, height, width, values) to (N, channels, ...)."""
        matrix = self.weight.flatten(1)
        if self.bias is not None:
            matrix = torch.cat([matrix, self.bias[:, None]], dim=1)
        y = (patches.flatten(0, -2) @ matrix.T).unflatten(0, patches.shape[:-1])
        return (y.amax(0) if patches.dim() == 5 else y).movedim(-1, 1)


class Gathering(NamedTuple):
    """A model that reads patches.

    Attributes:
        module: it shares all parameters with the model.
        convolution: of the model.
        pooled: whether 2 x 2 max pooling follows, which the product then does.
    """

    module: nn.Module
    convolution: nn.Conv2d
    pooled: bool


def gathering(model: nn.Module) -> Gathering | None:
    """Return the model that reads patches.

    Returns:
        ``None`` unless the model begins with a convolution of images of one channel that stands for
        itself, and nothing else reads the images.
    """
    traced = trace(model)
    if traced is None:
        return None
    nodes = list(traced.graph.nodes)
    image, node = nodes[0], nodes[1] if len(nodes) > 1 else nodes[0]
    if list(image.users) != [node] or str(node.target) not in plain_layers(traced, model):
        return None
    convolution = dict(model.named_modules())[str(node.target)]
    if type(convolution) is not nn.Conv2d or convolution.in_channels > 1:
        return None
    if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return None
    product = copy.copy(convolution)
    product.__class__ = ProductWithPatches
    traced.add_submodule(str(node.target), product)
    users = list(node.users)
    pooled = len(users) == 1 and users[0].target is max_of_2x2
    if pooled:
        users[0].replace_all_uses_with(node)
        traced.graph.erase_node(users[0])
    traced.recompile()
    return Gathering(traced, convolution, pooled)


def gather(x: Tensor, convolution: nn.Conv2d, pooled: bool) -> Tensor:
    """Return the patches that a convolution multiplies, each followed by a 1 for the bias.

    Args:
        x: shape (N, 1, height, width).
        convolution: gives sizes only.
        pooled: give what belongs to each pixel of 2 x 2 a part of its own.

    Returns:
        Shape (N, height, width, values) of the convolution's output, or (4, N, height / 2,
        width / 2, values).
    """
    sizes = _sizes(convolution)
    patches = F.unfold(x, **sizes).transpose(1, 2)
    if convolution.bias is not None:
        patches = F.pad(patches, (0, 1), value=1.0)
    height, width = (
        (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for n, kernel, dilation, padding, stride in zip(x.shape[2:], *sizes.values(), strict=True)
    )
    patches = patches.unflatten(1, (height, width))
    if not pooled:
        return patches.contiguous()
    bottom, right = height // 2 * 2, width // 2 * 2
    return torch.stack([patches[:, i:bottom:2, j:right:2] for i in (0, 1) for j in (0, 1)])


def _sizes(convolution: nn.Conv2d) -> dict[str, Any]:
    """Return what ``F.unfold`` has to know, in its order."""
    return {
        name: getattr(convolution, name)
        for name in ("kernel_size", "dilation", "padding", "stride")
    }


def gathered(model: nn.Module, inputs: Sequence[Any], points: int) -> list[Tensor] | None:
    """Return the patches of some inputs.

    Whether that saves time is decided by a rule that gives the same answer every time.

    Args:
        model: in the mode in which it is to run.
        inputs: of all forward passes.
        points: of the slice.

    Returns:
        What :func:`gather` gives for each pass; ``None`` if it saves nothing, or if the model then
        computes something else.
    """
    if points < FEWEST_POINTS or not all(map(_is_read_faster, inputs)):
        return None
    found = gathering(model)
    if found is None or found.convolution.weight[0].numel() > MOST_PIXELS:
        return None
    images = {x.shape[1:]: x[:1] for x in inputs}
    sizes = {
        shape: gather(image, found.convolution, found.pooled).nbytes
        for shape, image in images.items()
    }
    if sum(len(x) * sizes[x.shape[1:]] for x in inputs) > MOST_BYTES:
        return None
    if not _agrees(model, inputs[0][:2]):
        return None
    return [gather(x, found.convolution, found.pooled) for x in inputs]


def _is_read_faster(x: Any) -> bool:
    """Say whether patches of some images are read faster than gathered."""
    images = isinstance(x, Tensor) and x.dim() == 4 and x.size(1) == 1
    return images and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _agrees(model: nn.Module, x: Tensor) -> bool:
    """Say whether the product gives what the model gives, also at other weights than its own."""
    probe = copy.deepcopy(model)
    found = gathering(probe)
    if found is None:
        return False
    patches = gather(x, found.convolution, found.pooled)

    def agrees() -> bool:
        try:
            return same_values(output_of(probe, x), output_of(found.module, patches))
        except Exception:
            return False

    if not agrees():
        return False
    move_somewhere(probe)
    return agrees()
