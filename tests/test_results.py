"""Stored results: loaded where they fit, refused where they do not, and never without a source."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import landscape_lib as ll
from landscape_lib import results
from landscape_lib.results import MissingResult, StaleResult, cached, duration, provenance, scratch

CONFIG = {"data": "digits", "seeds": [0, 1], "width": 0.5}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results, at book scale."""
    monkeypatch.setenv("LANDSCAPE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("LANDSCAPE_SCALE", "book")
    monkeypatch.delenv("LANDSCAPE_RECOMPUTE", raising=False)
    return tmp_path / "results"


class Compute:
    """Count the calls; the numbers tell which call made them."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> xr.Dataset:
        self.calls += 1
        values = [1.0 + self.calls, np.nan, np.inf, -np.inf, 0.1]
        return xr.Dataset(
            {"loss": ("alpha", values), "samples": ("alpha", [3] * 5)},
            coords={"alpha": np.arange(5) / 4},
            attrs={"data": "made by hand"},
        )


def store(monkeypatch: pytest.MonkeyPatch, compute: object, name: str = "02/mlp") -> xr.Dataset:
    with monkeypatch.context() as patch:
        patch.setenv("LANDSCAPE_RECOMPUTE", "1")
        return cached(name, compute, config=CONFIG)


# --- three scales: DESIGN section 4 -------------------------------------------------------------


def test_at_smoke_scale_everything_is_computed_and_nothing_saved(home, monkeypatch):
    monkeypatch.setenv("LANDSCAPE_SCALE", "smoke")
    for recompute in ("0", "1"):
        monkeypatch.setenv("LANDSCAPE_RECOMPUTE", recompute)
        compute = Compute()
        for _ in range(2):
            got = cached("02/mlp", compute, config=CONFIG)
        assert compute.calls == 2 and float(got.loss[0]) == 3.0
        assert got.attrs["scale"] == "smoke" and scratch("02/mlp", CONFIG) is None
    assert not home.exists()


def test_at_book_scale_a_missing_result_is_an_error_that_says_how_to_compute_it(home):
    compute = Compute()
    with pytest.raises(MissingResult, match=r"'02/mlp' .*`make results CHAPTER=02`.*RECOMPUTE=1"):
        cached("02/mlp", compute, config=CONFIG)
    assert compute.calls == 0 and not home.exists()


def test_at_book_scale_a_stored_result_is_loaded_as_it_was(home, monkeypatch):
    compute = Compute()
    made = store(monkeypatch, compute)
    assert (home / "02" / "mlp.nc").is_file()
    loaded = cached("02/mlp", compute, config=CONFIG)
    assert compute.calls == 1
    assert loaded.identical(made)  # NaN, inf, coordinates and provenance, too
    assert loaded.loss.values.tobytes() == made.loss.values.tobytes()
    assert loaded.samples.dtype == made.samples.dtype


def test_asked_to_recompute_it_does_so_whatever_is_there(home, monkeypatch):
    compute = Compute()
    store(monkeypatch, compute)
    (home / "02" / "mlp.nc").write_bytes(b"damaged")
    assert float(store(monkeypatch, compute).loss[0]) == 3.0
    assert compute.calls == 2
    assert float(cached("02/mlp", compute, config=CONFIG).loss[0]) == 3.0


def test_at_paper_scale_it_is_computed_once_in_a_folder_of_its_own(home, monkeypatch):
    book = Compute()
    store(monkeypatch, book)
    monkeypatch.setenv("LANDSCAPE_SCALE", "paper")
    compute = Compute()
    for _ in range(2):
        got = cached("02/mlp", compute, config=CONFIG | {"width": 1})
    assert compute.calls == 1 and got.attrs["scale"] == "paper"
    assert (home / "paper" / "02" / "mlp.nc").is_file()
    monkeypatch.setenv("LANDSCAPE_SCALE", "book")
    assert cached("02/mlp", compute, config=CONFIG).attrs["scale"] == "book"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        (CONFIG | {"width": 1.0}, "width: stored 0.5, asked 1.0"),
        (CONFIG | {"seeds": [0]}, r"seeds: stored \[0, 1\], asked \[0\]"),
        (CONFIG | {"lr": 0.1}, "lr: stored 'absent', asked 0.1"),
        ({"data": "digits", "seeds": [0, 1]}, "width: stored 0.5, asked 'absent'"),
        (CONFIG | {"data": "cifar10", "width": 1}, "data: stored 'digits', .*; width: stored 0.5"),
    ],
)
@pytest.mark.parametrize("scale", ["book", "paper"])
def test_a_result_of_another_configuration_is_refused(home, monkeypatch, scale, config, detail):
    monkeypatch.setenv("LANDSCAPE_SCALE", scale)
    compute = Compute()
    store(monkeypatch, compute)
    (path,) = home.rglob("mlp.nc")
    before = path.read_bytes()
    with pytest.raises(StaleResult, match=rf"'02/mlp' .*\({detail}.*`make results CHAPTER=02`"):
        cached("02/mlp", compute, config=config)
    assert compute.calls == 1 and path.read_bytes() == before


def test_equal_configurations_in_other_words_are_the_same(monkeypatch):
    compute = Compute()
    store(monkeypatch, compute)
    reordered = {"width": 0.5, "seeds": (0, 1), "data": "digits"}
    cached("02/mlp", compute, config=reordered)
    assert compute.calls == 1


def test_a_damaged_file_is_named(home, monkeypatch):
    compute = Compute()
    store(monkeypatch, compute)
    path = home / "02" / "mlp.nc"
    for damaged in (path.read_bytes()[:500], b"", b"no netCDF"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"'02/mlp': {re.escape(str(path))} cannot be read"):
            cached("02/mlp", compute, config=CONFIG)
        assert path.read_bytes() == damaged
    Compute()().to_netcdf(path, engine="h5netcdf")  # a dataset, but without its source
    with pytest.raises(ValueError, match="cannot be read: 'config'"):
        cached("02/mlp", compute, config=CONFIG)


def test_a_result_too_large_for_git_is_refused_and_the_old_one_kept(home, monkeypatch):
    store(monkeypatch, Compute())
    before = (home / "02" / "mlp.nc").read_bytes()
    noise = np.random.default_rng(0).normal(size=results.LARGEST_FILE // 8 + 10_000)

    def large() -> xr.Dataset:
        return xr.Dataset({"loss": ("point", noise)})

    with pytest.raises(ValueError, match=r"'02/mlp' takes 1,\d{3},\d{3} bytes; .* 1,000,000"):
        store(monkeypatch, large)
    assert (home / "02" / "mlp.nc").read_bytes() == before
    # Surfaces compress: as many equal numbers are small.
    store(monkeypatch, lambda: xr.Dataset({"loss": ("point", np.zeros_like(noise))}))
    # Nobody commits results of the scale "paper".
    monkeypatch.setenv("LANDSCAPE_SCALE", "paper")
    assert cached("02/mlp", large, config=CONFIG).loss.equals(large().loss)
    assert (home / "paper" / "02" / "mlp.nc").stat().st_size > results.LARGEST_FILE


def test_a_computation_that_gives_no_dataset_is_named(home, monkeypatch):
    with pytest.raises(TypeError, match="compute: .* xarray.Dataset, got float"):
        store(monkeypatch, lambda: 0.5)
    assert not list(home.rglob("*.nc"))


# --- provenance ---------------------------------------------------------------------------------


def test_every_result_says_where_it_comes_from(monkeypatch, capsys):
    store(monkeypatch, Compute())
    loaded = cached("02/mlp", Compute(), config=CONFIG)
    attributes = loaded.attrs
    assert json.loads(attributes["config"]) == {"data": "digits", "seeds": [0, 1], "width": 0.5}
    assert attributes["library"] == ll.__version__ and attributes["torch"] == torch.__version__
    assert attributes["name"] == "02/mlp" and attributes["wall_seconds"] >= 0
    assert re.fullmatch(r"commit (unknown|[0-9a-f]{12}( with changes)?)", attributes["commit"])
    provenance(loaded.assign_attrs(wall_seconds=125.0, device="a machine"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "result    02/mlp (book scale)"
    assert lines[1] == "data      made by hand"
    assert lines[2] == "settings  data=digits, seeds=[0, 1], width=0.5"
    assert lines[3] == "computed  in 2 min on a machine"
    assert lines[4].startswith(f"versions  landscape_lib {ll.__version__} (commit ")


def test_the_same_folded_away_is_one_line(monkeypatch, capsys):
    result = store(monkeypatch, Compute()).assign_attrs(wall_seconds=125.0, device="a machine")
    fold = results.how_computed(result)
    provenance(result)
    first, rest = repr(fold).split("\n", 1)
    assert first == "How this was computed: in 2 min on a machine"
    assert f"{rest}\n" == capsys.readouterr().out
    assert f"<summary>{first}</summary>" in fold._repr_html_() and " open" not in fold.html
    assert '<td style="text-align:left">made by hand</td>' in fold.html
    with pytest.raises(ValueError, match="dataset: expected one from cached"):
        results.how_computed(xr.Dataset())


def test_the_device_of_an_evaluation_is_kept(monkeypatch):
    made = store(monkeypatch, lambda: Compute()().assign_attrs(device="Abacus (2 beads)"))
    assert made.attrs["device"] == "Abacus (2 beads)"
    assert store(monkeypatch, Compute()).attrs["device"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5399, "90 min"), (5400, "1.5 h")],
)
def test_durations_as_a_person_would_say_them(seconds, text):
    assert duration(seconds) == text


# --- interruption -------------------------------------------------------------------------------


def test_scratch_folders_belong_to_one_configuration(home):
    first = scratch("02/mlp", CONFIG)
    assert first == scratch("02/mlp", {"width": 0.5, "seeds": (0, 1), "data": "digits"})
    assert first.is_dir() and first.is_relative_to(home / ".work" / "02")
    others = {
        scratch("02/mlp", CONFIG | {"width": 1}),
        scratch("02/mlp", CONFIG | {"seeds": [0, 12]}),
        scratch("02/cnn", CONFIG),
    }
    assert len(others | {first}) == 4


def test_the_time_of_an_interrupted_computation_is_not_lost(home, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(results, "time", clock)

    def interrupted() -> xr.Dataset:
        clock.now += 100.0
        raise KeyboardInterrupt

    def finished() -> xr.Dataset:
        clock.now += 30.0
        return Compute()()

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store(monkeypatch, interrupted)
    assert not list(home.rglob("*.nc"))
    assert store(monkeypatch, finished).attrs["wall_seconds"] == 230.0
    # Another configuration starts from zero.
    monkeypatch.setenv("LANDSCAPE_RECOMPUTE", "1")
    assert cached("02/mlp", finished, config={"width": 9}).attrs["wall_seconds"] == 30.0


def test_the_time_noted_before_a_kill_is_counted(monkeypatch):
    monkeypatch.setattr(results, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    (scratch("02/mlp", CONFIG) / "seconds.txt").write_text("1234.5")
    assert store(monkeypatch, Compute()).attrs["wall_seconds"] == 1234.5


# --- where results live -------------------------------------------------------------------------


def test_the_folder_is_that_of_the_book_around(tmp_path, monkeypatch):
    monkeypatch.delenv("LANDSCAPE_RESULTS")
    book = tmp_path / "clone" / "book"
    (book / "results").mkdir(parents=True)
    (book / "references.bib").touch()
    for place in (book, book / "results", tmp_path / "clone"):
        monkeypatch.chdir(place)
        assert results.folder() == book / "results"


def test_without_a_book_around_it_is_that_of_the_checkout_or_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("LANDSCAPE_RESULTS")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    installed = tmp_path / "site" / "landscape_lib" / "results.py"
    monkeypatch.setattr(results, "__file__", str(installed))
    with pytest.raises(FileNotFoundError, match=r"no folder of stored results .*LANDSCAPE_RESULTS"):
        results.folder()
    (tmp_path / "site" / "book" / "results").mkdir(parents=True)
    (tmp_path / "site" / "book" / "references.bib").touch()
    assert results.folder() == tmp_path / "site" / "book" / "results"


@pytest.mark.parametrize("value", [None, {"a": 1}])
def test_what_cannot_be_written_is_kept_elsewhere(value, monkeypatch):
    """CASES K4: an attribute that netCDF does not know, found after all the work."""
    unwritable = xr.Dataset({"loss": ("alpha", [1.0, 2.0])}, attrs={"data": value})
    with pytest.raises(TypeError, match="attr 'data'") as raised:
        store(monkeypatch, lambda: unwritable)
    (note,) = raised.value.__notes__
    kept = pickle.loads(Path(note.partition("kept in ")[2]).read_bytes())
    assert kept.loss.equals(unwritable.loss)
