"""Adaptive average pooling as a product with a matrix, whose gradient is far cheaper on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

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
