"""Users' mistakes: each is an error that names the argument, what was given and what is expected.

DESIGN section 3: a clear error before any work, and the caller's model and random state untouched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

import landscape_lib as ll
from landscape_lib.runtime import generator

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    MODEL = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    OTHER = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    DATA = SimpleNamespace(x=torch.randn(10, 6).double(), y=torch.arange(10) % 3)
W = ll.weights_of(MODEL)
D, D2 = ll.random_directions(W, 2, generator=generator(0))
LINE = ll.Line(W, D, [-1.0, 0.0, 1.0])
PLANE = ll.Plane(W, (D, D2), [0.0, 1.0], [0.0, 0.5])
NAN_WEIGHTS = W | {"0.bias": torch.full((4,), math.nan, dtype=torch.float64)}
ZERO = ll.weights.scale(W, 0.0)
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)
DIGITS = ll.data.load("digits", "test", device="cpu")
SURFACE = xr.Dataset(
    {"loss": (("alpha", "beta"), np.ones((2, 2)))}, {"alpha": [0, 1], "beta": [0, 1]}
)


def evaluate(*arguments: object, **settings: object) -> object:
    return ll.evaluate(*(arguments or (MODEL, LINE, DATA)), **settings)


def train(*arguments: object, **settings: object) -> object:
    return ll.train(*(arguments or (MODEL, DATA, OPTIMIZER)), **({"epochs": 1} | settings))


def used_up() -> object:
    batches = ((DATA.x[i : i + 5], DATA.y[i : i + 5]) for i in (0, 5))
    list(batches)
    return batches


def other_schedule() -> object:
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(OTHER.parameters(), lr=0.1), 3)


def of(x: object, y: object) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y)


Case = tuple[Callable[[], object], type[Exception], str]

CASES: dict[str, Case] = {
    # --- weights
    "weights of no module": (
        lambda: ll.weights_of(W),
        TypeError,
        "model: expected a torch.nn.Module, got dict",
    ),
    "weights of a model without any": (
        lambda: ll.weights_of(nn.ReLU()),
        ValueError,
        "model: ReLU has no parameters",
    ),
    "load: arguments swapped": (
        lambda: ll.load_weights(W, MODEL),
        TypeError,
        "model: expected a torch.nn.Module, got dict",
    ),
    "load: a model instead of weights": (
        lambda: ll.load_weights(MODEL, MODEL),
        TypeError,
        "weights: expected a dict of tensors .* got Sequential",
    ),
    "load: another architecture": (
        lambda: ll.load_weights(MODEL, ll.weights_of(OTHER)),
        ValueError,
        r"weights: '0.weight' has shape \(5, 6\), expected \(4, 6\)",
    ),
    "combine: counts differ": (
        lambda: ll.weights.combine((W, D), (1.0,)),
        ValueError,
        "coefficients: expected one for each .* got 1 for 2",
    ),
    "combine: nothing": (
        lambda: ll.weights.combine((), ()),
        ValueError,
        "coefficients: .* at least one vector, got 0 for 0",
    ),
    # --- slices
    "line: a model instead of weights": (
        lambda: ll.Line(MODEL, D, [0.0]),
        TypeError,
        r"origin: expected a dict of tensors as from weights_of\(model\), got Sequential",
    ),
    "line: direction and alphas swapped": (
        lambda: ll.Line(W, [0.0, 1.0], D),
        TypeError,
        "alphas: expected an array of numbers, got dict",
    ),
    "line: names of another model": (
        lambda: ll.Line(W, {"2.weight": W["2.weight"]}, [0.0]),
        ValueError,
        r"directions\[0\]: names differ from origin: missing \['0.weight', '0.bias', '2.bias'\]",
    ),
    "line: shapes of another model": (
        lambda: ll.Line(W, ll.weights_of(OTHER), [0.0]),
        ValueError,
        r"directions\[0\]: '0.weight' has shape \(5, 6\), expected \(4, 6\) as in origin",
    ),
    "line: a direction of zero": (
        lambda: ll.Line(W, ZERO, [0.0]),
        ValueError,
        r"directions\[0\]: is zero everywhere",
    ),
    "line: a direction with NaN": (
        lambda: ll.Line(W, NAN_WEIGHTS, [0.0]),
        ValueError,
        r"directions\[0\]: expected finite entries, '0.bias' has NaN",
    ),
    "line: an origin with NaN": (
        lambda: ll.Line(NAN_WEIGHTS, D, [0.0]),
        ValueError,
        "origin: expected finite entries, '0.bias' has NaN",
    ),
    "line: no weights at all": (lambda: ll.Line({}, {}, [0.0]), ValueError, "origin: has no ten"),
    "line: no alphas": (
        lambda: ll.Line(W, D, []),
        ValueError,
        "alphas: expected at least one number, got an empty array",
    ),
    "line: a count instead of alphas": (
        lambda: ll.Line(W, D, 51),
        ValueError,
        r"alphas: expected a one-dimensional array, got shape \(\)",
    ),
    "line: alphas with inf": (
        lambda: ll.Line(W, D, [0.0, math.inf]),
        ValueError,
        "alphas: expected finite numbers, got inf",
    ),
    "line: alphas repeated": (
        lambda: ll.Line(W, D, [0.0, 0.5, 0.5]),
        ValueError,
        "alphas: expected distinct numbers, got 0.5 repeated",
    ),
    "line: alphas of text": (
        lambda: ll.Line(W, D, ["a"]),
        TypeError,
        "alphas: expected an array of numbers, got list",
    ),
    "between: models instead of weights": (
        lambda: ll.Line.between(MODEL, OTHER, [0.0]),
        TypeError,
        "start: expected a dict of tensors .* got Sequential",
    ),
    "between: equal ends": (
        lambda: ll.Line.between(W, ll.weights_of(MODEL), [0.0]),
        ValueError,
        "end: equals start",
    ),
    "between: two architectures": (
        lambda: ll.Line.between(W, ll.weights_of(OTHER), [0.0]),
        ValueError,
        r"end: '0.weight' has shape \(5, 6\), expected \(4, 6\) as in start",
    ),
    "between: a diverged end": (
        lambda: ll.Line.between(W, NAN_WEIGHTS, [0.0]),
        ValueError,
        "end: expected finite entries, '0.bias' has NaN",
    ),
    "plane: one direction": (
        lambda: ll.Plane(W, (D,), [0.0], [0.0]),
        ValueError,
        "directions: a plane needs a sequence of exactly 2, got 1",
    ),
    "plane: a direction instead of two": (
        lambda: ll.Plane(W, D, [0.0], [0.0]),
        ValueError,
        "directions: a plane needs a sequence of exactly 2, got one weight vector",
    ),
    "plane: parallel directions": (
        lambda: ll.Plane(W, (D, ll.weights.scale(D, -3.0)), [0.0], [0.0]),
        ValueError,
        "directions: the two are parallel",
    ),
    "plane: betas with NaN": (
        lambda: ll.Plane(W, (D, D2), [0.0], [math.nan]),
        ValueError,
        "betas: expected finite numbers, got nan",
    ),
    "slice: no directions": (
        lambda: ll.Slice(W, [], np.zeros((1, 0))),
        ValueError,
        "directions: expected a sequence of at least one weight vector, got 0",
    ),
    "slice: a single direction": (
        lambda: ll.Slice(W, D, [[0.0]]),
        ValueError,
        "directions: expected a sequence of at least one weight vector, got one weight vector",
    ),
    "slice: coordinates of another dimension": (
        lambda: ll.Slice(W, [D, D2], [[0.0], [1.0]]),
        ValueError,
        r"coordinates: expected shape \(K, 2\) for 2 direction\(s\), got \(2, 1\)",
    ),
    "slice: no points": (
        lambda: ll.Slice(W, [D], np.zeros((0, 1))),
        ValueError,
        "coordinates: expected at least one point, got none",
    ),
    "weights_at: too few coordinates": (
        lambda: PLANE.weights_at(0.5),
        ValueError,
        r"coordinates: expected 2 number\(s\), one for each direction, got 1",
    ),
    "weights_at: not finite": (
        lambda: LINE.weights_at(math.nan),
        ValueError,
        "coordinates: expected finite numbers, got nan",
    ),
    # --- directions
    "direction: a model instead of weights": (
        lambda: ll.random_direction(MODEL),
        TypeError,
        "weights: expected a dict of tensors .* got Sequential",
    ),
    "direction: unknown normalisation": (
        lambda: ll.random_direction(W, normalize="filters"),
        ValueError,
        "normalize: expected one of .*'filter', 'layer', None.* got 'filters'",
    ),
    "direction: a seed instead of a generator": (
        lambda: ll.random_direction(W, generator=0),
        TypeError,
        "generator: expected a torch.Generator, got int",
    ),
    "direction: biases alone": (
        lambda: ll.random_direction({"bias": torch.ones(3)}),
        ValueError,
        "ignore_1d: .* pass ignore_1d=False",
    ),
    "direction: weights with NaN": (
        lambda: ll.random_direction(NAN_WEIGHTS),
        ValueError,
        "weights: expected finite entries, '0.bias' has NaN",
    ),
    "directions: none": (
        lambda: ll.random_directions(W, 0),
        ValueError,
        "count: expected a whole number of at least 1, got 0",
    ),
    "directions: half a direction": (
        lambda: ll.random_directions(W, 1.5),
        ValueError,
        "count: expected a whole number of at least 1, got 1.5",
    ),
    "pca: a history instead of its trajectory": (
        lambda: ll.pca_directions(ll.History()),
        TypeError,
        "trajectory: expected a sequence of weight vectors, got History",
    ),
    "pca: weights instead of a trajectory": (
        lambda: ll.pca_directions(W),
        TypeError,
        "trajectory: expected a sequence of weight vectors, got dict",
    ),
    "pca: too short": (
        lambda: ll.pca_directions([W, D]),
        ValueError,
        "trajectory: 2 directions need at least 3 points, got 2",
    ),
    "pca: two architectures": (
        lambda: ll.pca_directions([ll.weights_of(OTHER), W, D]),
        ValueError,
        r"trajectory\[0\]: '0.weight' has shape \(5, 6\), expected \(4, 6\)",
    ),
    "pca: a diverged trajectory": (
        lambda: ll.pca_directions([W, NAN_WEIGHTS, D]),
        ValueError,
        r"trajectory\[1\]: expected finite entries, '0.bias' has NaN",
    ),
    "pca: no directions": (
        lambda: ll.pca_directions([W, D, D2], 0),
        ValueError,
        "k: expected a whole number of at least 1, got 0",
    ),
    # --- evaluate
    "evaluate: slice and data swapped": (
        lambda: evaluate(MODEL, DATA, LINE),
        TypeError,
        "slice: expected a Line, Plane or Slice, got SimpleNamespace",
    ),
    "evaluate: weights instead of a model": (
        lambda: evaluate(W, LINE, DATA),
        TypeError,
        "model: expected a torch.nn.Module, got dict",
    ),
    "evaluate: the slice of another model": (
        lambda: evaluate(OTHER, LINE, DATA),
        ValueError,
        r"slice: '0.weight' has shape \(4, 6\), expected \(5, 6\) as in the model's parameters",
    ),
    "evaluate: unknown method": (
        lambda: evaluate(method="batched"),
        ValueError,
        "method: expected one of .*'loop', 'vmap'.* got 'batched'",
    ),
    "evaluate: unknown batch-norm policy": (
        lambda: evaluate(batchnorm="none"),
        ValueError,
        "batchnorm: expected one of .*'frozen'.* got 'none'",
    ),
    "evaluate: dtype int": (
        lambda: evaluate(dtype=int),
        ValueError,
        "dtype: expected a floating-point torch.dtype, got <class 'int'>",
    ),
    "evaluate: dtype of integers": (
        lambda: evaluate(dtype=torch.int32),
        ValueError,
        "dtype: expected a floating-point torch.dtype, got torch.int32",
    ),
    "evaluate: dtype in which nothing can be computed": (
        lambda: evaluate(dtype=torch.float8_e4m3fn),
        ValueError,
        "dtype: expected a floating-point torch.dtype, got torch.float8_e4m3fn .*torch.bfloat16",
    ),
    "evaluate: tolerance with batches of its own": (
        lambda: evaluate(tolerance=0.1, batchnorm="batch"),
        ValueError,
        "tolerance: .* depends with batchnorm='batch': give samples= instead",
    ),
    "evaluate: chunks of no points": (
        lambda: evaluate(chunk_size=0),
        ValueError,
        "chunk_size: expected a whole number of at least 1, got 0",
    ),
    "evaluate: half a batch": (
        lambda: evaluate(batch_size=0.5),
        ValueError,
        "batch_size: expected a whole number of at least 1, got 0.5",
    ),
    "evaluate: more samples than there are": (
        lambda: evaluate(samples=11),
        ValueError,
        "samples: expected a whole number from 1 to 10, got 11",
    ),
    "evaluate: samples as a switch": (
        lambda: evaluate(samples=True),
        ValueError,
        "samples: expected a whole number from 1 to 10, got True",
    ),
    "evaluate: samples of batches": (
        lambda: evaluate(MODEL, LINE, [(DATA.x, DATA.y)], samples=5),
        ValueError,
        "samples: a subset needs data with x and y",
    ),
    "evaluate: a population below the samples": (
        lambda: evaluate(population=9),
        ValueError,
        "population: expected at least the 10 samples, got 9",
    ),
    "evaluate: a population of text": (
        lambda: evaluate(population="all"),
        ValueError,
        "population: expected at least the 10 samples, got 'all'",
    ),
    "evaluate: no seed": (
        lambda: evaluate(seed=None),
        TypeError,
        "seed: expected a whole number, got None",
    ),
    "evaluate: a store that is no path": (
        lambda: evaluate(store=7),
        TypeError,
        "store: expected the path of a file, got int",
    ),
    "evaluate: a tensor as data": (
        lambda: evaluate(MODEL, LINE, DATA.x),
        TypeError,
        "data: expected something with x and y, or an iterable of .* got Tensor",
    ),
    "evaluate: a pair of tensors as data": (
        lambda: evaluate(MODEL, LINE, (DATA.x, DATA.y)),
        TypeError,
        r"data: expected batches \(x, y\), got Tensor",
    ),
    "evaluate: a torch data set without a loader": (
        lambda: evaluate(MODEL, LINE, torch.utils.data.TensorDataset(DATA.x, DATA.y)),
        TypeError,
        "data: expected something with x and y, or an iterable of .* got TensorDataset",
    ),
    "evaluate: arrays of numpy as data": (
        lambda: evaluate(MODEL, LINE, of(DATA.x.numpy(), DATA.y.numpy())),
        TypeError,
        "data: expected tensors of samples in x and y, got ndarray",
    ),
    "evaluate: a generator that was used up": (
        lambda: evaluate(MODEL, LINE, used_up()),
        ValueError,
        "data: has no batches",
    ),
    "evaluate: no samples": (
        lambda: evaluate(MODEL, LINE, of(DATA.x[:0], DATA.y[:0])),
        ValueError,
        "data: has no samples",
    ),
    "evaluate: more images than labels": (
        lambda: evaluate(MODEL, LINE, of(DATA.x, DATA.y[:9])),
        ValueError,
        r"data: x and y must hold tensors of one common length, got lengths \[9, 10\]",
    ),
    "evaluate: a loss that returns a number": (
        lambda: evaluate(loss=lambda output, target: 0.5),
        TypeError,
        "loss: expected it to return a tensor, got float",
    ),
    "evaluate: no loss": (
        lambda: evaluate(loss=None),
        TypeError,
        r"loss: expected a callable \(output, target\), got NoneType",
    ),
    "evaluate: a loss per class": (
        lambda: evaluate(loss=lambda output, target: output.mean(0)),
        ValueError,
        r"loss: expected a scalar or one value per sample, shape \(10,\), got shape \(3,\)",
    ),
    "evaluate: a metric per class": (
        lambda: evaluate(metrics={"mean": lambda output, target: output.mean(0)}),
        ValueError,
        r"metrics\['mean'\]: expected a scalar .* shape \(10,\), got shape \(3,\)",
    ),
    "evaluate: a metric that returns a number": (
        lambda: evaluate(metrics={"one": lambda output, target: 1}),
        TypeError,
        r"metrics\['one'\]: expected it to return a tensor, got int",
    ),
    "evaluate: a metric called loss": (
        lambda: evaluate(metrics={"loss": F.cross_entropy}),
        ValueError,
        "metrics: expected a name that is not reserved, got 'loss'",
    ),
    "evaluate: a metric called as an error is": (
        lambda: evaluate(metrics={"top5_se": F.cross_entropy}),
        ValueError,
        "metrics: expected a name that is not reserved, got 'top5_se'",
    ),
    "evaluate: a metric called as a coordinate is": (
        lambda: evaluate(metrics={"alpha": F.cross_entropy}),
        ValueError,
        "metrics: expected a name that is not reserved, got 'alpha'",
    ),
    "evaluate: a metric without a name": (
        lambda: evaluate(metrics=F.cross_entropy),
        TypeError,
        "metrics: expected a mapping from names to callables, got function",
    ),
    # --- data and models
    "data: unknown set": (
        lambda: ll.data.load("mnist", "test"),
        ValueError,
        "name: expected one of 'digits', .* got 'mnist'",
    ),
    "data: unknown split": (
        lambda: ll.data.load("digits", "valid"),
        ValueError,
        "split: expected 'train' or 'test', got 'valid'",
    ),
    "data: a negative subset": (
        lambda: ll.data.load("digits", "test", samples=-5),
        ValueError,
        "samples: expected at least 1, got -5",
    ),
    "data: a subset larger than the whole": (
        lambda: ll.data.load("digits", "test", samples=1000),
        ValueError,
        r"samples: expected 1 to 360 \(all there are\), got 1000",
    ),
    "data: a device that is not there": (
        lambda: ll.data.load("digits", "test", device="tpu9"),
        ValueError,
        "device: 'tpu9' is not available here",
    ),
    "data: images as integers": (
        lambda: ll.data.load("digits", "test", dtype=torch.uint8),
        ValueError,
        "dtype: expected a floating-point type, got torch.uint8",
    ),
    "Dataset: flat images": (
        lambda: ll.data.Dataset(DATA.x, DATA.y, "own", "train", (), (), (), "here"),
        ValueError,
        r"x, y: expected images \(N, C, H, W\) and labels \(N,\), got \(10, 6\) and \(10,\)",
    ),
    "Dataset: batches of nothing": (
        lambda: DIGITS.batches(0),
        ValueError,
        "size: expected at least 1 image per batch, got 0",
    ),
    "Dataset: shuffled without a generator": (
        lambda: DIGITS.batches(8, shuffle=True),
        ValueError,
        "generator: shuffle=True needs a CPU torch.Generator, got none",
    ),
    "models: no classes": (
        lambda: ll.models.mlp(classes=0, seed=0),
        ValueError,
        "classes: expected a whole number of at least 1, got 0",
    ),
    "models: a width of nothing": (
        lambda: ll.models.small_cnn(width=0.0),
        ValueError,
        "width: expected a positive finite factor, got 0.0",
    ),
    "models: a depth between": (
        lambda: ll.models.resnet(51),
        ValueError,
        r"depth: expected 6n \+ 2 .* got 51",
    ),
    # --- train
    "train: model and data swapped": (
        lambda: train(DATA, MODEL, OPTIMIZER),
        TypeError,
        "model: expected a torch.nn.Module, got SimpleNamespace",
    ),
    "train: a loader as data": (
        lambda: train(MODEL, [(DATA.x, DATA.y)], OPTIMIZER),
        TypeError,
        "data: expected a data set with x and y, got list",
    ),
    "train: more images than labels": (
        lambda: train(MODEL, of(DATA.x, DATA.y[:9]), OPTIMIZER),
        ValueError,
        "data: x and y must have one common length above 0, got 10 and 9",
    ),
    "train: no optimizer": (
        lambda: train(MODEL, DATA, "sgd"),
        TypeError,
        "optimizer: expected a torch.optim.Optimizer, got str",
    ),
    "train: the optimizer of another model": (
        lambda: train(OTHER, DATA, OPTIMIZER),
        ValueError,
        "optimizer: expected one built on the model's parameters, got one that has none",
    ),
    "train: the schedule of another optimizer": (
        lambda: train(schedule=other_schedule()),
        ValueError,
        "schedule: expected one of the given optimizer, got one of another",
    ),
    "train: a schedule that needs a metric": (
        lambda: train(schedule=torch.optim.lr_scheduler.ReduceLROnPlateau(OPTIMIZER)),
        TypeError,
        "schedule: expected a torch LRScheduler that steps without a metric, got ReduceLROnPlateau",
    ),
    "train: negative epochs": (
        lambda: train(epochs=-1),
        ValueError,
        "epochs: expected a whole number of at least 1, got -1",
    ),
    "train: batches of half a sample": (
        lambda: train(batch_size=0.5),
        ValueError,
        "batch_size: expected a whole number of at least 1, got 0.5",
    ),
    "train: recording never": (
        lambda: train(record_every=0),
        ValueError,
        "record_every: expected a whole number of at least 1, got 0",
    ),
    "train: a schedule for every batch": (
        lambda: train(schedule_every="batch"),
        ValueError,
        "schedule_every: expected 'step' or 'epoch', got 'batch'",
    ),
    "train: a loss per sample": (
        lambda: train(loss=lambda output, target: output.mean(1)),
        TypeError,
        r"loss: expected it to return a scalar tensor, got \(10,\)",
    ),
    "train: a loss that returns a number": (
        lambda: train(loss=lambda output, target: 0.5),
        TypeError,
        "loss: expected it to return a scalar tensor, got float",
    ),
    "train: an augmentation that is none": (
        lambda: train(augment=4),
        TypeError,
        r"augment: expected a callable \(x, generator\), got int",
    ),
    "score: weights instead of a model": (
        lambda: ll.training.score(W, DATA),
        TypeError,
        "model: expected a torch.nn.Module, got dict",
    ),
    "history: curves of no epochs": (
        lambda: ll.History().curves(),
        ValueError,
        "epochs: expected at least one finished epoch, got none",
    ),
    "crop_and_flip: flat images": (
        lambda: ll.training.crop_and_flip(DATA.x, generator(0)),
        ValueError,
        r"x: expected images \(N, C, H, W\), got shape \(10, 6\)",
    ),
    "crop_and_flip: negative padding": (
        lambda: ll.training.crop_and_flip(DIGITS.x, generator(0), pad=-1),
        ValueError,
        "pad: expected 0 or more pixels, got -1",
    ),
    # --- results and figures
    "cached: a tensor in the configuration": (
        lambda: ll.results.cached("02/mlp", xr.Dataset, config={"lr": torch.ones(1)}),
        TypeError,
        "config: expected plain values .* Tensor",
    ),
    "cached: a configuration without names": (
        lambda: ll.results.cached("02/mlp", xr.Dataset, config=[1, 2]),
        TypeError,
        "config: expected a mapping, got list",
    ),
    "cached: a dataset instead of a function": (
        lambda: ll.results.cached("02/mlp", SURFACE, config={}),
        TypeError,
        "compute: expected a callable, got Dataset",
    ),
    "cached: a path instead of a name": (
        lambda: ll.results.cached("../mlp.nc", xr.Dataset, config={}),
        ValueError,
        r"name: expected chapter and name as in '02/mlp', got '../mlp.nc'",
    ),
    "provenance: a dataset that was not stored": (
        lambda: ll.results.provenance(SURFACE),
        ValueError,
        r"dataset: expected one from cached\(\), got one without provenance",
    ),
    "heat: a line": (
        lambda: ll.plots.heat(SURFACE.isel(beta=0)),
        ValueError,
        r"variable: expected dimensions \('alpha', 'beta'\), got \('alpha',\) of 'loss'",
    ),
    "curve: a plane": (
        lambda: ll.plots.curve(SURFACE),
        ValueError,
        r"variable: expected one dimension, got \('alpha', 'beta'\) of 'loss'",
    ),
    # --- CASES section 3
    "cost: a list of GPUs": (
        lambda: ll.cost(MODEL, LINE, DATA, gpu=["H100"]),
        ValueError,
        r"gpu: expected one of .*H100.*, got \['H100'\]",
    ),
    "train: no loss": (
        lambda: train(loss=None),
        TypeError,
        r"loss: expected a callable \(output, target\), got NoneType",
    ),
    "train: a number as test set": (
        lambda: train(test=42),
        TypeError,
        "test: expected a data set with x and y, or batches, got int",
    ),
    "train: numpy data": (
        lambda: train(MODEL, of(np.zeros((3, 6)), np.zeros(3)), OPTIMIZER),
        TypeError,
        "data: expected tensors x and y, got ndarray",
    ),
    "train: a class too many, at the end": (
        lambda: train(MODEL, of(DATA.x, torch.tensor([0] * 9 + [3])), OPTIMIZER, batch_size=2),
        ValueError,
        "data: expected classes from 0 to 2 in y, since the model has 3 outputs, got 0 to 3",
    ),
    "evaluate: a class too many": (
        lambda: evaluate(MODEL, LINE, of(DATA.x, torch.arange(10))),
        ValueError,
        "data: expected classes from 0 to 2 in y, since the model has 3 outputs, got 0 to 9",
    ),
    "train: a class below 0": (
        lambda: train(MODEL, of(DATA.x, DATA.y - 1), OPTIMIZER),
        ValueError,
        "data: expected classes from 0 to 2 in y, .* got -1 to 1",
    ),
    "train: classes as real numbers": (
        lambda: train(MODEL, of(DATA.x, DATA.y.float()), OPTIMIZER),
        TypeError,
        "data: expected classes in y as torch.int64, got torch.float32",
    ),
    "train: a feature too few": (
        lambda: train(MODEL, of(DATA.x[:, 1:], DATA.y), OPTIMIZER),
        RuntimeError,
        r"data: this is at x = torch.float64 of shape \(10, 5\), y = torch.int64 .* from 0 to 2",
    ),
    "score: a feature too few": (
        lambda: ll.training.score(MODEL, of(DATA.x[:, 1:], DATA.y)),
        RuntimeError,
        r"data: this is at x = torch.float64 of shape \(10, 5\)",
    ),
    "fit: a feature too few": (
        lambda: ll.mpo.fit(MODEL, ["#."], of(DATA.x[:, 1:], DATA.y), iterations=1),
        RuntimeError,
        r"data: this is at x = torch.float64 of shape \(10, 5\)",
    ),
    "evaluate: a feature too few": (
        lambda: evaluate(MODEL, LINE, of(DATA.x[:, 1:], DATA.y)),
        RuntimeError,
        "with x as it stands in data",
    ),
    "models: a seed of 70 bits": (
        lambda: ll.models.mlp(seed=2**70),
        ValueError,
        "seed: expected a number that fits 64 bits, got 1180591620717411303424",
    ),
    "heat: half a limit": (
        lambda: ll.plots.heat(SURFACE, limits=(None, 1.0)),
        ValueError,
        r"limits: expected \(lowest, highest\), ascending, got \(None, 1.0\)",
    ),
    "heat: limits in words": (
        lambda: ll.plots.heat(SURFACE, limits="01"),
        ValueError,
        r"limits: expected \(lowest, highest\), ascending, got 01",
    ),
    "heat: the logarithm of 0": (
        lambda: ll.plots.heat(0 * SURFACE, log=True),
        ValueError,
        r"log: expected values above 0, or limits=\(lowest, highest\) above 0, got 0",
    ),
    "scratch: a folder outside": (
        lambda: ll.results.scratch("../../x", {}),
        ValueError,
        r"name: expected chapter and name as in '02/mlp', got '../../x'",
    ),
    "map: a million bands": (
        lambda: ll.widgets.map.divide("map", np.eye(3), levels=10**6),
        ValueError,
        "levels: given 1000000, expected from 1 to 256 bands",
    ),
    "results: a store elsewhere": (
        lambda: evaluate(store="s3::x.nc"),
        ValueError,
        "store: expected the path of a file on this machine, got 's3::x.nc'",
    ),
    # --- widgets
    "frames: no sliders": (
        lambda: ll.widgets.frames(["<p>1</p>"], sliders=[], alt="one"),
        ValueError,
        "sliders: given 0, expected one or two",
    ),
    "frames: fewer pictures than values": (
        lambda: ll.widgets.frames(["<p>1</p>"], sliders=[("k", [1, 2])], alt="one"),
        ValueError,
        "pictures: expected a list of 2",
    ),
    "live: no sliders": (
        lambda: ll.widgets.live(print),
        ValueError,
        "sliders: given none, expected at least one",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_and_changes_nothing(name, monkeypatch, tmp_path):
    monkeypatch.setenv("LANDSCAPE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("LANDSCAPE_SCALE", "paper")
    call, kind, message = CASES[name]
    model, state = copy.deepcopy(MODEL.state_dict()), torch.get_rng_state()
    with pytest.raises(kind, match=message) as caught:
        call()
    assert caught.type is kind
    assert torch.equal(torch.get_rng_state(), state)
    assert MODEL.training and all(torch.equal(model[k], v) for k, v in MODEL.state_dict().items())
    assert not (tmp_path / "results").exists()
