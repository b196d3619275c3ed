"""What is kept on disk withstands the attacks of ``attacks.py``: all, or a part of them."""

from __future__ import annotations

import random
import sys

import attacks
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks a process that uses torch"),
    pytest.mark.filterwarnings("ignore"),
]
each_kind = pytest.mark.parametrize("kind", attacks.COMPUTATIONS)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANDSCAPE_RESULTS", "LANDSCAPE_SCALE"):
        monkeypatch.setenv(name, "")  # given back at the end, whatever an attack sets
    monkeypatch.setattr(attacks.surface_store, "SECONDS_BETWEEN_SAVES", 2.0)


@each_kind
def test_no_flipped_bit_becomes_a_wrong_number(kind: str) -> None:  # CASES N18
    assert attacks.flips(kind, 300, random.Random(kind)) == (300, 300)


@each_kind
def test_a_full_disk_is_an_error_and_loses_nothing(kind: str) -> None:  # CASES K5
    assert attacks.full_disk(kind, 5, random.Random(kind)) == (5, 5)


@each_kind
def test_a_kill_at_a_random_instant_loses_nothing(kind: str) -> None:
    tried, survived = attacks.kills(kind, 5, random.Random(kind))
    assert survived == tried >= 5


def test_another_computation_is_refused_and_the_same_resumes() -> None:  # CASES N1, N2
    for tried, survived in attacks.strangers().values():
        assert survived == tried > 42
