"""Recipes: how the networks of chapters 3 and 4 are trained, and where their weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from landscape_lib import models, results, runtime
from landscape_lib.data import Dataset
from landscape_lib.fingerprint import digest
from landscape_lib.training.checkpoint import History
from landscape_lib.training.score import score
from landscape_lib.training.train import crop_and_flip, train


@dataclass(frozen=True)
class Recipe:
    """One training run of Li et al. 2018, as their code and paper describe it.

    Stochastic gradient descent with Nesterov momentum .9, random crops and flips. The paper divides
    the learning rate by ten at 150, 225 and 275 of 300 epochs (``schedule="steps"``: at 1/2, 3/4
    and 11/12 of them); ``"one-cycle"`` rises and falls once and needs fewer epochs.

    Attributes:
        network: ``"vgg9"``, or ``"resnet"`` and its depth, for example ``"resnet20"``.
        shortcuts: of a ResNet.
        width: of a VGG-9 a factor; of a ResNet the channels of the first stage, 16 in the paper.
        epochs: passes over the training split.
        batch_size: samples per step.
        learning_rate: the largest one.
        weight_decay: the factor of the squared norm's gradient.
        schedule: ``"one-cycle"`` or ``"steps"``.
        bfloat16: whether forward passes run in autocast.
        version: changed whenever the code behind a recipe changes what it computes.
    """

    network: str
    shortcuts: bool = True
    width: float = 1.0
    epochs: int = 300
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "steps"
    bfloat16: bool = False
    version: int = 1

    def build(self, seed: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
        """Build the untrained network.

        Raises:
            ValueError: the network is not one of the recipes'.
        """
        if self.network == "vgg9":
            return models.vgg9(in_channels, image_size=image_size, width=self.width, seed=seed)
        depth = self.network.removeprefix("resnet")
        if depth == self.network or not depth.isdecimal():
            raise ValueError(f"network: expected 'vgg9' or 'resnet20', ..., got {self.network!r}")
        return models.resnet(
            int(depth), self.shortcuts, in_channels, width=int(self.width), seed=seed
        )

    def config(self, seed: int) -> dict[str, Any]:
        """Return what a stored result of this recipe depends on, besides its data."""
        return asdict(self) | {"seed": seed}


def trained(
    name: str, recipe: Recipe, seed: int, load: Callable[[str], Dataset], config: dict[str, Any]
) -> xr.Dataset:
    """Train a network, or load what an earlier training has left, through :func:`results.cached`.

    What is stored is the state of the network rounded to bfloat16, as one vector of bits in the
    order of its state dictionary, unless it is too large for a stored result; :func:`network` makes
    the network of it. The scores are those of the rounded network, so that they can be had again.

    Args:
        name: of the stored result, for example ``"03/small_batch"``.
        recipe: the network and its training.
        seed: of the initial weights, the order of samples and the augmentation.
        load: gives the data set of ``"train"`` and of ``"test"``.
        config: what else the result depends on.

    Returns:
        ``state`` over ``value``; ``train_loss``, ``train_accuracy``, ``test_loss`` and
        ``test_accuracy``; the curves of :meth:`History.curves` as ``epoch_...`` over ``epoch``.
        The attribute ``weights`` is a digest of the state, which other results can name.
    """

    def compute() -> xr.Dataset:
        data = {split: load(split) for split in ("train", "test")}
        model, history = run(name, recipe, seed, data, config)
        state = pack(model.state_dict())
        model.load_state_dict(unpack(state, model.state_dict()))
        dataset = xr.Dataset(attrs={"data": data["train"].source, "weights": _digest_of(state)})
        if results.is_small(state):
            dataset["state"] = "value", state
        for split, images in data.items():
            for measure, value in score(model, images).items():
                dataset[f"{split}_{measure}"] = value
        for curve, values in history.curves().items():
            dataset[f"epoch_{curve}"] = values.astype(np.float32)
        return dataset.assign_attrs(shape=list(data["train"].x.shape[1:]))

    found = results.cached(name, compute, config=recipe.config(seed) | config)
    if "weights" not in found.attrs:  # a result of earlier days, which has its state
        found.attrs["weights"] = _digest_of(found.state.values)
    return found


def _digest_of(state: np.ndarray) -> str:
    return digest(state.tobytes())[:12]


def network(
    name: str, recipe: Recipe, seed: int, load: Callable[[str], Dataset], config: dict[str, Any]
) -> nn.Module:
    """Return the trained network of :func:`trained`, in eval mode, on the CPU.

    A state that is too large to be stored is that of the training's last checkpoint, or it is
    trained anew.

    Raises:
        MissingResult: nothing is stored, or no weights, and nothing says to train.
        ValueError: what was trained anew is not the network of the stored result.
    """
    stored = trained(name, recipe, seed, load, config)
    if "state" in stored:
        state = stored["state"].values
    else:
        if runtime.scale() == "book" and not runtime.recompute():
            raise results.MissingResult(
                f"result {name!r} has no weights, which are too large to be stored. Set "
                f"LANDSCAPE_RECOMPUTE=1 to train it (hours on two cores, resumable)"
            )
        data = {split: load(split) for split in ("train", "test")}
        state = pack(run(name, recipe, seed, data, config)[0].state_dict())
        if _digest_of(state) != stored.attrs["weights"]:
            raise ValueError(
                f"result {name!r}: the weights of this machine's training are "
                f"{_digest_of(state)}, those of the stored result {stored.attrs['weights']}: "
                f"recompute it, and what was computed from it"
            )
    channels, _, side = (int(size) for size in stored.attrs["shape"])
    model = recipe.build(0, channels, side)
    model.load_state_dict(unpack(state, model.state_dict()))
    return model.eval()


def pack(tensors: Mapping[str, Tensor]) -> np.ndarray:
    """Return the bits of named tensors rounded to bfloat16, as one vector of uint16."""
    flat = torch.cat([tensor.detach().cpu().flatten().bfloat16() for tensor in tensors.values()])
    return flat.view(torch.int16).numpy().view(np.uint16)


def unpack(bits: np.ndarray, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the named tensors of :func:`pack`, each in the shape, type and place of ``like``.

    Raises:
        ValueError: there are more or fewer values than in ``like``.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if len(bits) != sum(sizes):
        raise ValueError(f"bits: expected {sum(sizes):,} values, got {len(bits):,}")
    flat = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    parts = zip(like.items(), flat.split(sizes), strict=True)
    return {name: part.reshape(old.shape).to(old) for (name, old), part in parts}


def run(
    name: str, recipe: Recipe, seed: int, data: Mapping[str, Dataset], config: dict[str, Any]
) -> tuple[nn.Module, History]:
    """Run the training that :func:`trained` stores, or resume it, or take what it has come to.

    Args:
        name: as for :func:`trained`; with ``recipe``, ``seed`` and ``config`` it says where the
            training keeps its checkpoint.
        recipe: the network and its training.
        seed: as for :func:`trained`.
        data: the data sets ``"train"`` and ``"test"``.
        config: as for :func:`trained`.

    Returns:
        The trained network, and its history, with the weights at the ends of all epochs.

    Raises:
        ValueError: the recipe's network or schedule is unknown.
    """
    images = data["train"]
    channels, _, side = images.x.shape[1:]
    # Channels last: on a CPU a step of ResNet-56 takes three quarters of the time.
    model = recipe.build(seed, channels, side).to(images.x.device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    steps = -(-len(images) // recipe.batch_size)
    total = steps * recipe.epochs
    schedule: LRScheduler
    if recipe.schedule == "one-cycle":
        schedule = OneCycleLR(optimizer, recipe.learning_rate, total, cycle_momentum=False)
    elif recipe.schedule == "steps":
        schedule = MultiStepLR(optimizer, [total // 2, total * 3 // 4, total * 11 // 12], 0.1)
    else:
        raise ValueError(f"schedule: expected 'one-cycle' or 'steps', got {recipe.schedule!r}")
    place = results.scratch(name, recipe.config(seed) | config)
    history = train(
        model,
        images,
        optimizer,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        test=data["test"],
        schedule=schedule,
        augment=partial(crop_and_flip, pad=max(1, side // 8)),
        record_every=steps,
        dtype=torch.bfloat16 if recipe.bfloat16 else None,
        checkpoint=None if place is None else place / "training.pt",
        seed=seed,
    )
    return model, history
