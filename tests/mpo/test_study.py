"""The study of random masks: arms that differ in batch norm alone, fits that are done once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import xarray as xr

import landscape_lib as ll
from landscape_lib.mpo import study
from landscape_lib.mpo.study import MaskFit, run
from landscape_lib.weights import weights_of

SMALL = MaskFit(0.5, "none", 0, size=5, iterations=4, cells=3, batch_size=4, images=20, width=0.25)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(study, "RECORDS", 2)


def load(split):
    return ll.data.load("digits", split, samples=40, device="cpu")


def test_arms_differ_in_batch_norm_alone():
    plain, normalised = (replace(SMALL, norm=norm).network() for norm in ("none", "mean-zero"))
    left = {n: str(module) for n, module in normalised.named_children() if not n.startswith("bn")}
    assert {n: str(module) for n, module in plain.named_children()} == left
    with_bn = weights_of(normalised)
    assert {name: w.shape for name, w in weights_of(plain).items()} == {
        name: w.shape for name, w in with_bn.items() if not name.startswith("bn")
    }


def test_all_arms_draw_the_same_mask():
    masks = [replace(SMALL, norm=norm).mask() for norm in study.NORMS]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert not np.array_equal(masks[0], replace(SMALL, seed=1).mask())


def test_a_fit_is_measured_as_its_map_is():
    """A row of the table against the map that it holds."""
    row = run([replace(SMALL, norm="mean-zero")], load).isel(fit=0)
    low = row.pattern.values.astype(bool)
    for split in ("train", "test"):
        accuracy = row.accuracy.sel(split=split).values
        gap = accuracy[low].mean() - accuracy[~low].mean()
        assert float(row.gap.sel(split=split)) == pytest.approx(gap, abs=1e-6)
    assert np.array_equal(row.policy_loss.sel(policy="batch"), row.loss.sel(split="test"))
    assert np.isfinite(row.policy_loss).all()
    assert (row.norm, row.iterations, row.sizes["record"]) == ("mean-zero", 4, 2)


def test_finished_fits_are_not_done_again(tmp_path, monkeypatch):
    grid = [SMALL, replace(SMALL, norm="standard"), replace(SMALL, fill=0.4)]
    first = run(grid[:2], load, tmp_path)
    done = []
    fit = study.fit
    monkeypatch.setattr(study, "fit", lambda *a, **k: (done.append(k["seed"]), fit(*a, **k))[1])
    whole = run(grid, load, tmp_path)
    assert len(done) == 1
    xr.testing.assert_identical(whole.isel(fit=slice(2)).drop_attrs(), first.drop_attrs())
    assert np.isnan(whole.policy_loss.isel(fit=0, policy=1)).all()  # no batch norm, no policy


@pytest.mark.parametrize("field", [field.name for field in fields(MaskFit)])
def test_a_fit_of_other_settings_is_not_taken_for_it(field):
    """What is kept under a name is found again by these settings only."""
    new = {"norm": "standard", "pool": (2,), "fill": 0.5 + 1e-9, "frame": True}
    value = new[field] if field in new else getattr(SMALL, field) + 1
    other = replace(SMALL, **{field: value})
    assert other.name != SMALL.name and replace(SMALL).name == SMALL.name


def test_threads_give_the_same_table():
    grid = [replace(SMALL, seed=seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as executor:
        shared = run(grid, load, executor=executor)
    alone = run(grid, load)
    xr.testing.assert_identical(shared.drop_vars("seconds"), alone.drop_vars("seconds"))


def test_a_damaged_outcome_is_refused(tmp_path):
    run([SMALL], load, tmp_path)
    (file,) = tmp_path.glob("*.nc")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=file.name):
        run([SMALL], load, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("norm", "layer"), ("fill", 1.5), ("fill", "0.5"), ("seed", -1), ("seed", 1.0)],
        *[("iterations", 0), ("iterations", "10"), ("cells", 0), ("batch_size", 0)],
        *[("images", 0), ("images", 2.5), ("lr", -1), ("tau", 0), ("size", 0)],
    ],
)
def test_what_cannot_be_fitted_is_named_at_once(field, value):
    """A bad fit at the end of a grid would be met after hours."""
    with pytest.raises((TypeError, ValueError), match=f"^{field}: .*{value!r}"):
        replace(SMALL, **{field: value})


def test_a_mask_of_one_kind_is_refused_at_once():
    with pytest.raises(ValueError, match="LOW and HIGH cells, got 25 that are HIGH"):
        replace(SMALL, fill=0)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "grid: expected at least one"),
        ([SMALL, replace(SMALL, size=6)], "grid: expected fits of one size"),
        ([SMALL, replace(SMALL, iterations=1)], "grid: expected .* as many rows"),
        ([SMALL, replace(SMALL, pool=(9,))], "pool: "),
    ],
)
def test_fits_that_make_no_table_are_refused_before_work(grid, message):
    with pytest.raises(ValueError, match=message):
        run(grid, lambda split: pytest.fail("work has begun"))


def test_the_history_covers_the_whole_fit():
    found = run([replace(SMALL, iterations=3)], load).isel(fit=0)
    assert found.step.values.tolist() == [2, 3]


def test_a_fit_that_fails_is_named():
    diverging = replace(SMALL, lr=1e30)
    with pytest.raises(FloatingPointError) as caught:
        run([SMALL, diverging], load)
    assert diverging.name in caught.value.__notes__[-1]


def test_a_place_in_the_home_folder_holds_all_of_a_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run([SMALL], load, "~/fits")
    assert {file.suffix for file in (tmp_path / "fits").iterdir()} == {".nc", ".pt"}


def test_workers_use_one_thread(monkeypatch):
    """A forked one hangs for ever with as many threads as its parent had."""
    before, seen, fit = torch.get_num_threads(), [], study.fit
    monkeypatch.setattr(
        study, "fit", lambda *a, **k: (seen.append(torch.get_num_threads()), fit(*a, **k))[1]
    )
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as executor:
            run([SMALL], load, executor=executor)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
