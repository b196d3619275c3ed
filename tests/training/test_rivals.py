"""Optimisers of other people, called as ours are, do what their papers say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import landscape_lib as ll
from landscape_lib.training.comparison import Passes

pytest.importorskip("pytorch_optimizer")


def test_sam_steps_along_the_gradient_at_a_distance_up_the_slope() -> None:
    """Foret et al. 2021, algorithm 1: w ← w - lr ∇f(w + rho ∇f(w) / |∇f(w)|), on a quadratic."""
    source = ll.runtime.generator(0)
    root, start = (torch.randn(*n, generator=source, dtype=torch.float64) for n in [(4, 4), (4,)])
    a = root @ root.T
    w = torch.nn.Parameter(start.clone())
    sam = ll.rivals.sam([w], lr=0.02, rho=0.3)
    calls = []

    def closure() -> Tensor:
        sam.zero_grad()
        loss = 0.5 * w @ a @ w
        loss.backward()
        calls.append(w.detach().clone())
        return loss

    first = sam.step(closure)  # which takes the norm in float32
    slope = a @ start
    up = start + 0.3 * slope / slope.norm()
    assert torch.allclose(torch.stack(calls), torch.stack([start, up]), rtol=1e-6)
    assert torch.allclose(w.detach(), start - 0.02 * a @ up, rtol=1e-6)
    assert torch.isclose(first.detach(), 0.5 * start @ a @ start)


def test_sam_without_a_distance_is_sgd_and_takes_two_gradients_of_each_batch() -> None:
    plan = {"epochs": 2, "batch_size": 50, "progress": False}

    def trained(make: Callable[..., Optimizer]) -> tuple[Tensor, list[float], Passes]:
        model, passes = ll.models.mlp(64, (8,), seed=0).double(), Passes()
        data = ll.data.load("digits", "train", samples=200, dtype=torch.float64)
        history = ll.train(model, data, make(model.parameters()), loss=passes, **plan)
        weights = torch.cat([part.flatten() for part in ll.weights_of(model).values()])
        return weights, history.batch_losses, passes

    momentum = {"lr": 0.1, "momentum": 0.9}
    plain, losses, once = trained(lambda p: torch.optim.SGD(p, **momentum))
    same, same_losses, twice = trained(lambda p: ll.rivals.sam(p, rho=0.0, **momentum))
    assert torch.allclose(plain, same, rtol=1e-9)
    assert losses == pytest.approx(same_losses)
    assert (twice.forwards, twice.backwards) == (2 * once.forwards, 2 * once.backwards) == (16, 16)
