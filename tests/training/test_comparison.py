"""Comparisons: each method gets the same budget of passes, and a kept run is not run again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import landscape_lib as ll
from landscape_lib.training import comparison
from landscape_lib.training.comparison import Contest, Method, Passes, cosine, divide

SGD = torch.optim.SGD
DIGITS = {split: ll.data.load("digits", split, samples=300) for split in ("train", "test")}


def build(seed: int) -> torch.nn.Module:
    return ll.models.mlp(64, (8,), seed=seed)


def contest(**changes: Any) -> Contest:
    plan = {"epochs": 2, "search_epochs": 1, "validation": 60, "seeds": (1, 2), "batch_size": 64}
    return Contest(build, DIGITS.__getitem__, {"data": "digits"}, **(plan | changes))


@pytest.mark.parametrize(
    ("optimizer", "forwards", "backwards"),
    [
        (lambda p: SGD(p, lr=0.1), 1, 1),
        (lambda p: ll.PAL(p), 2, 1),  # METHODS B: one forward and backward pass, one forward pass
        (lambda p: ll.EntropySGD(p, inner_steps=3), 3, 3),
    ],
)
def test_passes_are_those_that_the_network_makes(optimizer, forwards, backwards):
    model, passes, seen = build(0), Passes(), {"forwards": 0, "backwards": 0}

    def count(key: str) -> None:
        seen[key] += model.training  # train looks at the model in eval mode first

    model.output.register_forward_hook(lambda *_: count("forwards"))
    model.output.weight.register_hook(lambda _: count("backwards"))
    chosen = optimizer(model.parameters())
    plan = {"epochs": 1, "batch_size": 100, "loss": passes, "progress": False}
    steps = len(ll.train(model, DIGITS["train"], chosen, **plan).batch_losses)
    assert (passes.forwards, passes.backwards) == (forwards * steps, backwards * steps)
    assert vars(passes) | seen == vars(passes)
    assert passes.spent == passes.forwards + 2 * passes.backwards


def test_the_loss_itself_is_not_changed_by_counting():
    output, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert Passes()(output, target) == F.cross_entropy(output, target)


@pytest.mark.parametrize(
    "method",
    [
        Method(SGD, "lr", (0.1,)),
        Method(ll.PAL, "mu", (0.1,)),
        Method(ll.EntropySGD, "lr", (0.5,), {"inner_steps": 4}),
    ],
)
def test_a_run_ends_with_the_step_that_reaches_its_budget(method):
    run = contest().run(method, method.values[0], 0, DIGITS["train"], DIGITS["test"])
    spent = run.forwards + 2 * run.backwards
    each = 3 * math.ceil(300 / 64)
    # No step of these costs more than 12.
    assert ((spent >= each * run.epoch) & (spent < each * run.epoch + 12)).all()
    assert run.test_accuracy[-1] > 0.1 and np.isfinite(run.train_loss).all()


def test_a_run_is_the_training_that_train_makes():
    # Plain SGD with the budget of whole epochs: the same batches, the same weights, the same score.
    method = Method(SGD, "lr", (0.1,), {"momentum": 0.9})
    run = contest().run(method, 0.1, 3, DIGITS["train"], DIGITS["test"])
    model = build(3)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    plan = {"epochs": 2, "batch_size": 64, "seed": 3, "progress": False}
    history = ll.train(model, DIGITS["train"], optimizer, test=DIGITS["test"], **plan).curves()
    for name in ("train_loss", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(run[name], history[name])


def test_a_schedule_follows_the_budget_from_1_to_0():
    rates = []

    class Noting(SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    method = Method(Noting, "lr", (0.2,), schedule=cosine)
    contest().run(method, 0.2, 0, DIGITS["train"], DIGITS["test"])
    expected = [0.1 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]
    np.testing.assert_allclose(rates, expected)


def test_the_search_takes_the_value_of_highest_accuracy_and_sees_no_test_data(monkeypatch):
    monkeypatch.setenv("LANDSCAPE_SCALE", "smoke")
    seen = []
    run = Contest.run

    def noting(self: Contest, method: Method, value: float, seed: int, *data: Any) -> xr.Dataset:
        seen.append((value, seed, data[1] is DIGITS["test"], len(data[0])))
        return run(self, method, value, seed, *data)

    monkeypatch.setattr(Contest, "run", noting)
    found = contest().result("99/sgd", Method(SGD, "lr", (1e-5, 0.3)))
    assert seen == [
        (1e-5, 0, False, 240),
        (0.3, 0, False, 240),
        (0.3, 1, True, 300),
        (0.3, 2, True, 300),
    ]
    assert found.best == 0.3 and found.search_accuracy[1] > found.search_accuracy[0]
    assert dict(found.sizes) == {"seed": 2, "epoch": 2, "value": 2}


def test_kept_runs_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCAPE_SCALE", "paper")
    monkeypatch.setenv("LANDSCAPE_RESULTS", str(tmp_path))
    method, runs = Method(SGD, "lr", (0.1,)), []
    run = Contest.run

    def noting(self: Contest, *arguments: Any) -> xr.Dataset:
        runs.append(arguments[2])
        if arguments[2] == 2 and runs.count(2) == 1:
            raise KeyboardInterrupt
        return run(self, *arguments)

    monkeypatch.setattr(Contest, "run", noting)
    with pytest.raises(KeyboardInterrupt):
        contest().result("99/sgd", method)
    found = contest().result("99/sgd", method)
    assert runs == [0, 1, 2, 2]  # the search and seed 1 were kept
    monkeypatch.setenv("LANDSCAPE_SCALE", "smoke")
    whole = contest().result("99/sgd", method)
    xr.testing.assert_identical(found.drop_attrs(), whole.drop_attrs())


def test_what_is_measured_of_a_trained_model_stands_beside_its_curves():
    measure = lambda model: {"size": float(sum(p.numel() for p in model.parameters()))}  # noqa: E731
    method = Method(SGD, "lr", (0.1,))
    run = contest(measure=measure).run(method, 0.1, 0, DIGITS["train"], DIGITS["test"])
    assert run["size"] == 64 * 8 + 8 + 8 * 10 + 10


def test_held_out_samples_are_not_among_the_others():
    rest, held_out = divide(DIGITS["train"], 60)
    rows = lambda data: {tuple(row.tolist()) for row in data.x.flatten(1)}  # noqa: E731
    assert (len(rest), len(held_out)) == (240, 60)
    assert rows(rest) | rows(held_out) == rows(DIGITS["train"])
    assert len(rows(rest)) + len(rows(held_out)) == len(rows(DIGITS["train"]))


def test_the_line_search_is_called_as_our_optimisers_are():
    pytest.importorskip("salsa")
    method = Method(ll.rivals.line_search, "c", (0.3,))
    assert method.config()["optimizer"] == "line_search"
    run = contest(epochs=6).run(method, 0.3, 0, DIGITS["train"], DIGITS["test"])
    assert run.test_accuracy[-1] > 0.5
    # It tries one point a step at least where it searches, and searches in the first ten steps.
    assert run.forwards[0] >= 2 * run.backwards[0] > 0
    assert comparison.BACKWARD == 2


def test_functions_without_a_name_of_their_own_are_refused():
    with pytest.raises(ValueError, match="optimizer: expected a function or class with a name"):
        Method(lambda params, lr: torch.optim.SGD(params, lr), "lr", [0.1])
    with pytest.raises(ValueError, match="schedule: expected a function or class with a name"):
        Method(torch.optim.SGD, "lr", [0.1], schedule=lambda share: 1.0)
