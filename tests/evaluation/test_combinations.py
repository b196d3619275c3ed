"""What must always hold (DESIGN section 3), for every combination of settings that is offered."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from cases import Case
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation.batchnorm import POLICIES, statistics_of

# The largest relative error, against float64 without the library.
ROOM = {"float64": 1e-10, "float32": 1e-6, "bfloat16": 1e-2}
ALPHAS = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
CHUNK = 2  # points per vmap call: the last one has fewer
BATCH = 10  # 23 samples: the last batch has fewer
CALIBRATION = 16
SEED = 5

# Lines between models are looked at for what they are here.
pytestmark = pytest.mark.filterwarnings("ignore:batchnorm='frozen'")


DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


class Combination(NamedTuple):
    method: str
    policy: str
    dtype: str
    executor: str
    device: str


TABLE = [
    Combination(*settings)
    for settings in itertools.product(
        ("loop", "vmap"), POLICIES, ROOM, ("none", "threads", "processes"), DEVICES
    )
    if settings[:2] != ("vmap", "reestimated")  # it is not offered
]
every = pytest.mark.parametrize("combination", TABLE, ids="-".join)
# An executor only runs chunks of points: a store is opened before it is asked for anything, and
# what it hands back is compared with brute force. These properties it cannot change.
without_executor = pytest.mark.parametrize(
    "combination", [c for c in TABLE if c.executor == "none"], ids="-".join
)

# Batch norm right behind a convolution, and behind ReLU.
NET = Case(
    lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(36, 3),
    ),
    (2, 6, 6),
    3,
)


class Scene:
    """A model, its data, and a line on which the first output is alpha: points know their place."""

    def __init__(self, device: str = "cpu") -> None:
        self.model, self.data = NET.build()
        self.model.to(device)
        generator = torch.Generator().manual_seed(0)
        weights = ll.weights_of(self.model)
        direction = ll.random_direction(weights, ignore_1d=False, generator=generator)
        for vector, alpha in ((weights, 0.0), (direction, 1.0)):
            vector["9.weight"][0], vector["9.bias"][0] = 0.0, alpha
        ll.load_weights(self.model, weights)
        self.line = ll.Line(weights, direction, ALPHAS)
        own = statistics_of(self.model)
        self.statistics = [own, {name: tensor / 2 for name, tensor in own.items()}]

    def evaluate(self, combination, executors, **options):
        method, policy, dtype, executor, _ = combination
        settings = {
            "method": method,
            "batchnorm": policy,
            "statistics": self.statistics if policy == "interpolated" else None,
            "calibration_samples": CALIBRATION,
            "dtype": getattr(torch, dtype),
            "executor": executors[executor],
            "chunk_size": CHUNK,
            "batch_size": BATCH,
            "population": np.inf,
            "seed": SEED,
        }
        return ll.evaluate(self.model, self.line, self.data, **settings | options)

    def belongings(self):
        """Return copies of all tensors of the caller's, and the modes of the model."""
        tensors = [*self.model.state_dict().values(), self.data.x, self.data.y]
        tensors += [p.grad for p in self.model.parameters() if p.grad is not None]
        for vector in (*self.line.basis, *self.statistics):
            tensors += vector.values()
        modes = [module.training for module in self.model.modules()]
        trained = [parameter.requires_grad for parameter in self.model.parameters()]
        random = (torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)))
        if torch.cuda.is_available():
            random = (*random, torch.cuda.get_rng_state())
        return [tensor.clone() for tensor in (*tensors, *random)], modes, trained


def brute_force(model, data, policy, training=False):
    """Return the loss of each sample at the weights of a model, by the words of the docstring."""
    model = copy.deepcopy(model).train(training)
    x, y = (side.to(next(model.parameters()).device) for side in (data.x, data.y))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        if policy == "reestimated":
            measure(model, norms, x)
        for norm in norms:
            norm.train(policy == "batch")
        batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
        losses = [F.cross_entropy(model(x), y, reduction="none") for x, y in batches]
        return torch.cat(losses).cpu()


def measure(model, norms, x):
    """Set running statistics to averages over the batches of the calibration subset."""
    subset = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))[:CALIBRATION]
    subset = subset.sort().values.to(x.device)
    seen = {norm: [] for norm in norms}
    hooks = [n.register_forward_pre_hook(lambda n, args: seen[n].append(args[0])) for n in norms]
    for norm in norms:
        norm.train()
    for batch in x[subset].split(BATCH):
        model(batch)
    for norm, hook in zip(norms, hooks, strict=True):
        hook.remove()
        norm.running_mean = torch.stack([b.mean((0, 2, 3)) for b in seen[norm]]).mean(0)
        norm.running_var = torch.stack([b.var((0, 2, 3)) for b in seen[norm]]).mean(0)


def load_statistics(model, statistics):
    model.load_state_dict(statistics, strict=False)


@cache
def expected(policy, training, device):
    """Return losses and their standard errors along the line, by brute force."""
    scene = Scene(device)
    values = []
    for alpha in ALPHAS:
        moved = copy.deepcopy(scene.model)
        ll.load_weights(moved, scene.line.weights_at(alpha))
        if policy == "interpolated":
            own, along = scene.statistics
            load_statistics(moved, {name: own[name] + alpha * along[name] for name in own})
        values.append(brute_force(moved, scene.data, policy, training).numpy())
    return np.mean(values, 1), np.std(values, 1, ddof=1) / np.sqrt(23)


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    """Let no convolution of a GPU round its inputs to TF32."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture(scope="module")
def executors(exact_products):
    spawn = multiprocessing.get_context("spawn")
    # One thread: what goes wrong with two is at the end of this file.
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, mp_context=spawn) as processes:
        yield {"none": None, "threads": threads, "processes": processes}


@pytest.fixture(scope="module")
def run(executors):
    """Evaluate without a store, once; return the result and the caller's things around it."""

    @cache
    def run(combination, training):
        scene = Scene(combination.device)
        x, y = scene.data.x.to(combination.device), scene.data.y.to(combination.device)
        F.cross_entropy(scene.model.eval()(x), y).backward()
        scene.model.train()
        scene.model[4].requires_grad_(False)
        before = scene.belongings()
        result = scene.evaluate(combination, executors, training=training)
        return result, before, scene.belongings()

    return run


@pytest.fixture(scope="module")
def stored(executors, tmp_path_factory):
    """Return the bytes of a store."""

    @cache
    def stored(combination):
        path = tmp_path_factory.mktemp("stored") / "surface.nc"
        Scene(combination.device).evaluate(combination, executors, store=path)
        return path.read_bytes()

    return stored


def assert_same_bits(first, second):
    assert list(first.data_vars) == list(second.data_vars)
    for name in first.data_vars:
        assert first[name].values.tobytes() == second[name].values.tobytes(), name


def draws_the_masks_of_float64(combination):
    """On a GPU dropout's masks depend on how many numbers a thread draws."""
    return combination.device == "cpu" or combination[:3:2] == ("loop", "float64")


@every
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_agrees_with_brute_force(combination, training, run):
    got = run(combination, training)[0]
    if training and not draws_the_masks_of_float64(combination):
        return
    loss, error = expected(combination.policy, training, combination.device)
    room = ROOM[combination.dtype]
    np.testing.assert_allclose(got.loss, loss, rtol=room)
    np.testing.assert_allclose(got.loss_se, error, rtol=3 * room)
    for finer in ROOM.values():
        assert finer >= room or not np.allclose(got.loss, loss, rtol=finer, atol=0)


@every
def test_origin_is_the_models_own_loss(combination, run):
    scene = Scene(combination.device)
    own = brute_force(scene.model, scene.data, combination.policy).mean()
    got = run(combination, False)[0].loss.sel(alpha=0)
    assert float(got) == pytest.approx(float(own), rel=ROOM[combination.dtype])


@without_executor
def test_ends_of_a_line_between_models_are_their_losses(combination, executors):
    scene = Scene(combination.device)
    first, second = scene.model, copy.deepcopy(scene.model)
    ll.load_weights(second, scene.line.weights_at(1.0))
    if combination.policy == "interpolated":  # "frozen" keeps the statistics of the first
        load_statistics(second, scene.statistics[1])
        scene.statistics = [statistics_of(first), statistics_of(second)]
    scene.line = ll.Line.between(ll.weights_of(first), ll.weights_of(second), [0.0, 0.5, 1.0])
    got = scene.evaluate(combination, executors).loss
    for alpha, model in ((0, first), (1, second)):
        own = float(brute_force(model, scene.data, combination.policy).mean())
        assert float(got.sel(alpha=alpha)) == pytest.approx(own, rel=ROOM[combination.dtype])


@without_executor
def test_the_same_masks_at_every_point(combination, executors):
    scene = Scene(combination.device)
    scene.line = ll.Slice(scene.line.origin, scene.line.directions, np.full((5, 1), 0.5))
    got = scene.evaluate(combination, executors, training=True, batch_size=23).loss.values
    np.testing.assert_allclose(got, got[0], rtol=ROOM[combination.dtype])


def logarithm(output, target):
    return output[:, 0].log()


def minus_logarithm(output, target, reduction="mean"):
    values = target - output[:, 0].log()
    return values.mean() if reduction == "mean" else values


@without_executor
def test_not_finite_stays_not_finite(combination, executors, tmp_path):
    options = {"loss": minus_logarithm, "metrics": {"log": logarithm}, "store": tmp_path / "s.nc"}
    got = Scene(combination.device).evaluate(combination, executors, **options)
    with np.errstate(all="ignore"):
        values = np.log(ALPHAS)  # NaN, -inf, and finite
    np.testing.assert_allclose(got["log"], values, rtol=1e-6)
    targets = Scene(combination.device).data.y.double()
    np.testing.assert_allclose(got.loss, float(targets.mean()) - values, rtol=1e-6)
    assert np.isnan(got.loss_se[:2]).all()
    np.testing.assert_allclose(got.loss_se[2:], float(targets.std()) / np.sqrt(23), rtol=1e-6)
    assert_same_bits(
        Scene(combination.device).evaluate(combination, executors, **options), got
    )  # out of the store


@every
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_leaves_the_caller_alone(combination, training, run):
    _, (tensors, *modes), (tensors_after, *modes_after) = run(combination, training)
    assert modes_after == modes
    assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_after, strict=True))


@without_executor  # with one the next test shows it, which computes every point anew
def test_same_seed_same_bits(combination, executors, run):
    again = Scene(combination.device).evaluate(combination, executors, training=True)
    assert_same_bits(again, run(combination, True)[0])
    other = Scene(combination.device).evaluate(combination, executors, training=True, seed=SEED + 1)
    assert (abs(other.loss - again.loss) > 1e-3).all()


class Failing:
    """Cross-entropy that fails at one point as long as a file exists."""

    def __init__(self, alpha: float, marker: Path) -> None:
        self.alpha = alpha
        self.marker = str(marker)

    def __call__(self, output, target, reduction="mean"):
        place = torch.func.debug_unwrap(output[:, 0])  # at all points of a vmap call
        if (place == self.alpha).any() and Path(self.marker).exists():
            raise ArithmeticError("no loss here")
        return F.cross_entropy(output, target, reduction=reduction)


@every
def test_a_failing_point_is_named_and_the_rest_resumes_to_the_same_bits(
    combination, executors, run, tmp_path
):
    marker, store = tmp_path / "marker", tmp_path / "surface.nc"
    options = {"loss": Failing(1.0, marker), "store": store, "training": True}
    marker.touch()
    with pytest.raises(ArithmeticError, match="no loss here") as caught:
        Scene(combination.device).evaluate(combination, executors, **options)
    assert caught.value.__notes__ == ["landscape_lib.evaluate: at point 3 (alpha=1)"]
    if combination.executor == "none":
        chunk = CHUNK if combination.method == "vmap" else 1
        # A GPU's loop is given all points before it fails.
        if combination.device == "cpu" or combination.method == "vmap":
            with xr.open_dataset(store, engine="h5netcdf") as kept:
                points = 3 - 3 % chunk
                assert kept.done.values.tolist() == [1] * points + [0] * (5 - points)
    else:  # a thread may still be at the next point, drawing from the stream of all
        executors[combination.executor].submit(int).result()
    marker.unlink()
    resumed = Scene(combination.device).evaluate(combination, executors, **options)
    assert_same_bits(resumed, run(combination, True)[0])


@without_executor
def test_a_foreign_store_is_refused_and_untouched(combination, executors, stored, tmp_path):
    store = tmp_path / "surface.nc"
    store.write_bytes(stored(combination))
    foreign = {}
    for other in TABLE:
        changed = [a != b for a, b in zip(combination, other, strict=True)]
        alike = (other.executor, other.device) == (combination.executor, combination.device)
        if changed.count(True) == 1 and alike:
            foreign[("method", "batchnorm", "dtype")[changed.index(True)]] = other
    for part, other in foreign.items():
        with pytest.raises(ll.StoreMismatch, match=rf"computation: .*\b{part}\b.* differ"):
            Scene(other.device).evaluate(other, executors, store=store)
    with pytest.raises(ll.StoreMismatch, match=r"computation: .*\bseed differ"):
        Scene(combination.device).evaluate(combination, executors, store=store, seed=SEED + 1)
    assert store.read_bytes() == stored(combination) and list(tmp_path.iterdir()) == [store]


@without_executor
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf's own
def test_a_corrupt_store_is_refused_and_untouched(combination, executors, stored, tmp_path):
    store, whole = tmp_path / "surface.nc", stored(combination)
    noise = np.random.default_rng(0).bytes(len(whole))
    for corrupt in (b"", whole[: len(whole) // 2], noise):
        store.write_bytes(corrupt)
        with pytest.raises(ll.StoreMismatch, match="cannot be read"):
            Scene(combination.device).evaluate(combination, executors, store=store)
        assert store.read_bytes() == corrupt and list(tmp_path.iterdir()) == [store]


def test_a_store_with_one_changed_value_is_refused(executors, stored, tmp_path):
    store, whole = tmp_path / "surface.nc", stored(TABLE[0])
    store.write_bytes(whole)
    with xr.open_dataset(store, engine="h5netcdf") as kept:
        value = kept["values"].values[0, 1].tobytes()
    assert whole.count(value) == 1
    store.write_bytes(whole.replace(value, value[:-2] + bytes([value[-2] ^ 1]) + value[-1:]))
    with pytest.raises(ll.StoreMismatch):
        Scene().evaluate(TABLE[0], executors, store=store)


class Odd(Exception):
    """It can be pickled, but not unpickled, like many that take more than a message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)


def odd(output, target, reduction="mean"):
    if multiprocessing.parent_process() is not None:
        raise Odd(1, "no loss here")
    return F.cross_entropy(output, target, reduction=reduction)


def test_an_error_that_cannot_travel_names_its_point():
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        with pytest.raises(Exception, match="no loss here") as caught:
            Scene().evaluate(TABLE[0], {"none": processes}, loss=odd, points=[0])
    assert "point 0 (alpha=-1)" in caught.value.__notes__[0]


def between_scales(model):
    """Return a line from a model to twice its weights."""
    weights = ll.weights_of(model)
    return ll.Line.between(weights, {name: 2 * t for name, t in weights.items()}, [0.0, 1.0])


def test_loop_and_vmap_draw_the_same_masks_on_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(64, 3)).double()
    data = SimpleNamespace(x=torch.randn(23, 2, 6, 6).double(), y=torch.arange(23) % 3)
    loop, vmap = (
        ll.evaluate(model, between_scales(model), data, training=True, method=method)
        for method in ("loop", "vmap")
    )
    np.testing.assert_allclose(loop.loss, vmap.loss, rtol=1e-10)


class Meeting(nn.Module):
    """Two threads, each at its own point, wait here for each other; alone nobody waits."""

    barrier: threading.Barrier
    then: Callable[[int | None, object], object]

    def forward(self, x):
        if threading.current_thread() is not threading.main_thread():
            try:
                turn = self.barrier.wait(timeout=0.5)
            except threading.BrokenBarrierError:  # the other one is kept from coming here
                self.barrier.reset()
                turn = None
            type(self).then(turn, x)
        return x


@pytest.fixture
def meeting(monkeypatch):
    """Run a model in training mode in which two threads meet before dropout, and see."""
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(64, 3)
    model = nn.Sequential(Meeting(), *layers).double()
    data = SimpleNamespace(x=torch.randn(23, 2, 6, 6).double(), y=torch.arange(23) % 3)

    def evaluate(executor, then, **options):
        monkeypatch.setattr(Meeting, "barrier", threading.Barrier(2), raising=False)
        monkeypatch.setattr(Meeting, "then", then, raising=False)
        return ll.evaluate(
            model, between_scales(model), data, training=True, executor=executor, **options
        )

    return evaluate


# With "batch" nothing is traced.
def test_threads_draw_the_same_masks_at_every_point(meeting):
    alone = meeting(None, None, batchnorm="batch", method="loop")
    with ThreadPoolExecutor(2) as executor:
        threads = meeting(executor, lambda turn, x: None, batchnorm="batch", method="loop")
    assert_same_bits(threads, alone)


def test_failing_threads_leave_the_callers_random_state_alone(meeting):
    known = threading.Event()

    def part(turn, x):
        if turn != 1:
            raise ArithmeticError("no loss here")
        known.wait(timeout=0.5)

    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(ArithmeticError):
            meeting(executor, part, batchnorm="batch", method="loop")
        known.set()
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_do_not_trace_while_others_trace_or_run(meeting, monkeypatch):
    for name in ("__call__", "__getattr__"):  # else they can stay broken for all tests to come
        monkeypatch.setattr(nn.Module, name, getattr(nn.Module, name))
    traced = []

    def note(turn, x):
        traced.append(turn is not None and isinstance(x, torch.fx.Proxy))

    with ThreadPoolExecutor(2) as executor:
        meeting(executor, note, batchnorm="frozen", method="loop")
    assert not any(traced)
