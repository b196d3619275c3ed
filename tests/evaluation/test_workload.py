"""What a forward pass takes, and what follows from it: batch size, points at once."""

import math

import pytest
import torch
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation import workload as workload_room
from landscape_lib.evaluation.task import choose_method
from landscape_lib.evaluation.workload import Workload, fastest_batch, points_at_once, workload

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_operations_of_the_papers_network() -> None:
    work = workload(ll.models.small_cnn(seed=0), torch.randn(5, 1, 28, 28))
    assert work.flops == 2 * 16_445_824  # METHODS A, cost
    # The last ReLU reads and writes 64 channels of 28 x 28 float32.
    assert work.activations == 4 * 28 * 28 * (64 + 64)


def test_operations_of_the_other_networks() -> None:
    x = torch.randn(2, 3, 32, 32)
    assert workload(ll.models.vgg9(seed=0).eval(), x).flops / 2e6 == pytest.approx(191.6, abs=0.05)
    assert workload(ll.models.resnet(20, seed=0).eval(), x).flops / 2e6 == pytest.approx(40.8, 0.01)


class Sequences(nn.Module):
    """A module on sequences, without the states that it returns beside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)[0]


class Attention(nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)


T, E, H = 7, 12, 20
BOTH_WAYS = 4 * H * (E + H) + 4 * H * (2 * H + H)


@pytest.mark.parametrize(
    ("module", "products"),
    [
        (nn.LSTM(E, H, batch_first=True), T * 4 * H * (E + H)),
        (nn.LSTM(E, H, 2, batch_first=True, bidirectional=True), 2 * T * BOTH_WAYS),
        (nn.GRU(E, H, batch_first=True), T * 3 * H * (E + H)),
        (Attention(E, 3, batch_first=True), 4 * T * E * E + 2 * T * T * E),
    ],
    ids=["LSTM", "LSTM both ways", "GRU", "attention"],
)
def test_operations_of_one_call_that_is_many_products(module: nn.Module, products: int) -> None:
    assert workload(Sequences(module).eval(), torch.randn(4, T, E)).flops == 2 * products


def test_a_model_that_fails_on_two_samples_is_not_an_error() -> None:
    work = workload(nn.Linear(3, 2), torch.randn(4, 7))
    assert math.isnan(work.flops) and math.isnan(work.activations)
    assert fastest_batch(work, CPU) == fastest_batch(work, GPU) == 512
    assert choose_method(nn.Linear(3, 2), CPU, work, 512, "frozen") == "loop"


@pytest.mark.parametrize(("device", "most"), [(CPU, 512), (GPU, 16384)])
def test_batch_shrinks_as_activations_grow(device: torch.device, most: int) -> None:
    batches = [fastest_batch(Workload(1.0, 10.0**k, 40.0), device) for k in range(1, 10)]
    assert batches == sorted(batches, reverse=True)
    assert batches[0] == most and batches[-1] == 16
    assert all(batch & (batch - 1) == 0 for batch in batches)


def test_points_share_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_room, "free_memory", lambda device: 10_000_000)
    # 1,000 parameters in three copies of 4 bytes, and 100 samples of 380 bytes.
    assert points_at_once(Workload(1.0, 380.0, 40.0), 1_000, 100, GPU) == 100
    assert points_at_once(Workload(1.0, 1e9, 40.0), 1_000, 100, GPU) == 1


@pytest.mark.parametrize("device", [CPU, GPU])
def test_points_of_little_work_are_not_taken_all_together(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload_room, "free_memory", lambda device: 16 << 30)
    assert 100 < points_at_once(Workload(1.0, 4.0, 40.0), 10, 100, device) < 10_000


@pytest.mark.parametrize(
    ("device", "flops", "policy", "expected"),
    [
        (CPU, 1e3, "frozen", "vmap"),
        (CPU, 1e9, "frozen", "loop"),
        (CPU, 1e3, "reestimated", "loop"),
        (GPU, 1e7, "batch", "vmap"),
        (GPU, 1e8, "batch", "loop"),
        (GPU, 1e3, "reestimated", "loop"),
    ],
)
def test_method_follows_device_and_work(
    device: torch.device, flops: float, policy: str, expected: str
) -> None:
    model = ll.models.small_cnn(seed=0)
    assert choose_method(model, device, Workload(flops, 1.0, 40.0), 512, policy) == expected
