"""Where code runs: the scale, the device, the random state, and files that are never half there."""

from __future__ import annotations

import platform

import pytest
import torch

from landscape_lib import runtime


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "book"), ("", "book"), ("smoke", "smoke"), ("book", "book"), ("paper", "paper")],
)
def test_the_scale_is_read_at_every_call(monkeypatch, value, expected):  # DESIGN section 4
    monkeypatch.setenv("LANDSCAPE_SCALE", "smoke")
    assert runtime.scale() == "smoke"
    if value is None:
        monkeypatch.delenv("LANDSCAPE_SCALE")
    else:
        monkeypatch.setenv("LANDSCAPE_SCALE", value)
    assert runtime.scale() == expected
    assert runtime.at_scale(smoke="smoke", book="book", paper="paper") == expected


def test_an_unknown_scale_is_named(monkeypatch):
    monkeypatch.setenv("LANDSCAPE_SCALE", "tiny")
    with pytest.raises(ValueError, match=r"LANDSCAPE_SCALE: expected one of .*'book'.* got 'tiny'"):
        runtime.at_scale(smoke=1, book=2, paper=3)


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("1", True)])
def test_recomputation_is_asked_for_by_the_environment(monkeypatch, value, expected):
    monkeypatch.setenv("LANDSCAPE_RECOMPUTE", value)
    assert runtime.recompute() is expected
    monkeypatch.delenv("LANDSCAPE_RECOMPUTE")
    assert runtime.recompute() is False


def test_the_best_device_present_is_the_default():
    if torch.cuda.is_available():
        best = "cuda"
    else:
        best = "mps" if torch.backends.mps.is_available() else "cpu"
    assert runtime.pick_device().type == best
    assert runtime.pick_device("cpu") == torch.device("cpu")
    assert runtime.pick_device(torch.device("cpu")) == torch.device("cpu")
    assert runtime.device_name(torch.device("cpu")).startswith("CPU (")


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "cpu:x", ["cpu"]])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=r"device: .* is not available here"):
        runtime.pick_device(device)


def test_generators_follow_their_seed_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    first, same, other = (
        torch.randn(5, generator=runtime.generator(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == same != other
    assert torch.equal(torch.get_rng_state(), state)


def test_an_isolated_stream_is_its_own_and_the_callers_comes_back():
    torch.manual_seed(5)
    expected = torch.rand(4)
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        first = torch.rand(2)
        with runtime.isolated_random_state(9):
            draws.append(torch.rand(3))
        assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
    torch.manual_seed(9)
    assert torch.equal(draws[0], torch.rand(3)) and torch.equal(*draws)


def test_the_callers_random_state_comes_back_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), runtime.isolated_random_state(0):
        torch.rand(3)
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), state)


def test_keeping_freed_memory_says_whether_it_could(monkeypatch):
    assert isinstance(runtime.keep_freed_memory(), bool)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert runtime.keep_freed_memory() is False


def test_no_bar_where_pages_are_built(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(runtime.progress_bar(iterable=[1, 2])) == [1, 2]
    assert runtime.progress_bar().disable and runtime.progress_bar(False).disable
    monkeypatch.setenv("TQDM_DISABLE", "0")
    assert not runtime.progress_bar().disable
    monkeypatch.delenv("TQDM_DISABLE")
    assert not runtime.progress_bar().disable and runtime.progress_bar(False).disable
