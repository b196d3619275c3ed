"""Wrong numbers that were found by trying, each against a plain loop in float64 (CASES, N3 to N17).

And crashes of the same kind (K1, K2, K9, K12). Each test stands for a kind of input.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import tracemalloc
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_lib as ll

METHODS = ["loop", "vmap"]


def linear(inputs: int = 4, outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def here(model: nn.Module) -> ll.Line:
    """Return a line of which the middle is the model."""
    weights = ll.weights_of(model)
    ones = {n: torch.ones_like(t) for n, t in weights.items()}
    return ll.Line(weights, ones, [-0.5, 0.0, 0.5])


def draw(samples: int, *shape: int) -> Tensor:
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1)).double()


def classes(samples: int, *shape: int, count: int = 3) -> Tensor:
    return torch.randint(0, count, (samples, *shape), generator=torch.Generator().manual_seed(2))


def r_squared(output: Tensor, target: Tensor) -> Tensor:
    return 1 - (output - target).square().sum() / (target - target.mean()).square().sum()


@pytest.mark.parametrize("samples", [None, 20])
def test_means_of_batches_have_no_standard_error(samples: int | None) -> None:  # N4
    model = linear(outputs=1)
    data = SimpleNamespace(x=draw(40, 4), y=draw(40, 1))
    mean = lambda output, target: F.mse_loss(output, target)  # noqa: E731
    got = ll.evaluate(
        model, here(model), data, loss=mean, metrics={"r2": r_squared}, samples=samples
    )
    assert got.loss_se.isnull().all() and got.r2_se.isnull().all()
    assert got.loss.notnull().all() and got.r2.notnull().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("left_out", [-100, 255, 1])
def test_targets_that_the_loss_ignores_do_not_count(left_out: int, method: str) -> None:  # N5
    """Also where they begin after the first batch, and where some batches have no others."""
    model = nn.Conv2d(2, 3, 1).double()
    data = SimpleNamespace(x=draw(40, 2, 5, 5), y=classes(40, 5, 5))
    data.y[20:30, :3] = left_out
    data.y[30:] = left_out
    loss = nn.CrossEntropyLoss(ignore_index=left_out)
    line = here(model)
    got = ll.evaluate(model, line, data, loss=loss, method=method, batch_size=5)
    for alpha in line.alphas:
        output = torch.func.functional_call(model, line.weights_at(alpha), (data.x,))
        counts = data.y != left_out
        hits = (output.argmax(1) == data.y)[counts].double().mean()
        at = got.sel(alpha=alpha)
        assert float(at.accuracy) == pytest.approx(float(hits), rel=1e-12)
        assert float(at.loss) == pytest.approx(float(loss(output, data.y)), rel=1e-10)
        assert float(at.loss_se) == float(at.accuracy_se) == 0


def test_errors_of_unevenly_weighed_samples_are_honest() -> None:  # N3, N5
    model = nn.Conv2d(2, 3, 1).double()
    data = SimpleNamespace(x=draw(300, 2, 3, 3), y=classes(300, 3, 3))
    for k in range(300):
        data.y[k].view(-1)[: k % 9] = -100
    line = ll.Line(ll.weights_of(model), ll.weights_of(model), [0.0])
    full = ll.evaluate(model, line, data)
    parts = [ll.evaluate(model, line, data, samples=100, seed=seed) for seed in range(100)]
    for name in ("loss", "accuracy"):
        found = np.array([float(part[name][0]) for part in parts])
        stated = np.array([float(part[f"{name}_se"][0]) for part in parts])
        assert np.mean(stated) == pytest.approx(found.std(ddof=1), rel=0.25)
        covered = np.abs(found - float(full[name][0])) <= 1.96 * stated
        assert covered.mean() >= 0.88  # of 100 runs, binomial: 95 +- 2.2


def info_nce(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(output @ output.T, torch.arange(len(output)), reduction=reduction)


@pytest.mark.parametrize("whole", [False, True])
def test_a_loss_that_couples_samples_sees_the_batches_it_is_given(whole: bool) -> None:  # N6
    model = linear()
    x, y = draw(96, 4), classes(96)
    batches = [(x[k : k + 32], y[k : k + 32]) for k in range(0, 96, 32)]
    data: Any = SimpleNamespace(x=x, y=y) if whole else batches
    spread = lambda output, target: output.std() + 0 * target.sum()  # noqa: E731
    got = ll.evaluate(
        model,
        here(model),
        data,
        loss=info_nce,
        metrics={"spread": spread},
        batch_size=32 if whole else None,
    ).sel(alpha=0)
    with torch.no_grad():
        expected = np.mean([float(info_nce(model(a), b)) for a, b in batches])
        width = np.mean([float(model(a).std()) for a, _ in batches])
    assert float(got.loss) == pytest.approx(expected, rel=1e-12)
    assert float(got.spread) == pytest.approx(width, rel=1e-12)
    assert np.isnan(got.loss_se)


def padded(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(output.transpose(1, 2), target, ignore_index=0, reduction=reduction)


def test_a_loss_with_a_rule_of_its_own_is_compared_on_every_batch() -> None:  # N7
    model = nn.Linear(4, 5).double()
    data = SimpleNamespace(x=draw(64, 6, 4), y=1 + classes(64, 6, count=4))
    data.y[40:, 2:] = 0
    got = ll.evaluate(model, here(model), data, loss=padded, metrics={}).sel(alpha=0)
    with torch.no_grad():
        assert float(got.loss) == pytest.approx(float(padded(model(data.x), data.y)), rel=1e-12)


class Remembers(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.h = kind, linear(), 0.0
        self.register_buffer("ema", torch.zeros(3).double())
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        output = self.body(x)
        if self.kind == "re-assigned buffer":
            self.ema = 0.9 * self.ema + 0.1 * output.mean(0)
            return output + self.ema
        if self.kind == "attribute":
            self.h = 0.5 * self.h + output.mean(0)
            return output + self.h
        self.seen.append(len(x))
        return output * len(self.seen)


@pytest.mark.parametrize("kind", ["re-assigned buffer", "attribute", "list"])
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_each_point_starts_from_the_model_as_it_was_given(kind: str, method: str) -> None:  # N8, N9
    model = Remembers(kind)
    data = SimpleNamespace(x=draw(24, 4), y=classes(24))
    line = here(model)
    got = ll.evaluate(model, line, data, method=method, batch_size=8)
    assert not model.seen and isinstance(model.h, float) and not model.ema.any()
    for alpha in line.alphas:
        fresh = Remembers(kind)
        ll.load_weights(fresh, line.weights_at(alpha))
        pairs = zip(data.x.split(8), data.y.split(8), strict=True)
        with torch.no_grad():
            parts = [F.cross_entropy(fresh(x), y) for x, y in pairs]
        assert float(got.loss.sel(alpha=alpha)) == pytest.approx(float(sum(parts) / 3), rel=1e-10)


def test_targets_keep_their_digits() -> None:  # N10
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(1000.0)
    data = SimpleNamespace(x=draw(500, 4).float(), y=1000 + draw(500, 1).float())
    line = ll.Line(ll.weights_of(model), ll.weights_of(model), [0.0])
    got = ll.evaluate(model, line, data, loss=F.mse_loss, dtype=torch.bfloat16)
    assert float(got.loss[0]) == pytest.approx(float((data.y - 1000).square().mean()), rel=1e-4)


class Mixed(nn.Module):
    def __init__(self, body: torch.dtype, head: torch.dtype) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8).to(body), nn.Linear(8, 3).to(head)
        self.steps = nn.Parameter(torch.tensor(7), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x.to(self.body.weight.dtype))
        return self.head(hidden.to(self.head.weight.dtype)) + (self.steps - 7)


@pytest.mark.parametrize("head", [torch.float32, torch.float16])
@pytest.mark.parametrize("body", [torch.bfloat16, torch.float32])
def test_every_parameter_keeps_its_dtype(body: torch.dtype, head: torch.dtype) -> None:  # N11
    torch.manual_seed(0)
    model = Mixed(body, head)
    data = SimpleNamespace(x=draw(30, 4).float(), y=classes(30))
    weights = ll.weights_of(model)
    direction = {n: torch.ones_like(t) for n, t in weights.items()}
    line = ll.Line(weights, direction, [0.0, 0.5])
    got = ll.evaluate(model, line, data)
    for alpha in line.alphas:
        moved = {n: (w.float() + alpha).to(w.dtype) for n, w in weights.items() if n != "steps"}
        with torch.no_grad():
            output = torch.func.functional_call(model, moved, (data.x,)).float()
        expected = float(F.cross_entropy(output, data.y))
        # Products of 16 bits may be added up in another order.
        room = 1e-5 if body == head == torch.float32 else 2e-3
        assert float(got.loss.sel(alpha=alpha)) == pytest.approx(expected, rel=room)


def test_standard_error_is_unbiased_over_all_subsets() -> None:  # N13
    from itertools import combinations

    from landscape_lib.evaluation.sums import mean_and_error

    values = np.array([1.0, 2.0, 4.0, 9.0])
    squares, means = [], []
    for pair in combinations(values, 2):
        v = np.array(pair)
        sums = np.array([v.sum(), (v**2).sum(), v.sum(), 2.0, 2.0])
        mean, error = mean_and_error(sums, 2.0, 4.0)
        squares.append(float(error) ** 2)
        means.append(float(mean))
    assert np.mean(squares) == pytest.approx(np.var(means), rel=1e-12)
    assert np.mean(squares) == pytest.approx(3.1666667, rel=1e-6)


@pytest.mark.parametrize("around", ["autocast", "inference_mode", "default device"])
def test_what_the_caller_has_switched_on_stays_outside(around: str) -> None:  # N16, K9
    model = linear().float()
    data = SimpleNamespace(x=draw(30, 4).float(), y=classes(30))
    expected = ll.evaluate(model, here(model), data)
    if around == "default device":
        torch.set_default_device("meta")
        try:
            got = ll.evaluate(model, here(model), data)
        finally:
            torch.set_default_device(None)
    else:
        context = (
            torch.autocast("cpu", torch.bfloat16)
            if around == "autocast"
            else torch.inference_mode()
        )
        with context:
            got = ll.evaluate(model, here(model), data)
    assert got.loss.equals(expected.loss)


class DrawsElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * (1 + random.random() + float(np.random.rand()))


def test_numpys_and_pythons_random_numbers_are_the_same_at_every_point() -> None:  # N17
    model = DrawsElsewhere()
    data = SimpleNamespace(x=draw(30, 4), y=classes(30))
    weights = ll.weights_of(model)
    ones = {n: torch.ones_like(t) for n, t in weights.items()}
    line = ll.Slice(weights, [ones], [[0.0], [0.0], [0.0]])
    states = random.getstate(), np.random.get_state()[1].copy()
    got = ll.evaluate(model, line, data, training=True)
    assert len(set(got.loss.values)) == 1
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_batches_of_different_lengths() -> None:  # K1
    model = nn.Linear(4, 5).double()
    batches = [(draw(3, n, 4), classes(3, n, count=5)) for n in (2, 7, 4)]

    def loss(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), target, reduction=reduction)

    got = ll.evaluate(model, here(model), batches, loss=loss, metrics={}).sel(alpha=0)
    with torch.no_grad():
        values = [float(loss(model(x), y)) for x, y in batches]
    assert float(got.loss) == pytest.approx(np.mean(values), rel=1e-12)  # of samples, all as likely


def test_memory_follows_the_batch_size() -> None:  # K2
    from torch.profiler import ProfilerActivity, profile

    words, places = 2000, 32
    model = nn.Linear(8, words)
    data = SimpleNamespace(x=draw(256, places, 8).float(), y=classes(256, places, count=words))

    def loss(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), target, reduction=reduction)

    def largest(run: Any) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            run()
        return max(abs(event.cpu_memory_usage) for event in seen.events())

    line = ll.Line(ll.weights_of(model), ll.weights_of(model), [0.0, 0.1])
    ours = largest(lambda: ll.evaluate(model, line, data, loss=loss, metrics={}, batch_size=8))
    one_batch = 8 * places * words * 4
    assert ours <= 2.1 * one_batch
    assert tracemalloc.is_tracing() is False


@dataclasses.dataclass
class Pair:
    first: Tensor
    second: Tensor


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = linear()

    def forward(self, x: Any) -> Tensor:
        first, second = (x.first, x.second) if isinstance(x, Pair) else (x["first"], x["second"])
        return self.body(first + second)


@pytest.mark.parametrize("kind", [UserDict, Pair, dict])
def test_inputs_in_containers_of_any_kind(kind: Any) -> None:  # K9
    model = Reads()
    first, second, y = draw(30, 4), draw(30, 4) / 2, classes(30)
    x = Pair(first, second) if kind is Pair else kind({"first": first, "second": second})
    got = ll.evaluate(model, here(model), SimpleNamespace(x=x, y=y)).sel(alpha=0)
    with torch.no_grad():
        expected = float(F.cross_entropy(model.body(first + second), y))
    assert float(got.loss) == pytest.approx(expected, rel=1e-12)


def pruned(model: nn.Module) -> nn.Module:
    from torch.nn.utils import prune

    prune.random_unstructured(model[0], "weight", amount=0.3)
    return model


def normed(model: nn.Module) -> nn.Module:
    from torch.nn.utils import weight_norm

    return weight_norm(model[0], "weight") and model


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [pruned, normed, torch.jit.script])
def test_models_right_after_training(change: Any) -> None:  # K9
    model = change(linear())
    data = SimpleNamespace(x=draw(30, 4), y=classes(30))
    F.cross_entropy(model(data.x), data.y).backward()
    got = ll.evaluate(model, here(model), data)
    with torch.no_grad():
        expected = float(F.cross_entropy(model(data.x), data.y))
    assert float(got.loss.sel(alpha=0)) == pytest.approx(expected, rel=1e-12)
    assert got.loss.notnull().all() and len(set(got.loss.values)) == 3


def test_a_model_that_takes_two_inputs_is_told_how() -> None:  # K9
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = linear()

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.body(first + second)

    model = Two()
    data = SimpleNamespace(x=(draw(9, 4), draw(9, 4)), y=classes(9))
    with pytest.raises(TypeError) as caught:
        ll.evaluate(model, here(model), data)
    assert any("called as model(x)" in note for note in caught.value.__notes__)


def test_threads_take_turns() -> None:  # K12
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)).double()
    data = SimpleNamespace(x=draw(200, 4), y=classes(200))
    options: dict[str, Any] = {"training": True, "progress": False}
    expected = ll.evaluate(model, here(model), data, **options)
    found: list[Any] = []
    run = lambda: found.append(ll.evaluate(model, here(model), data, **options))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(one.loss.equals(expected.loss) for one in found)


@pytest.mark.parametrize("name", ["top/5", "", "a\0b"])
def test_a_name_that_no_file_takes_is_refused_before_work(name: str) -> None:  # K4
    model = linear()
    data = SimpleNamespace(x=draw(9, 4), y=classes(9))
    with pytest.raises(ValueError, match="metrics: expected a name of printable characters"):
        ll.evaluate(model, here(model), data, metrics={name: r_squared})


@pytest.mark.parametrize("source", [None, {"a": 1}])
def test_a_source_that_is_no_text_is_no_obstacle(source, tmp_path):
    """CASES K4: the surface and its store can be written."""
    data = ll.data.load("digits", "test", samples=20, device="cpu")
    given = SimpleNamespace(x=data.x, y=data.y, source=source)
    model = ll.models.mlp(64, hidden=(4,), seed=0)
    weights = ll.weights_of(model)
    line = ll.Line(weights, ll.random_direction(weights), [0.0, 1.0])
    surface = ll.evaluate(model, line, given, store=tmp_path / "line.nc", progress=False)
    assert surface.to_netcdf() and (tmp_path / "line.nc").exists()


def test_threads_take_turns_at_a_store(tmp_path: Path) -> None:  # K12
    model, data = linear(), SimpleNamespace(x=draw(200, 4), y=classes(200))
    expected = ll.evaluate(model, here(model), data, progress=False)
    options: dict[str, Any] = {"store": tmp_path / "s.nc", "progress": False}
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ll.evaluate, model, here(model), data, **options) for _ in range(4)]
    assert all(one.result().loss.equals(expected.loss) for one in asked)
    assert [file.name for file in tmp_path.iterdir()] == ["s.nc"]
