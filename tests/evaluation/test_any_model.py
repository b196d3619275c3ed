"""Models, inputs and losses that are not ours: a ResNet-18, a transformer, dictionaries, tuples."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_evaluate import brute_force, make_plane
from torch import nn
from torchvision.models import resnet18

import landscape_lib as ll


class Tagger(nn.Module):
    """A small transformer: tokens with a padding mask in a dictionary, one class per token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(8, 3)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.encode(self.embed(x["tokens"]), src_key_padding_mask=x["padding"])
        return self.output(hidden).transpose(1, 2)


def tagger():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tagger().double()
        tokens = torch.randint(0, 11, (9, 5))
        padding = torch.zeros(9, 5, dtype=torch.bool)
        padding[::2, 4] = True
        y = torch.randint(0, 3, (9, 5))
    return model, SimpleNamespace(x={"tokens": tokens, "padding": padding}, y=y)


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_a_transformer_with_a_dictionary_of_inputs(method):
    model, data = tagger()
    plane = make_plane(model)
    got = ll.evaluate(model, plane, data, batch_size=4, method=method)
    model.eval()
    for alpha in plane.alphas:
        moved = torch.func.functional_call(model, plane.weights_at(alpha, 0.25), (data.x,))
        here = got.sel(alpha=alpha, beta=0.25)
        assert float(here.loss) == pytest.approx(F.cross_entropy(moved, data.y).item(), rel=1e-9)
        right = (moved.argmax(1) == data.y).double().mean().item()
        assert float(here.accuracy) == pytest.approx(right, rel=1e-12)


def test_a_torchvision_resnet18():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet18(num_classes=5).double()
        data = SimpleNamespace(
            x=torch.randn(4, 3, 32, 32, dtype=torch.float64), y=torch.tensor([0, 4, 2, 2])
        )
    plane = make_plane(model, alphas=(0.0, 0.1), betas=(0.0, 0.1))
    got = ll.evaluate(model, plane, data, batch_size=3)
    for alpha, beta in ((0.0, 0.0), (0.1, 0.1)):
        mean, _ = brute_force(model, plane, data, F.cross_entropy, alpha, beta)
        assert float(got.loss.sel(alpha=alpha, beta=beta)) == pytest.approx(mean, rel=1e-9)


class TwoHeads(nn.Module):
    """Gives a tuple: a class and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.number = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.classes(x), self.number(x).squeeze(1)


def both(output, target, reduction="mean"):
    return F.cross_entropy(output[0], target["class"], reduction=reduction) + F.mse_loss(
        output[1], target["number"], reduction=reduction
    )


def distance(output, target):
    return (output[1] - target["number"]).abs()


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_tuples_out_dictionaries_as_targets_and_several_metrics(method):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoHeads().double()
        x = torch.randn(10, 6, dtype=torch.float64)
        y = {"class": torch.arange(10) % 3, "number": torch.randn(10, dtype=torch.float64)}
    metrics = {"distance": distance, "worst": lambda o, t: distance(o, t).mean()}
    plane = make_plane(model)
    got = ll.evaluate(
        model,
        plane,
        SimpleNamespace(x=x, y=y),
        loss=both,
        metrics=metrics,
        samples=7,
        batch_size=3,
        method=method,
    )
    chosen = torch.randperm(10, generator=torch.Generator().manual_seed(0))[:7]
    output = model(x[chosen])
    target = {name: value[chosen] for name, value in y.items()}
    here = got.sel(alpha=0, beta=0)
    assert float(here.loss) == pytest.approx(both(output, target).item(), rel=1e-12)
    assert float(here.distance) == pytest.approx(distance(output, target).mean().item(), rel=1e-12)
    assert float(here.worst) == pytest.approx(float(here.distance), rel=1e-12)
    assert np.isfinite(float(here.distance_se)) and np.isnan(float(here.worst_se))
