"""16 bits on an accelerator: only products lose digits. Here a CPU is made to take that way."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from test_evaluate import make_plane
from torch import nn

import landscape_lib as ll
from landscape_lib.evaluation import precision
from landscape_lib.evaluation.batchnorm import POLICIES, statistics_of

HALF = torch.bfloat16
EPS = torch.finfo(HALF).eps
METHODS = ("loop", "vmap")
OFFERED = [(m, p) for m in METHODS for p in POLICIES if (m, p) != ("vmap", "reestimated")]


@pytest.fixture
def accelerated(monkeypatch):
    """Make the CPU take the way of an accelerator."""
    monkeypatch.setattr(precision, "autocasts", lambda device, dtype: dtype == HALF)


class Linear(nn.Linear):
    """Notes what it returns."""

    seen: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        self.seen.add(y.dtype)
        return y


class Transformer(nn.Module):
    """One block, with token embeddings that are far from zero: 16 bits resolve them to 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        nn.init.normal_(self.embed.weight, mean=100.0)
        self.before, self.after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.ModuleList(Linear(16, 16, bias=False) for _ in range(4))
        self.out = Linear(16, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        normal = self.before(x)
        q, k, v = (layer(normal) for layer in self.attention[:3])
        attended = torch.softmax(q @ k.mT / 4, dim=-1) @ v
        return self.out(self.after(x + self.attention[3](attended)).mean(1))


@pytest.fixture
def transformer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens, y = torch.randint(0, 11, (20, 5)), torch.arange(20) % 3
        return Transformer(), SimpleNamespace(x=tokens, y=y)


def single(name):
    """Return a model in float32, its data, and a plane around it."""
    model, data = CASES[name].build()
    model.float()
    data.x = data.x.float()
    data.y = data.y.float() if data.y.is_floating_point() else data.y
    return model, data, make_plane(model)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float16, True),
        ("cuda", torch.float32, False),
        ("cuda", torch.float64, False),
        ("cuda", None, False),
        ("cpu", torch.bfloat16, False),
        ("cpu", torch.float16, False),
        ("meta", torch.bfloat16, False),  # torch has no autocast for it
    ],
)
def test_only_16_bits_on_an_accelerator_are_autocast(device, dtype, expected):
    assert precision.autocasts(torch.device(device), dtype) is expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float32_up_to_rounding(name, method, accelerated):
    model, data, plane = single(name)
    options = {"loss": CASES[name].loss, "method": method}
    exact = ll.evaluate(model, plane, data, **options)
    half = ll.evaluate(model, plane, data, dtype=HALF, **options)
    np.testing.assert_allclose(half.loss, exact.loss, rtol=5e-2)
    # torch applies autocast below the rules of vmap: which products are cast differs.
    other = ll.evaluate(model, plane, data, dtype=HALF, **options | {"method": "loop"})
    np.testing.assert_allclose(half.loss, other.loss, rtol=5e-2)
    assert (exact.attrs["dtype"], half.attrs["dtype"]) == ("float32", "bfloat16 by autocast")


@pytest.mark.parametrize(("method", "policy"), OFFERED)
def test_every_policy_of_batch_norm(method, policy, accelerated):
    model, data, plane = single("cnn with batch norm")
    statistics = [statistics_of(model)] * 3 if policy == "interpolated" else None
    options = {"batchnorm": policy, "method": method, "statistics": statistics, "batch_size": 10}
    exact = ll.evaluate(model, plane, data, **options)
    half = ll.evaluate(model, plane, data, dtype=HALF, **options)
    np.testing.assert_allclose(half.loss, exact.loss, rtol=5e-2)
    if method == "loop":  # products did lose digits
        assert (abs(half.loss / exact.loss - 1) > EPS / 100).any()


@pytest.fixture
def seen(monkeypatch):
    """The dtypes that normalisation and softmax compute in, and those of what products return."""
    found = {"normalised": set(), "multiplied": set()}

    class Noting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func in precision._IN_FLOAT32:
                tensors = (t for t in (*args, result) if isinstance(t, torch.Tensor))
                found["normalised"] |= {t.dtype for t in tensors}
            return result

    class Inner(precision._NormalisesInFloat32):
        def __enter__(self):
            self.noting = Noting().__enter__()  # below: it sees what is handed on
            return super().__enter__()

        def __exit__(self, *exception):
            super().__exit__(*exception)
            self.noting.__exit__(*exception)

    monkeypatch.setattr(precision, "_NormalisesInFloat32", Inner)
    monkeypatch.setattr(Linear, "seen", found["multiplied"])
    return found


@pytest.mark.parametrize("method", METHODS)
def test_normalisation_and_softmax_are_float32_and_products_are_not(
    method, transformer, accelerated, seen, monkeypatch
):
    model, data = transformer
    line = ll.Line(ll.weights_of(model), ll.weights_of(model), [0.0, 0.01, 0.02])
    exact = ll.evaluate(model, line, data, method=method)
    for dtypes in seen.values():
        dtypes.clear()
    half = ll.evaluate(model, line, data, method=method, dtype=HALF)
    assert seen == {"normalised": {torch.float32}, "multiplied": {HALF}}
    error = float(abs(half.loss - exact.loss).max())
    assert 0 < error < EPS
    monkeypatch.undo()  # all in 16 bits, as on a CPU
    cast = ll.evaluate(model, line, data, method=method, dtype=HALF)
    assert cast.attrs["dtype"] == "bfloat16"
    assert float(abs(cast.loss - exact.loss).max()) > 5 * error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_are_float32_whatever_the_model_is(dtype, accelerated, transformer, seen):
    # Autocast leaves float64 as it is, and 16 bits do not resolve small steps.
    model, data = transformer
    model.to(dtype)
    line = ll.Line(ll.weights_of(model), ll.weights_of(model), [0.0, 1e-4])
    got = ll.evaluate(model, line, data, dtype=HALF)
    assert seen == {"normalised": {torch.float32}, "multiplied": {HALF}}
    assert got.loss[0] != got.loss[1]


NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm without a scale": lambda: nn.BatchNorm2d(4, affine=False),
    "batch norm of each batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm(5),
    "rms norm": lambda: nn.RMSNorm(5),
    "softmax": lambda: nn.Softmax(dim=1),
    "log softmax": lambda: nn.LogSoftmax(dim=1),
    "prelu": nn.PReLU,
}


@pytest.mark.parametrize("name", NORMS)
def test_activations_of_16_bits_are_normalised_in_float32(name):
    # Convolutions return them on a GPU; a CPU's autocast under vmap does not cast convolutions.
    layer = NORMS[name]().eval().requires_grad_(False)
    x = torch.randn(3, 6, 4, 5, 5, generator=torch.Generator().manual_seed(0)).to(HALF)
    scales = torch.tensor([1.0, 2.0, 3.0])

    def at_point(scale, x):
        weights = {n: t * scale for n, t in layer.named_parameters()}
        with precision.autocast(torch.device("cpu"), HALF):
            return torch.func.functional_call(layer, weights, (x,))

    expected = []
    for scale, part in zip(scales, x, strict=True):
        weights = {n: t * scale for n, t in layer.named_parameters()}
        expected.append(torch.func.functional_call(layer, weights, (part.float(),)))
    one_by_one = torch.stack([at_point(scale, part) for scale, part in zip(scales, x, strict=True)])
    together = torch.func.vmap(at_point)(scales, x)
    room = EPS if name == "prelu" else 1e-5  # autocast counts it among the products
    for got in (one_by_one, together):
        torch.testing.assert_close(
            got, torch.stack(expected), rtol=room, atol=room, check_dtype=False
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outer", [False, True])
def test_no_point_has_the_weights_of_another(method, outer, accelerated):
    # Autocast keeps casts of parameters to use them again, for as long as its outermost block.
    model, data, plane = single("mlp")
    options = {"dtype": HALF, "method": method, "batch_size": 5, "chunk_size": 1}
    alone = [
        ll.evaluate(model, plane, data, points=[k], **options).loss.values.ravel()[k]
        for k in range(6)
    ]
    assert len(set(alone)) == 6
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        model(data.x)
        together = ll.evaluate(model, plane, data, **options)
    if not outer:
        assert together.loss.values.ravel().tolist() == alone
    # The caller's autocast reaches what surrounds the forward pass; stale weights would show.
    np.testing.assert_allclose(together.loss.values.ravel(), alone, rtol=5e-2)
    assert len(np.unique(together.loss)) == 6


@pytest.mark.parametrize("method", METHODS)
def test_the_callers_autocast_is_left_alone(method, accelerated):
    model, data, plane = single("mlp")

    def state():
        enabled = torch.is_autocast_enabled("cpu")
        return enabled, torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

    before = state()
    ll.evaluate(model, plane, data, dtype=HALF, method=method)
    assert state() == before
    with torch.autocast("cpu", torch.float16):
        within = state()
        ll.evaluate(model, plane, data, dtype=HALF, method=method)
        assert state() == within != before

    def fails(output, target, reduction="mean"):
        assert not torch.is_autocast_enabled("cpu")  # the loss is outside
        if output.shape[0] != 5:
            raise ArithmeticError("no loss here")
        return F.cross_entropy(output, target, reduction=reduction)

    with pytest.raises(ArithmeticError):
        ll.evaluate(model, plane, data, dtype=HALF, method=method, loss=fails)
    assert state() == before


def test_first_layer_workers_and_reference(accelerated, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(81, 8), nn.ReLU(), nn.Linear(8, 3))
        data = SimpleNamespace(x=torch.randn(23, 9, 9), y=torch.arange(23) % 3)
    plane = make_plane(model)
    options = {"reference": plane.weights_at(1.0, 0.25), "batch_size": 10}
    exact = ll.evaluate(model, plane, data, **options)
    alone = ll.evaluate(model, plane, data, dtype=HALF, **options)
    with ThreadPoolExecutor(2) as executor:  # autocast is a state of a thread
        spread = ll.evaluate(model, plane, data, dtype=HALF, executor=executor, **options)
    for half in (alone, spread):
        np.testing.assert_allclose(half.loss, exact.loss, rtol=2e-2)
        np.testing.assert_allclose(half.loss_difference, exact.loss_difference, atol=2e-2)
    np.testing.assert_allclose(alone.loss, spread.loss, rtol=1e-6)


def test_a_store_says_how_it_was_computed(tmp_path, monkeypatch):
    model, data, plane = single("mlp")
    options = {"dtype": HALF, "store": tmp_path / "surface.nc"}
    ll.evaluate(model, plane, data, **options)
    monkeypatch.setattr(precision, "autocasts", lambda device, dtype: True)
    with pytest.raises(ll.StoreMismatch, match="dtype differ"):
        ll.evaluate(model, plane, data, **options)


@pytest.fixture
def rounded_products():
    """Let a CPU round the factors of float32 products to bfloat16, if it can."""
    with precision.multiply_as({"cpu": ("bf16", "bf16")}):
        yield


def rounds(output, target):
    """Say of every sample whether its products were rounded."""
    return torch.full((len(target),), float("bf16" in precision.float32_products(output.device)))


def test_the_callers_choice_of_products_holds_on_workers_and_is_said(rounded_products):
    model, data, plane = single("mlp")
    options = {"method": "loop", "metrics": {"rounds": rounds}}
    here = ll.evaluate(model, plane, data, **options)
    assert here.attrs["float32_products"] == "conv bf16, matmul bf16"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        there = ll.evaluate(model, plane, data, executor=processes, **options)
        with precision.multiply_as(precision.EXACT):
            exact = ll.evaluate(model, plane, data, executor=processes, **options)
    np.testing.assert_allclose(there.loss, here.loss, rtol=1e-6)
    assert (there["rounds"] == 1).all() and (exact["rounds"] == 0).all()
    assert exact.attrs["float32_products"] == "conv ieee, matmul ieee"
    assert "float32_products" not in ll.evaluate(model, plane, data, dtype=torch.float64).attrs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu(method, transformer):
    model, data = transformer
    line = ll.Line(ll.weights_of(model), ll.weights_of(model), [0.0, 0.01, 0.02])
    exact = ll.evaluate(model, line, data)
    weights = ll.weights_of(model.cuda())
    line = ll.Line(weights, weights, [0.0, 0.01, 0.02])
    half = ll.evaluate(model, line, data, method=method, dtype=HALF)
    assert half.attrs["dtype"] == "bfloat16 by autocast"
    assert float(abs(half.loss - exact.loss).max()) < 2 * EPS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("method", "policy"), OFFERED)
def test_every_policy_of_batch_norm_on_a_gpu(method, policy):
    model, data, plane = single("cnn with batch norm")
    statistics = [statistics_of(model)] * 3 if policy == "interpolated" else None
    options = {"batchnorm": policy, "statistics": statistics, "batch_size": 10}
    exact = ll.evaluate(model, plane, data, **options)
    half = ll.evaluate(model.cuda(), plane, data, method=method, dtype=HALF, **options)
    np.testing.assert_allclose(half.loss, exact.loss, rtol=5e-2)
