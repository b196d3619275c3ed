"""A model's loss and accuracy on a data set, its modes and the random state left as they were."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_lib import runtime
from landscape_lib.evaluation.batches import (
    Batch,
    Group,
    channels_last_pays,
    check_count,
    move,
    read_batches,
    reads_channels_last,
)
from landscape_lib.evaluation.given import naming
from landscape_lib.evaluation.losses import Seen
from landscape_lib.evaluation.measures import Measures
from landscape_lib.evaluation.sums import mean_and_error
from landscape_lib.weights import check_model


def score(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    batch_size: int = 512,
) -> dict[str, float]:
    """Return a model's mean loss and accuracy on a data set, in eval mode.

    Args:
        model: its mode is given back afterwards, and so is the global random state.
        data: anything that :func:`landscape_lib.evaluate` takes.
        loss: callable ``(output, target) -> scalar mean``.
        batch_size: samples per forward pass.

    Raises:
        TypeError, ValueError: bad input, named before any work.
    """
    check_model(model)
    check_count("batch_size", batch_size)
    device = next(model.parameters()).device
    with runtime.isolated_random_state(0), mode_given_back(model), torch.no_grad():
        model.eval()
        batches, _ = read_batches(data, None, batch_size, 0)
        last = pays_channels_last(model, move(batches[0], device, None).x)
        batches = [move(batch, device, None, last) for batch in batches]
        measures = Measures(loss, None, _seen(model, batches[0]))
        seen = (_seen(model, batch) for batch in batches)
        weights = measures.weigh(seen, [batch.y for batch in batches]) or itertools.repeat(None)
        sums = [
            measures.sums(_seen(model, b).output, Group((), b.y, b.size, w))
            for b, w in zip(batches, weights, strict=False)
        ]
    means, _ = mean_and_error(torch.stack(sums).sum(0).cpu().numpy(), 1, 1)
    return dict(zip(measures.names, means.tolist(), strict=True))


def _seen(model: nn.Module, batch: Batch) -> Seen:
    with naming(batch.x, batch.y):
        return Seen(model(batch.x), batch.y, batch.size)


@contextlib.contextmanager
def mode_given_back(model: nn.Module) -> Iterator[None]:
    """Give every module back in the mode it had: a caller may have frozen some of them."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def pays_channels_last(model: nn.Module, x: Any) -> bool:
    """Say whether a model reads images best in channels-last order."""
    first = next(model.parameters())
    return channels_last_pays(first.device, first.dtype) and reads_channels_last(model, x)
