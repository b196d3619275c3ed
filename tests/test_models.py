"""The networks have the sizes and costs of their sources, and leave the random state alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from landscape_lib import models

Builder = Callable[..., nn.Sequential]

# Each network small, with the shape of one of its images.
SMALL: list[tuple[Builder, dict[str, object], tuple[int, int, int]]] = [
    (models.mlp, {"inputs": 64, "hidden": (8,)}, (1, 8, 8)),
    (models.mlp, {"inputs": 64, "hidden": ()}, (1, 8, 8)),
    (models.small_cnn, {"width": 0.25}, (1, 8, 8)),
    (models.small_cnn, {"width": 0.25, "pool": True, "batchnorm": True}, (1, 8, 8)),
    (models.lenet, {"width": 0.1, "image_size": 8, "padding": 2}, (1, 8, 8)),
    (models.vgg9, {"width": 0.05, "in_channels": 1, "image_size": 8}, (1, 8, 8)),
    (models.vgg9, {"width": 0.05, "image_size": 16, "batchnorm": False}, (3, 16, 16)),
    (models.resnet, {"depth": 8, "width": 4}, (3, 16, 16)),
    (models.resnet, {"depth": 8, "width": 4, "shortcuts": False, "in_channels": 1}, (1, 8, 8)),
]
small_networks = pytest.mark.parametrize(("build", "options", "shape"), SMALL)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *shape: int) -> int:
    """Of convolutions and matrix products, for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


@small_networks
def test_every_network_maps_images_to_logits(
    build: Builder, options: dict[str, object], shape: tuple[int, int, int]
) -> None:
    model = build(**options, classes=7, seed=0).eval()
    assert model(torch.zeros(5, *shape)).shape == (5, 7)


@small_networks
def test_equal_seeds_give_equal_weights_and_other_seeds_others(
    build: Builder, options: dict[str, object], shape: tuple[int, int, int]
) -> None:
    one, same, other = (build(**options, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@small_networks
def test_a_seed_leaves_the_global_random_state_alone(
    build: Builder, options: dict[str, object], shape: tuple[int, int, int]
) -> None:
    before = torch.get_rng_state()
    build(**options, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@small_networks
def test_without_a_seed_the_global_random_state_decides(
    build: Builder, options: dict[str, object], shape: tuple[int, int, int]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        drawn = build(**options).state_dict()
    seeded = build(**options, seed=3).state_dict()
    assert all(torch.equal(drawn[name], seeded[name]) for name in drawn)


@small_networks
def test_every_network_runs_under_vmap_over_weight_vectors(
    build: Builder, options: dict[str, object], shape: tuple[int, int, int]
) -> None:
    """DESIGN section 3: ``vmap`` and a loop agree; no module may work in place."""
    model = build(**options, seed=0).double().eval()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).double()
    buffers = dict(model.named_buffers())
    points = [{k: v.detach() * s for k, v in model.named_parameters()} for s in (0.5, 1.0, 2.0)]
    stacked = {k: torch.stack([point[k] for point in points]) for k in points[0]}

    def output(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, (weights, buffers), (x,))

    together = torch.func.vmap(output)(stacked)
    alone = torch.stack([output(point) for point in points])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@small_networks
def test_every_weight_receives_a_gradient(
    build: Builder, options: dict[str, object], shape: tuple[int, int, int]
) -> None:
    model = build(**options, seed=0)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_small_cnn_has_the_size_and_cost_of_mpo() -> None:
    """METHODS section A, Cost: n = 153,402; multiply-adds of a forward pass per image."""
    assert parameter_count(models.small_cnn()) == 153_402
    assert multiply_adds(models.small_cnn(), 1, 28, 28) == 16_445_824
    assert multiply_adds(models.small_cnn(pool=True), 1, 28, 28) == 1_543_552
    cifar = models.small_cnn(in_channels=3, channels=(16, 32, 64))
    assert multiply_adds(cifar, 3, 32, 32) == 24_167_680
    six = models.small_cnn(channels=(8, 8, 32, 32, 64, 64))
    assert multiply_adds(six, 1, 28, 28) == 53_024_128


def test_small_lenet_has_the_size_of_the_hessian_experiment() -> None:
    """METHODS section E: 47,658 = 260 + 5,020 + 41,088 + 1,290."""
    model = models.lenet(channels=(10, 20), hidden=128)
    layers = [parameter_count(m) for m in model if parameter_count(m)]
    assert layers == [260, 5_020, 41_088, 1_290]


def test_lenet_accepts_every_image_from_the_smallest_it_names() -> None:
    for padding, smallest in ((0, 16), (1, 10), (2, 4)):
        for size in range(smallest, smallest + 6):
            model = models.lenet(image_size=size, padding=padding, width=0.1)
            assert model(torch.zeros(1, 1, size, size)).shape == (1, 10)
        with pytest.raises(ValueError, match=f"image_size: expected at least {smallest} "):
            models.lenet(image_size=smallest - 1, padding=padding)


def test_vgg9_has_the_size_and_cost_of_li() -> None:
    """METHODS section D, Cost: 191.6 million multiply-adds, 2.79 million parameters."""
    model = models.vgg9()
    assert round(parameter_count(model) / 1e6, 2) == 2.79
    assert round(multiply_adds(model, 3, 32, 32) / 1e6, 1) == 191.6


@pytest.mark.parametrize(("depth", "millions"), [(20, 40.8), (56, 125.7)])
def test_resnet_has_the_cost_of_li(depth: int, millions: float) -> None:
    """METHODS section D, Cost."""
    assert round(multiply_adds(models.resnet(depth), 3, 32, 32) / 1e6, 1) == millions


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_resnet_depth_counts_the_layers_on_the_longest_path(depth: int) -> None:
    """He et al. 2016: 6n convolutions in the blocks, one before them, one linear layer."""
    model = models.resnet(depth, shortcuts=False, width=1)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_dropping_shortcuts_removes_only_the_two_projections() -> None:
    """Li et al.: ``noshort`` drops all shortcuts; only two of them have weights."""
    with_shortcuts = models.resnet(20).state_dict()
    without = models.resnet(20, shortcuts=False).state_dict()
    extra = with_shortcuts.keys() - without.keys()
    assert without.keys() <= with_shortcuts.keys()
    assert {name.split(".shortcut")[0] for name in extra} == {"stage2.block1", "stage3.block1"}


@pytest.mark.parametrize("shortcuts", [True, False])
def test_with_all_convolutions_zero_only_a_shortcut_lets_the_image_through(
    shortcuts: bool,
) -> None:
    block = models.BasicBlock(4, 4, stride=1, shortcut=shortcuts).eval()
    nn.init.zeros_(block.conv1.weight)
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x if shortcuts else torch.zeros_like(x))


@pytest.mark.parametrize("model", [models.resnet(20, seed=0), models.vgg9(seed=0)])
def test_li_initialisation(model: nn.Sequential) -> None:
    """METHODS section D, Training: Kaiming (fan in) convolutions, linear weights N(0, 0.001)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5_000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(1e-3, rel=0.1)
            assert not module.bias.any()


def test_width_scales_counts_rounded_and_never_to_zero() -> None:
    half = models.small_cnn(width=0.5)
    assert (half.conv1.out_channels, half.conv3.out_channels) == (4, 32)
    assert half.fc.out_features == 64
    thin = models.small_cnn(width=1e-6)
    assert thin.conv3.out_channels == thin.fc.out_features == 1
    assert models.mlp(hidden=(5,), width=0.5).fc1.out_features == 3
    assert models.vgg9(width=0.25).conv3_3.out_channels == 64
    assert models.resnet(20, width=8).stage3.block1.conv2.out_channels == 32


def test_pooling_works_down_to_one_pixel() -> None:
    """METHODS section A: maps smaller than 4x4 are stretched by the average pooling."""
    model = models.small_cnn(pool=True, width=0.25)
    features = model[: list(dict(model.named_children())).index("average")]
    assert features(torch.zeros(1, 1, 8, 8)).shape[-2:] == (1, 1)
    assert features(torch.zeros(1, 1, 28, 28)).shape[-2:] == (3, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.mlp(inputs=0), "inputs: expected a whole number of at least 1, got 0"),
        (lambda: models.mlp(hidden=(8, 0)), "hidden: .* got 0"),
        (lambda: models.mlp(classes=0), "classes: .* got 0"),
        (lambda: models.mlp(width=0), "width: expected a positive finite factor, got 0"),
        (lambda: models.mlp(width=float("nan")), "width: .* got nan"),
        (lambda: models.small_cnn(channels=()), "channels: expected at least one"),
        (lambda: models.small_cnn(in_channels=0), "in_channels: .* got 0"),
        (lambda: models.small_cnn(hidden=2.5), r"hidden: .* got 2\.5"),
        (lambda: models.lenet(channels=(8,)), r"channels: expected two convolutions, got \(8,\)"),
        (lambda: models.lenet(image_size=8), "image_size: expected at least 16 .* got 8"),
        (lambda: models.lenet(padding=-1), "padding: expected 0 or more, got -1"),
        (lambda: models.vgg9(image_size=7), "image_size: .* needs 8 or more, got 7"),
        (lambda: models.resnet(18), r"depth: expected 6n \+ 2 .* got 18"),
        (lambda: models.resnet(2), r"depth: expected 6n \+ 2 .* got 2"),
        (lambda: models.resnet(20, width=0), "width: .* got 0"),
    ],
)
def test_bad_input_is_named(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_pooling_where_it_is_asked_for():
    model = models.small_cnn(channels=(4,) * 6, pool=(2, 4, 6), seed=0)
    assert [n for n, _ in model.named_children() if "pool" in n] == ["pool2", "pool4", "pool6"]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    every = models.small_cnn(pool=(1, 2, 3), seed=0)
    assert [*every.state_dict()] == [*models.small_cnn(pool=True, seed=0).state_dict()]
    with pytest.raises(ValueError, match=r"pool: expected numbers of convolutions, 1 to 3"):
        models.small_cnn(pool=(4,))


def test_pooling_before_relu_is_the_same_function():
    """Also after batch norm with negative scales, and where values are NaN."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, 8, 8)
    x[0, 0, 0, 0] = torch.nan
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    behind = nn.functional.max_pool2d(nn.functional.relu(norm(x)), 2)
    before = nn.functional.relu(nn.functional.max_pool2d(norm(x), 2))
    assert torch.equal(behind.nan_to_num(7.0), before.nan_to_num(7.0))
    for model in (models.small_cnn(pool=True), models.lenet(), models.vgg9(width=0.1)):
        kinds = [type(module) for module in model]
        places = [k for k, kind in enumerate(kinds) if kind is nn.MaxPool2d]
        assert places and all(kinds[k + 1] is nn.ReLU for k in places)
