"""The core: loss and metrics, with standard errors, at every point of a slice."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from tqdm import tqdm

from landscape_lib import runtime
from landscape_lib.batches import Batch, check_count, move, read_batches, reads_channels_last
from landscape_lib.fingerprint import Fingerprint, describe_callable, digest, to_json
from landscape_lib.measures import Measure, Measures, mean_and_error
from landscape_lib.slices import Slice
from landscape_lib.surface_store import SurfaceStore
from landscape_lib.weights import Weights, check_like, count, flatten, unflatten, weights_of

METHODS = ("auto", "loop", "vmap")
BATCHNORM = ("frozen",)


def evaluate(
    model: nn.Module,
    slice: Slice,
    data: Any,
    *,
    loss: Measure = F.cross_entropy,
    metrics: Mapping[str, Measure] | None = None,
    batchnorm: str = "frozen",
    dtype: torch.dtype | None = None,
    method: str = "auto",
    samples: int | None = None,
    population: float | None = None,
    batch_size: int = 512,
    chunk_size: int | None = None,
    training: bool = False,
    store: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> xr.Dataset:
    """Evaluate a model's loss and metrics at every point of a slice.

    The model is copied; the caller's model, its mode, gradients and buffers, and the global random
    state stay as they are. It runs in eval mode on the device of its parameters.

    Args:
        model: any module whose named parameters are those of the slice.
        slice: the points: a ``Line``, a ``Plane`` or a ``Slice``.
        data: anything with ``x`` and ``y`` (first dimension: samples), or an iterable of
            ``(x, y)`` batches, read once.
        loss: callable ``(output, target) -> scalar mean``. Losses that take
            ``reduction="none"`` also give standard errors. Weight decay is not part of it.
        metrics: name -> callable ``(output, target)`` giving one value per sample, or a scalar
            mean. ``None`` means accuracy if the targets are class indices.
        batchnorm: ``"frozen"``: the running statistics of ``model`` at every point.
        dtype: compute dtype of weights and inputs, for example ``torch.float64``; the model's own
            by default. Sums over samples are always float64.
        method: ``"loop"`` goes point by point, ``"vmap"`` runs ``chunk_size`` points at once: same
            numbers up to rounding. ``"auto"`` takes ``"vmap"`` where launching small operations
            costs more than the arithmetic (see :func:`choose_method`).
        samples: evaluate a random subset of this size, the same at every point.
        population: the number of samples that the mean stands for, in the standard errors. The
            default is the data set itself, so that evaluating all of it leaves no error;
            ``math.inf`` stands for the distribution that the data were drawn from.
        batch_size: samples per forward pass (ignored if ``data`` comes in batches).
        chunk_size: points per ``vmap`` call; chosen if ``None``.
        training: run in training mode (dropout active, the same masks at every point). Batch norm
            follows ``batchnorm`` all the same.
        store: path of a file to which finished points are written; resumes from it if it exists.
        progress: show a progress bar if it takes longer than two seconds.
        seed: of the subset and of random numbers drawn by the model.

    Returns:
        Dataset with dimensions ``("alpha",)``, ``("alpha", "beta")`` or ``("point",)`` and the
        variables ``loss``, ``loss_se``, one pair per metric, and ``samples``. NaN and inf stay.

    Raises:
        TypeError, ValueError: bad input, named before any work is done.
        StoreMismatch: ``store`` holds another computation; it is left untouched.
    """
    if not isinstance(slice, Slice):
        raise TypeError(f"slice: expected a Line, Plane or Slice, got {_kind(slice)}")
    own = weights_of(model)
    check_like(slice.origin, own, "slice", "the model's parameters")
    _check_choice("batchnorm", batchnorm, BATCHNORM)
    _check_choice("method", method, METHODS)
    check_count("batch_size", batch_size)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    if store is not None and not isinstance(store, (str, os.PathLike)):
        raise TypeError(f"store: expected the path of a file, got {_kind(store)}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")

    started = time.perf_counter()
    device = next(iter(own.values())).device
    with runtime.isolated_random_state(seed):
        batches, total = read_batches(data, samples, batch_size, seed)
        used = sum(batch.size for batch in batches)
        if population is None:
            population = total
        else:
            _check_population(population, used)
        batches = [move(batch, device, dtype or _compute_dtype(own)) for batch in batches]
        points = _Points(model, slice, dtype, training, seed)
        batches = points.lay_out(batches)
        output = points.output_of_model(batches[0])
        measures = Measures(loss, metrics, output, batches[0].y, batches[0].size)
        if method == "auto":
            method = choose_method(model, device, batches[0].size)
        fingerprint = _fingerprint(
            model, slice, batches, loss, metrics, batchnorm, dtype, method, training, seed
        )
        sums = _all_sums(
            points, measures, batches, method, chunk_size, store, fingerprint, progress
        )
    mean, error = mean_and_error(sums, used, population)
    return _dataset(
        slice,
        measures.names,
        mean,
        error,
        used,
        {
            "fingerprint": to_json(fingerprint),
            "batchnorm": batchnorm,
            "dtype": str(dtype or _compute_dtype(own)).removeprefix("torch."),
            "method": method,
            "population": float(population),
            "seconds": round(time.perf_counter() - started, 3),
            "data": getattr(data, "source", type(data).__name__),
            "device": runtime.device_name(device),
            "versions": json.dumps({"torch": torch.__version__, "xarray": xr.__version__}),
        },
    )


def choose_method(model: nn.Module, device: torch.device, batch: int) -> str:
    """Return ``"loop"`` or ``"vmap"`` by a rule that gives the same answer every time.

    On an accelerator a small network is bound by launches, so points are batched. On a CPU
    grouped convolutions and batched matrix products are slower than plain ones, except where a
    forward pass is so small that the interpreter's overhead dominates.

    Args:
        model: its parameters are counted.
        device: where it runs.
        batch: samples per forward pass.
    """
    parameters = sum(p.numel() for p in model.parameters())
    if device.type == "cpu":
        return "vmap" if parameters * batch <= 1_000_000 else "loop"
    return "vmap" if parameters <= 5_000_000 else "loop"


class _Points:
    """A private copy of the model that can be put at any point of a slice."""

    def __init__(
        self, model: nn.Module, slice: Slice, dtype: torch.dtype | None, training: bool, seed: int
    ) -> None:
        self.slice = slice
        self.seed = seed
        self._probe = copy.deepcopy(model).train(training).requires_grad_(False).to(dtype=dtype)
        for module in self._probe.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # "frozen" also in training mode
        parameters = dict(self._probe.named_parameters())
        self.count = count(parameters)
        first = next(iter(parameters.values()))
        # Points are built in at least float32: a step along a direction can be smaller than
        # bfloat16 resolves.
        precise = torch.promote_types(first.dtype, torch.float32)
        self._basis = torch.stack([flatten({n: v[n] for n in parameters}) for v in slice.basis]).to(
            first.device, precise
        )
        # All parameters are views of one flat vector, so that a point is one product.
        self._flat = torch.empty(self.count, dtype=first.dtype, device=first.device)
        for name, view in unflatten(self._flat, parameters).items():
            view.copy_(parameters[name])
            parameters[name].data = view
        self._parameters = parameters

    def lay_out(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches with their images channels-last if the model runs on that."""
        if not reads_channels_last(self._probe, batches[0].x):
            return batches
        return [move(batch, self._flat.device, None, channels_last=True) for batch in batches]

    def output_of_model(self, batch: Batch) -> Any:
        """Return the output at the caller's own weights; ask before any sums."""
        with torch.no_grad():
            return _at_least_float32(self._probe(batch.x))

    def _vectors(self, indices: NDArray[np.int64]) -> Tensor:
        coefficients = self.slice.coefficients(self.slice.coordinates[indices])
        return torch.from_numpy(coefficients).to(self._basis) @ self._basis

    def sums(
        self, indices: NDArray[np.int64], batches: list[Batch], measures: Measures, method: str
    ) -> Tensor:
        """Return the sums at some points, shape (k, measures, 2)."""
        if method == "vmap":
            return self._by_vmap(indices, batches, measures)
        return torch.stack([self._by_loop(i, batches, measures) for i in indices.tolist()])

    def _by_loop(self, index: int, batches: list[Batch], measures: Measures) -> Tensor:
        self._flat.copy_(self._vectors(np.array([index]))[0])
        torch.manual_seed(self.seed)
        parts = [measures.sums(_at_least_float32(self._probe(b.x)), b.y, b.size) for b in batches]
        return torch.stack(parts).sum(0)

    def _by_vmap(
        self, indices: NDArray[np.int64], batches: list[Batch], measures: Measures
    ) -> Tensor:
        vectors = self._vectors(indices).to(self._flat.dtype)
        torch.manual_seed(self.seed)

        def at_point(vector: Tensor, batch: Batch) -> Tensor:
            weights = unflatten(vector, self._parameters)
            output = functional_call(self._probe, weights, (batch.x,))
            return measures.sums(_at_least_float32(output), batch.y, batch.size)

        parts = [
            vmap(lambda vector, b=batch: at_point(vector, b), randomness="same")(vectors)
            for batch in batches
        ]
        return torch.stack(parts).sum(0)

    def describe(self, indices: NDArray[np.int64]) -> str:
        """Name some points for an error message."""
        first = self.slice.coordinates[indices[0]].tolist()
        names = self.slice.dims if len(self.slice.dims) == len(first) else range(len(first))
        place = ", ".join(f"{n}={c:g}" for n, c in zip(names, first, strict=True))
        others = f" or one of the {len(indices) - 1} after it" if len(indices) > 1 else ""
        return f"point {indices[0]} ({place}){others}"


def _all_sums(
    points: _Points,
    measures: Measures,
    batches: list[Batch],
    method: str,
    chunk_size: int | None,
    store: str | os.PathLike[str] | None,
    fingerprint: Fingerprint,
    progress: bool,
) -> NDArray[np.float64]:
    """Return sums of shape (K, measures, 2), chunk by chunk, through the store if there is one."""
    total = len(points.slice)
    names = measures.names
    values = np.full((total, len(names), 2), np.nan)
    pending = np.arange(total)
    kept = None
    if store is not None:
        columns = tuple(f"{n}{power}" for n in names for power in ("", "_squared"))
        kept = SurfaceStore(store, fingerprint, total, columns)
        values = kept.values.reshape(values.shape)
        pending = kept.pending
    if method == "loop":
        chunk_size = 1
    elif chunk_size is None:
        chunk_size = _vmap_chunk(points.count, batches[0].size)
    with (
        tqdm(
            total=total, initial=total - len(pending), unit="point", delay=2, disable=not progress
        ) as bar,
        torch.no_grad(),
        kept or contextlib.nullcontext(),
    ):
        for start in range(0, len(pending), chunk_size):
            indices = pending[start : start + chunk_size]
            try:
                sums = points.sums(indices, batches, measures, method)
            except Exception as error:
                error.add_note(f"landscape_lib.evaluate: at {points.describe(indices)}")
                raise
            values[indices] = sums.cpu().numpy()
            if kept is not None:
                kept.write(indices, values[indices].reshape(len(indices), -1))
            bar.update(len(indices))
    return values


def _vmap_chunk(parameters: int, batch: int) -> int:
    """Choose how many points share a call: 64 MiB of weights, 32,768 forward passes at most."""
    return max(1, min((16 << 20) // parameters, (32 << 10) // batch))


def _at_least_float32(output: Any) -> Any:
    if isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16):
        return output.float()
    return output


def _dataset(
    slice: Slice,
    names: tuple[str, ...],
    mean: NDArray[np.float64],
    error: NDArray[np.float64],
    samples: int,
    attributes: dict[str, Any],
) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for k, name in enumerate(names):
        variables[name] = (slice.dims, mean[:, k].reshape(slice.shape))
        variables[f"{name}_se"] = (slice.dims, error[:, k].reshape(slice.shape))
    variables["samples"] = (slice.dims, np.full(slice.shape, samples))
    coordinates: dict[str, Any] = dict(slice.axes)
    if not coordinates:
        coordinates = {f"c{k}": ("point", c) for k, c in enumerate(slice.coordinates.T)}
    return xr.Dataset(variables, coords=coordinates, attrs=attributes)


def _fingerprint(
    model: nn.Module,
    slice: Slice,
    batches: list[Batch],
    loss: Measure,
    metrics: Mapping[str, Measure] | None,
    batchnorm: str,
    dtype: torch.dtype | None,
    method: str,
    training: bool,
    seed: int,
) -> Fingerprint:
    return {
        "model": digest([repr(model), dict(model.named_buffers())]),
        "slice": digest([list(slice.basis), slice.coefficients(slice.coordinates)]),
        "data": digest([[batch.x, batch.y] for batch in batches]),
        "loss": describe_callable(loss),
        "metrics": digest({n: describe_callable(m) for n, m in (metrics or {}).items()}),
        "batchnorm": batchnorm,
        "dtype": str(dtype),
        "method": method,
        "training": str(training),
        "seed": str(seed),
    }


def _compute_dtype(weights: Weights) -> torch.dtype:
    return next(iter(weights.values())).dtype


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def _check_population(value: Any, used: int) -> None:
    if not isinstance(value, Real) or not float(value) >= used:
        raise ValueError(f"population: expected at least the {used} samples, got {value!r}")


def _kind(value: Any) -> str:
    return type(value).__name__
