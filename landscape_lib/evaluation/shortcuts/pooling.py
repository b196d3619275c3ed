"""Pooling that costs less: before ReLU, in halves, or as a product with a matrix.

ReLU and max pooling can change places, which leaves ReLU a quarter of the values. Max pooling of
2 x 2 pixels can be done in halves. Adaptive average pooling is a product with a matrix, whose
gradient is far cheaper on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from landscape_lib.evaluation.shortcuts.graphs import MAX_POOLS, is_relu

LARGEST = 1024  # pixels; the matrix grows with their number


class AverageByMatrix(nn.Module):
    """Adaptive average pooling of images of one size, as a product with a matrix.

    Args:
        pool: gives the averages.
        size: height and width of the images.
    """

    matrix: Tensor

    def __init__(self, pool: nn.AdaptiveAvgPool2d, size: tuple[int, int]) -> None:
        super().__init__()
        pixels = torch.eye(size[0] * size[1]).unflatten(1, size)
        averages = pool(pixels[:, None])
        self.size = averages.shape[-2:]
        self.register_buffer("matrix", averages.flatten(1).T.contiguous(), persistent=False)

    def is_exact(self) -> bool:
        """Say whether all weights are powers of two, which every dtype holds."""
        return bool((torch.frexp(self.matrix[self.matrix > 0]).mantissa == 0.5).all())

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, height, width) to the averages."""
        return F.linear(x.flatten(2), self.matrix.to(x)).unflatten(2, self.size)


def average_by_matrix(traced: fx.GraphModule, x: Tensor) -> bool:
    """Replace adaptive average pooling in the graph, in place; say whether there was any.

    Args:
        traced: the graph of a model.
        x: a few samples; others must have their size.
    """
    modules = dict(traced.named_modules())
    with torch.no_grad():
        ShapeProp(traced).propagate(x)
    replaced = False
    for node in list(traced.graph.nodes):
        pool = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(pool) is not nn.AdaptiveAvgPool2d:
            continue
        size = node.args[0].meta["tensor_meta"].shape[-2:]
        if size.numel() > LARGEST:
            continue
        product = AverageByMatrix(pool, size).to(x.device)
        if product.is_exact():
            node.target = f"{node.name}_by_matrix"
            traced.add_submodule(node.target, product)
            replaced = True
    return replaced


def pool_first(traced: fx.GraphModule) -> bool:
    """Put max pooling before ReLU in the graph, in place; say whether that happened anywhere."""
    modules = dict(traced.named_modules())
    swapped = False
    for pool in list(traced.graph.nodes):
        if pool.op != "call_module" or not isinstance(modules[pool.target], MAX_POOLS):
            continue
        relu: Any = pool.args[0] if pool.args else None  # none where it is called with a keyword
        if modules[pool.target].return_indices or not is_relu(relu, modules):
            continue
        if len(relu.users) != 1:
            continue
        pool.replace_all_uses_with(relu)
        pool.replace_input_with(relu, relu.args[0])
        relu.replace_input_with(relu.args[0], pool)
        pool.append(relu)
        swapped = True
    return swapped


def pool_by_halves(traced: fx.GraphModule) -> bool:
    """Replace max pooling of 2 x 2 pixels in the graph, in place; say whether there was any."""
    modules = dict(traced.named_modules())
    replaced = False
    for node in list(traced.graph.nodes):
        pool = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(pool) is not nn.MaxPool2d or pool.return_indices or pool.ceil_mode or node.kwargs:
            continue
        sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        if [s if isinstance(s, tuple) else (s, s) for s in sizes] == [
            (2, 2),
            (2, 2),
            (0, 0),
            (1, 1),
        ]:
            node.op, node.target, node.kwargs = "call_function", max_of_2x2, {}
            replaced = True
    return replaced


def max_of_2x2(x: Tensor) -> Tensor:
    """Return the largest of 2 x 2 pixels: of pairs of rows, then of pairs of columns.

    The same bits as ``max_pool2d``, which on a CPU takes up to four times as long on images of few
    channels.
    """
    height, width = x.size(-2) // 2 * 2, x.size(-1) // 2 * 2
    rows = torch.maximum(x[..., 0:height:2, :], x[..., 1:height:2, :])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
