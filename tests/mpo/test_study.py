"""The study of random masks: arms that differ in batch norm alone, fits that are done once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
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


def test_unknown_norms_are_named():
    with pytest.raises(ValueError, match="norm: .*'layer'"):
        run([replace(SMALL, norm="layer")], load)
