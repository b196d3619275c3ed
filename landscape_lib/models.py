"""The papers' networks, each small enough to draw: MLP, CNN (MPO), LeNet, VGG-9, ResNets.

Every function builds a plain module on the CPU. With ``seed`` the initial weights come from a
random stream of their own and the global one is left alone; without it they are drawn from torch's
global random state, so that ``torch.manual_seed`` fixes them. ``width`` scales a network.
Max pooling stands before ReLU: the same function as behind it, with a quarter of the ReLUs to do.
No module works in place, so all of them run under ``torch.func.functional_call`` and ``vmap``.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from landscape_lib.chains import (
    count,
    initial_weights,
    initialised,
    lenet,
    mlp,
    small_cnn,
    vgg9,
)

__all__ = ["BasicBlock", "lenet", "mlp", "resnet", "small_cnn", "vgg9"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them unless it is dropped.

    The shortcut is the identity, or a 1x1 convolution with batch norm where the shape changes.
    """

    def __init__(self, before: int, after: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module | None = nn.Identity() if shortcut else None
        if shortcut and (stride != 1 or before != after):
            projection = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, bn=nn.BatchNorm2d(after)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, after, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y if self.shortcut is None else y + self.shortcut(x))


def resnet(
    depth: int,
    shortcuts: bool = True,
    in_channels: int = 3,
    classes: int = 10,
    width: int = 16,
    seed: int | None = None,
) -> nn.Sequential:
    """Build a CIFAR ResNet (20, 56, 110, ...), with or without its shortcuts, for any image size.

    Three stages of (depth - 2) / 6 blocks with width, 2 width and 4 width channels. Per 32x32
    image ResNet-20 takes 40.8 and ResNet-56 125.7 million multiplications. Convolutions start from
    Kaiming's normal distribution (fan in), the output layer from N(0, 0.001). Source: He et al.
    2016; Li et al. 2018 and their code (projection shortcuts; ``noshort`` drops every shortcut).

    Args:
        depth: weighted layers on the longest path, 6n + 2.
        shortcuts: ``False`` drops all of them.
        in_channels: of the images.
        classes: outputs.
        width: channels of the first stage (not a factor): 16 in the paper.
        seed: of the initial weights.

    Returns:
        A module from (N, in_channels, H, W) images to (N, classes) logits.

    Raises:
        ValueError: ``depth`` is not of the form 6n + 2, or a size is below 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth: expected 6n + 2 (8, 14, 20, ..., 56, 110), got {depth}")
    before = count("width", width)
    with initial_weights(seed):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(count("in_channels", in_channels), width, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
        )
        for stage in range(3):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range((depth - 2) // 6):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks[f"block{i + 1}"] = BasicBlock(before, width << stage, stride, shortcuts)
                before = width << stage
            layers[f"stage{stage + 1}"] = nn.Sequential(blocks)
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(before, count("classes", classes))
        return initialised(nn.Sequential(layers))
