"""(g) Models of other people, and the book's own, beside the plain loop: CPU time of one thread.

The plain loop sets the weights of a point and goes through batches of 128 without gradients, as one
would write it. Each is called in turn, set-up included, once with shortcuts and once without.
CPU time of one thread is what other processes of the machine disturb least. A quarter of an hour.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import bench
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_lib as ll

SAMPLES, SIDE, BATCH, ROUNDS = 500, 5, 128, 3


class UNet(nn.Module):
    """Two levels down and up, 21 classes for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda a, b: nn.Sequential(  # noqa: E731
            *(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()),
            *(nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()),
        )
        self.down1, self.down2, self.bottom = block(3, 16), block(16, 32), block(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1, self.head = block(64, 32), block(32, 16), nn.Conv2d(16, 21, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        low = self.up2(self.bottom(F.max_pool2d(two, 2)))
        low = self.up1(self.join2(torch.cat([low, two], 1)))
        return self.head(self.join1(torch.cat([low, one], 1)))


class Encoder(nn.Module):
    """A transformer encoder on words, as in BERT, or on patches of images, as in a ViT."""

    def __init__(self, words: int | None, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width) if words else nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(0.02 * torch.randn(1, 64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h if h.dim() == 3 else h.flatten(2).transpose(1, 2)
        return self.head(self.body(h + self.place[:, : h.shape[1]]).mean(1))


class Recurrent(nn.Module):
    """An LSTM that classifies sequences, or predicts each next word."""

    def __init__(self, words: int | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 64) if words else nn.Linear(28, 64)
        self.body = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, words or 10)
        self.each = words is not None

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.body(self.embed(x))
        return self.head(h) if self.each else self.head(h[:, -1])


class VAE(nn.Module):
    """A variational autoencoder at its means."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU())
        self.mean, self.spread = nn.Linear(400, 20), nn.Linear(400, 20)
        self.decode = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x)
        return torch.cat([self.decode(self.mean(h)), self.mean(h), self.spread(h)], 1)


def of_vae(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    image, mean, spread = output.split([784, 20, 20], 1)
    bits = F.binary_cross_entropy_with_logits(image, target, reduction="none").sum(1)
    values = bits - 0.5 * (1 + spread - mean**2 - spread.exp()).sum(1)
    return values.mean() if reduction == "mean" else values


def of_words(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(output.transpose(1, 2), target, reduction=reduction)


def guests() -> dict[str, tuple[Callable[[], nn.Module], Any, Any, Any]]:
    """Return name -> (builder, inputs, targets, loss)."""
    import torchvision.models as tv

    source = torch.Generator().manual_seed(0)
    images = lambda c, s: torch.rand(SAMPLES, c, s, s, generator=source)  # noqa: E731
    whole = lambda most, *shape: torch.randint(most, (SAMPLES, *shape), generator=source)  # noqa: E731
    ten, loss = whole(10), F.cross_entropy
    dense = lambda: tv.DenseNet(12, (3, 3, 3), 24, num_classes=10)  # noqa: E731
    pixels = images(1, 28)
    return {
        "U-Net, 21 classes": (UNet, images(3, 32), whole(21, 32, 32), loss),
        "BERT-like encoder": (lambda: Encoder(1000), whole(1000, 32), ten, loss),
        "ViT-like encoder": (lambda: Encoder(None), images(3, 32), ten, loss),
        "DenseNet": (dense, images(3, 32), ten, loss),
        "ResNet-18": (lambda: tv.resnet18(num_classes=10), images(3, 32), ten, loss),
        "MobileNetV3": (lambda: tv.mobilenet_v3_small(num_classes=10), images(3, 64), ten, loss),
        "LSTM": (lambda: Recurrent(None), torch.rand(SAMPLES, 28, 28), ten, loss),
        "VAE": (VAE, pixels, pixels.flatten(1), of_vae),
        "language model, 2,000 words": (
            lambda: Recurrent(2000),
            whole(2000, 32),
            whole(2000, 32),
            of_words,
        ),
        "linear model": (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
            images(1, 28),
            ten,
            loss,
        ),
        "book: small CNN with pooling": (
            lambda: ll.models.small_cnn(pool=True),
            images(1, 28),
            ten,
            loss,
        ),
        "book: small CNN": (ll.models.small_cnn, images(1, 28), ten, loss),
        "book: VGG-9, half width": (lambda: ll.models.vgg9(width=0.5), images(3, 32), ten, loss),
        "book: ResNet-20": (lambda: ll.models.resnet(20), images(3, 32), ten, loss),
        "book: MLP": (ll.models.mlp, images(1, 28), ten, loss),
        "book: LeNet": (ll.models.lenet, images(1, 28), ten, loss),
    }


@torch.no_grad()
def plainly(model: nn.Module, plane: ll.Plane, data: Any, loss: Any) -> np.ndarray:
    """Return the losses as the usual loop finds them."""
    before = ll.weights_of(model)
    found = np.zeros(plane.shape)
    for i, alpha in enumerate(plane.alphas):
        for j, beta in enumerate(plane.betas):
            for name, parameter in model.named_parameters():
                first, second = (d[name] for d in plane.directions)
                parameter.copy_(before[name] + alpha * first + beta * second)
            for x, y in zip(data.x.split(BATCH), data.y.split(BATCH), strict=True):
                found[i, j] += float(loss(model(x), y)) * len(y) / len(data.y)
    ll.load_weights(model, before)
    return found


def compare(build: Any, x: Any, y: Any, loss: Any, dtypes: list[Any]) -> dict[str, Any]:
    """Measure one model."""
    torch.manual_seed(0)
    model = build().eval()
    weights = ll.weights_of(model)
    directions = ll.random_directions(weights, 2, generator=torch.Generator().manual_seed(1))
    axis = 0.1 * np.arange(SIDE)
    plane, data = ll.Plane(weights, directions, axis, axis), SimpleNamespace(x=x, y=y)
    found: dict[str, Any] = {}

    def ours(name: str, **options: Any) -> Callable[[], None]:
        def job() -> None:
            found[name] = ll.evaluate(model, plane, data, loss=loss, progress=False, **options)

        return job

    def usual() -> None:
        found["plain"] = plainly(model, plane, data, loss)

    jobs = {"plain": usual}
    for dtype in dtypes:
        short = "bfloat16" if dtype else "float32"
        jobs[short] = ours(short, dtype=dtype)
        bare = f"{short}, no shortcuts"
        jobs[bare] = ours(bare, dtype=dtype, shortcuts=False)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            seconds[name].append(time.process_time() - started)
    rows: dict[str, Any] = {"plain seconds": round(float(np.median(seconds["plain"])), 3)}
    for name in [name for name in jobs if name != "plain"]:
        ratio = np.median(np.divide(seconds["plain"], seconds[name]))
        apart = np.abs(found[name].loss.values / found["plain"] - 1).max()
        rows[name] = {
            "speed": round(float(ratio), 2),
            "method": found[name].attrs["method"],
            "largest_relative_difference": float(f"{apart:.1e}"),
        }
    return rows


def main() -> None:
    """Measure all models, or those named on the command line."""
    torch.set_num_threads(1)
    settings = {"samples": SAMPLES, "points": SIDE**2, "batch": BATCH, "rounds": ROUNDS}
    for name, case in guests().items():
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        dtypes = [None, torch.bfloat16] if name.startswith("book") else [None]
        found = {name: compare(*case, dtypes)}
        print(found, flush=True)
        known = bench.read("guests")["models"] if bench.path_of("guests").exists() else {}
        bench.write("guests", **settings, models=known | found)


if __name__ == "__main__":
    main()
