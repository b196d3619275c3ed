"""Weights in one vector: nothing is lost, and every tensor begins where kernels expect it."""

from __future__ import annotations

import pytest
import torch

from landscape_lib.evaluation.batches import channels_last_pays
from landscape_lib.evaluation.layout import ALIGNMENT, Layout

WEIGHTS = {
    "filters": torch.arange(5 * 3 * 2 * 2.0).view(5, 3, 2, 2),
    "number": torch.tensor(7.0),
    "empty": torch.ones(0, 4),
    "matrix": torch.arange(3 * 7.0).view(3, 7),
}


@pytest.mark.parametrize("channels_last", [False, True])
def test_views_are_the_weights_and_share_the_vector(channels_last: bool) -> None:
    layout = Layout(WEIGHTS, channels_last)
    vector = layout.flatten(WEIGHTS)
    views = layout.views(vector)
    assert layout.count == 60 + 1 + 21
    assert list(views) == list(WEIGHTS)
    for name, view in views.items():
        assert torch.equal(view, WEIGHTS[name])
        assert view.storage_offset() % ALIGNMENT == 0
    vector.mul_(2)
    assert all(torch.equal(view, 2 * WEIGHTS[name]) for name, view in views.items())
    assert views["filters"].is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def test_sums_of_vectors_are_sums_of_weights() -> None:
    layout = Layout(WEIGHTS, True)
    stacked = torch.stack([layout.flatten(WEIGHTS), layout.flatten(WEIGHTS)])
    points = torch.tensor([[1.0, 2.0], [0.5, -0.5]]) @ stacked
    assert len(points[0]) % ALIGNMENT == 0  # so that a row of points begins as a tensor does
    assert torch.equal(layout.views(points[0])["matrix"], 3 * WEIGHTS["matrix"])
    found = torch.vmap(lambda vector: layout.views(vector)["filters"])(points)
    assert torch.equal(found[0], 3 * WEIGHTS["filters"]) and not found[1].any()


@pytest.mark.parametrize(
    ("device", "dtype", "method", "expected"),
    [
        ("cpu", torch.float32, "vmap", True),
        ("cuda", torch.float32, "loop", False),
        ("cuda", torch.bfloat16, "loop", True),
        ("cuda", torch.float16, "vmap", False),
    ],
)
def test_channels_last_where_it_is_faster(
    device: str, dtype: torch.dtype, method: str, expected: bool
) -> None:
    assert channels_last_pays(torch.device(device), dtype, method) == expected
