"""The first convolution as a product with patches: the same numbers, and less work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import landscape_lib as ll
from landscape_lib.evaluation import precision
from landscape_lib.evaluation.shortcuts import patches
from landscape_lib.evaluation.shortcuts.patches import gather, gathering

SAMPLES = 23


class Residual(nn.Module):
    """The image goes around the first convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(121, 3)

    def forward(self, x):
        return self.last((torch.tanh(self.first(x)) + x).flatten(1))


class Twice(nn.Module):
    """The first convolution is called again."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(121, 3)

    def forward(self, x):
        return self.last(self.first(torch.tanh(self.first(x))).flatten(1))


def net(*first, before=(), after=(), **options):
    """Return a network that begins with a convolution of images of 11 x 11 pixels."""
    options = {"kernel_size": 3} | options
    front = nn.Sequential(*before, nn.Conv2d(1, 4, **options), *first, nn.ReLU(), *after)
    with torch.no_grad():
        size = front.eval()(torch.zeros(1, 1, 11, 11)).numel()
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(size, 3))


def hooked():
    model = net()
    model[0].register_forward_hook(lambda layer, inputs, output: output.square())
    return model


def altered():
    model = net()
    model[0].forward = lambda x: x.expand(-1, 4, -1, -1)[..., 1:-1, 1:-1].square()
    return model


USED = {
    "plain": net,
    "pooled": lambda: net(after=[nn.MaxPool2d(2)]),
    "pooled, odd": lambda: net(padding=1, after=[nn.MaxPool2d(2)]),
    "pooled otherwise": lambda: net(after=[nn.MaxPool2d(3, 2)]),
    "no bias": lambda: net(bias=False, after=[nn.MaxPool2d(2)]),
    "stride": lambda: net(stride=2),
    "dilation": lambda: net(dilation=(1, 2), padding=(2, 1)),
    "oblong": lambda: net(kernel_size=(5, 2), stride=(1, 3), padding=(0, 1)),
    "batch norm": lambda: net(nn.BatchNorm2d(4), after=[nn.MaxPool2d(2)]),
    "small CNN": lambda: ll.models.small_cnn(channels=(3, 4), hidden=5, pool=True, classes=3),
    "LeNet": lambda: ll.models.lenet(
        image_size=11, padding=2, channels=(2, 3), hidden=4, classes=3
    ),
    "dropout behind it": lambda: net(after=[nn.Dropout(0.4)]),
}
NOT_USED = {
    "residual": Residual,
    "twice": Twice,
    "hook": hooked,
    "altered": altered,
    "wraps around": lambda: net(padding=1, padding_mode="circular"),
    "padding by name": lambda: net(padding="same"),
    "many pixels": lambda: net(kernel_size=6),
    "dropout before it": lambda: net(before=[nn.Dropout(0.4)]),
    "standardised": lambda: net(before=[nn.Tanh()]),
}


def build(make, samples=SAMPLES):
    """Return a model in float64 and its data, images of 11 x 11, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        x = torch.randn(samples, 1, 11, 11, dtype=torch.float64)
        y = torch.randint(0, 3, (samples,))
    return model, SimpleNamespace(x=x, y=y)


def plane_through(model):
    center, generator = ll.weights_of(model), torch.Generator().manual_seed(0)
    directions = ll.random_directions(center, 2, ignore_1d=False, generator=generator)
    return ll.Plane(center, directions, [-0.5, 0.0, 0.3, 1.0], [0.0, 0.25])


def brute_force(model, slice, data, training=False):
    """The loss at every point, from the weights there."""
    losses = []
    for coordinates in slice.coordinates:
        weights = slice.weights_at(*coordinates)
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            output = torch.func.functional_call(model, weights, (data.x,))
            losses.append(F.cross_entropy(output, data.y).item())
    return np.array(losses)


@pytest.fixture
def decisions(monkeypatch):
    """Whether patches were gathered, one entry for each evaluation."""
    found = []
    decide = patches.gathered

    def gathered(*args):
        made = decide(*args)
        found.append(made is not None)
        return made

    monkeypatch.setattr(patches, "gathered", gathered)
    return found


@pytest.mark.parametrize("name", USED)
def test_patches_give_what_the_convolution_gives(name):
    model, data = build(USED[name])
    model.eval()
    found = gathering(model)
    patched = gather(data.x, found.convolution, found.pooled)
    torch.testing.assert_close(found.module(patched), model(data.x), rtol=1e-12, atol=1e-12)
    assert {id(p) for p in found.module.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", USED)
def test_agrees_with_brute_force(name, decisions):
    model, data = build(USED[name])
    plane = plane_through(model)
    got = ll.evaluate(model, plane, data, method="loop", batch_size=10)  # 10, 10, 3
    expected = brute_force(model, plane, data)
    np.testing.assert_allclose(got.loss.values.ravel(), expected, rtol=1e-10)
    assert decisions == [True]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*NOT_USED, "dropout behind it"])
def test_where_it_would_change_the_numbers_it_is_not_used(name, training, decisions):
    model, data = build((USED | NOT_USED)[name])
    plane = plane_through(model)
    got = ll.evaluate(model, plane, data, method="loop", training=training)
    expected = brute_force(model, plane, data, training)
    np.testing.assert_allclose(got.loss.values.ravel(), expected, rtol=1e-10)
    # Dropout draws its mask in the order in which values are stored, which the product changes.
    assert any(decisions) == (name in USED and not training)


def test_it_is_a_rule_of_model_slice_and_data(decisions, monkeypatch):
    model, data = build(net)
    plane = plane_through(model)
    ll.evaluate(model, plane, data, dtype=torch.float32, method="loop")
    ll.evaluate(model, plane, data, dtype=torch.bfloat16, method="loop")
    ll.evaluate(model, plane, data, method="vmap")
    few = ll.Line(plane.origin, plane.directions[0], np.arange(patches.FEWEST_POINTS - 1))
    ll.evaluate(model, few, data, method="loop")
    colour = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(242, 3)).double()
    data.x = data.x.expand(-1, 3, -1, -1)
    ll.evaluate(colour, plane_through(colour), data, method="loop")
    model, data = build(net)
    monkeypatch.setattr(patches, "MOST_BYTES", SAMPLES * 9 * 9 * 10 * 8)
    ll.evaluate(model, plane, data, method="loop")
    model, data = build(net, samples=SAMPLES + 1)
    ll.evaluate(model, plane, data, method="loop")
    assert decisions == [True, False, False, False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["plain", "pooled, odd", "no bias"])
def test_what_is_not_finite_stays(name, value, decisions):
    model, data = build(USED[name])
    plane = plane_through(model)
    data.x[0, 0, 5, 5] = value
    got = ll.evaluate(model, plane, data, method="loop").loss.values.ravel()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(brute_force(model, plane, data)))
    data.x[0, 0, 5, 5] = 0.0
    plane.origin["0.weight"][1, 0, 1, 1] = value
    got = ll.evaluate(model, plane, data, method="loop").loss.values.ravel()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(brute_force(model, plane, data)))
    assert np.isnan(got).all() and decisions == [True]


def test_a_weight_that_meets_only_the_margin_may_be_anything(decisions):
    model, data = build(lambda: net(padding=1, stride=10))
    data.x = data.x[:, :, :10, :10].float()
    model[-1] = nn.Linear(4, 3)  # one pixel of 10 x 10, whose filter begins in the margin
    plane = plane_through(model.float())
    plane.origin["0.weight"][:, :, 0, 0] = torch.nan
    got = ll.evaluate(model, plane, data, method="loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "gathered", lambda *_: None)
        plain = ll.evaluate(model, plane, data, method="loop")
    np.testing.assert_array_equal(got.loss, plain.loss)
    assert not decisions


def test_rare_dropout_draws_the_same_mask(decisions):
    model, data = build(lambda: net(after=[nn.MaxPool2d(4), nn.Dropout(0.02)]), samples=100)
    plane = plane_through(model)
    got = ll.evaluate(model, plane, data, method="loop", training=True)
    expected = brute_force(model, plane, data, training=True)
    np.testing.assert_allclose(got.loss.values.ravel(), expected, rtol=1e-10)
    assert not decisions  # a trial on two samples may drop nothing


def test_products_are_as_exact_as_convolutions(decisions):
    model, data = build(lambda: net(kernel_size=5))
    model.float()
    data.x = data.x.float()
    try:
        torch.set_float32_matmul_precision("medium")
        assert not precision.multiplies_alike(torch.device("cpu"))
        got = ll.evaluate(model, plane_through(model), data, method="loop")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not decisions and got.attrs["float32_products"] == "conv ieee, matmul bf16"
    assert precision.multiplies_alike(torch.device("cpu"))


def test_images_of_all_sizes_count(decisions, monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batches = [(torch.rand(4, 1, 8, 8), torch.ones(4).long())]
    batches += [(torch.rand(8, 1, 64, 64), torch.ones(8).long())]
    monkeypatch.setattr(patches, "MOST_BYTES", 100_000)
    ll.evaluate(model, plane_through(model), batches, method="loop")
    monkeypatch.setattr(patches, "MOST_BYTES", 4 * 10 * (4 * 36 + 8 * 62**2))
    ll.evaluate(model, plane_through(model), batches, method="loop")
    assert decisions == [False, True]


def test_a_point_costs_one_product_and_not_the_pixels_that_pooling_drops():
    model, data = build(USED["pooled, odd"], samples=100)
    found = gathering(ll.models.small_cnn(pool=True).eval())
    assert found is not None and not found.pooled  # before pooling is put before ReLU
    counts = []
    for points in (10, 20):
        line = ll.Line(ll.weights_of(model), ll.weights_of(model), np.arange(points) / 10)
        with FlopCounterMode(display=False) as counter:
            ll.evaluate(model, line, data, method="loop")
        counts.append(counter.get_total_flops())
    stored = 48 + 16 + 304 + 16  # each tensor at a multiple of 16
    layers = 100 * 2 * (4 * 25 * 4 * 10 + 100 * 3)  # 10 x 10 of 11 x 11 pixels; one more for bias
    assert (counts[1] - counts[0]) / 10 == 2 * 2 * stored + layers


@pytest.mark.parametrize("policy", ["reestimated", "interpolated", "batch"])
def test_every_policy_of_batch_norm_agrees(policy, decisions, monkeypatch):
    model, data = build(USED["batch norm"])
    plane = plane_through(model)
    options = {"batchnorm": policy, "batch_size": 10, "method": "loop"}
    if policy == "interpolated":
        one = ll.batchnorm.statistics_of(model)
        options["statistics"] = [one, *[{n: 0.1 * t for n, t in one.items()}] * 2]
    got = ll.evaluate(model, plane, data, **options)
    monkeypatch.setattr(patches, "gathered", lambda *_: None)
    plain = ll.evaluate(model, plane, data, **options)
    np.testing.assert_allclose(got.loss, plain.loss, rtol=1e-10)
    assert decisions == [True]


def test_workers_are_sent_the_patches_and_give_the_same_bits(decisions):
    model, data = build(USED["pooled"])
    runs = []
    for workers in (1, 2):
        with ThreadPoolExecutor(workers) as executor:
            options = {"method": "loop", "executor": executor}
            runs.append(ll.evaluate(model, plane_through(model), data, **options))
    assert runs[0].equals(runs[1]) and decisions == [True, True]  # by the caller, by no worker


def test_tolerance_and_reference_take_the_same_samples(decisions, monkeypatch):
    model, data = build(USED["pooled"], samples=900)
    plane = plane_through(model)
    elsewhere = {name: torch.full_like(t, 0.1) for name, t in ll.weights_of(model).items()}
    options = {"tolerance": 0.05, "reference": elsewhere, "method": "loop"}
    got = ll.evaluate(model, plane, data, **options)
    monkeypatch.setattr(patches, "gathered", lambda *_: None)
    plain = ll.evaluate(model, plane, data, **options)
    assert got.samples.equals(plain.samples) and decisions == [True]
    np.testing.assert_allclose(got.loss_difference, plain.loss_difference, rtol=1e-9, atol=1e-12)
