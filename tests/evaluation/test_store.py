"""The store of a surface and its journal: what was written is there, and damage is found."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from landscape_lib.evaluation import store as surface_store
from landscape_lib.evaluation.journal import Journal
from landscape_lib.evaluation.store import StoreMismatch, SurfaceStore
from landscape_lib.files import atomic_path

POINTS, VARIABLES = 9, ("loss", "samples")
OWN = {"model": "a", "data": "b"}
CHUNKS = [np.array([0, 1, 2]), np.array([5]), np.array([4, 3])]
VALUES = np.random.default_rng(0).normal(size=(POINTS, len(VARIABLES)))
VALUES[1] = np.nan, np.inf


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "surface.nc"  # missing parents are made


@pytest.fixture
def journal(path):
    return path.with_name("surface.nc.journal")


def opened(path, fingerprint=OWN, variables=VARIABLES):
    return SurfaceStore(path, fingerprint, POINTS, variables)


def write(store, chunks=CHUNKS):
    for chunk in chunks:
        store.write(chunk, VALUES[chunk])


def killed(store):
    """Leave a store as a killed process does, but for the warning about an open file."""
    store._journal.close()


def assert_holds(store, chunks):
    done = np.isin(np.arange(POINTS), np.concatenate([[-1], *chunks]))
    assert store.done.tolist() == done.tolist()
    assert store.values[done].tobytes() == VALUES[done].tobytes()
    assert np.isnan(store.values[~done]).all()


@pytest.fixture
def ends(path, journal):
    """Write the chunks without a save; return the size of the journal after each."""
    store, sizes = opened(path), []
    for chunk in CHUNKS:
        write(store, [chunk])
        sizes.append(journal.stat().st_size)
    killed(store)
    return sizes


def test_what_was_written_is_there_before_the_first_save(path, ends):
    assert not path.exists()
    assert_holds(opened(path), CHUNKS)


def test_a_torn_record_is_computed_again_and_the_others_are_not(path, journal, ends):
    whole = journal.read_bytes()
    assert len(whole) == ends[-1]
    for size in range(len(whole) + 1):  # a kill can leave any part of what was being written
        journal.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)
        store = opened(path)
        assert_holds(store, CHUNKS[:kept])
        assert journal.read_bytes() == whole[:size]  # reading changes nothing
        write(store, CHUNKS[kept:])
        killed(store)
        assert journal.read_bytes() == whole  # torn bytes are written over
        assert_holds(opened(path), CHUNKS)
    with opened(path):
        pass
    assert not journal.exists()
    assert_holds(opened(path), CHUNKS)


def test_a_flipped_bit_is_found_wherever_it_is(path, journal, ends):
    whole = journal.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            journal.write_bytes(flipped)
            with pytest.raises(StoreMismatch):
                opened(path)
            assert journal.read_bytes() == flipped
    journal.write_bytes(whole[: ends[1]] + b"\x01" + whole[ends[1] + 1 :])
    with pytest.raises(StoreMismatch, match=r"\.journal is damaged at byte \d+; .* untouched"):
        opened(path)


@pytest.mark.parametrize(
    ("fingerprint", "variables", "said"),
    [
        (OWN | {"data": "c"}, VARIABLES, "belongs to another computation: data differ"),
        (OWN | {"seed": "0"}, VARIABLES, "belongs to another computation: seed differ"),
        (OWN, ("loss", "accuracy"), "belongs to another computation: variables differ"),
    ],
)
def test_a_foreign_journal_is_refused_and_untouched(
    path, journal, ends, fingerprint, variables, said
):
    whole = journal.read_bytes()
    with pytest.raises(StoreMismatch, match=rf"surface\.nc\.journal {said}.*; .* untouched"):
        opened(path, fingerprint, variables)
    assert journal.read_bytes() == whole and not path.exists()
    journal.unlink()
    with opened(path, fingerprint, variables) as store:  # it has a store of its own already
        write(store)
    stored = path.read_bytes()
    journal.write_bytes(whole)
    with pytest.raises(StoreMismatch, match=rf"surface\.nc\.journal {said}"):
        opened(path, fingerprint, variables)
    assert journal.read_bytes() == whole and path.read_bytes() == stored


@pytest.mark.parametrize("content", [b"dear diary\n", b'{"a": 1}\n', b"[]\n", b"\x00" * 400])
def test_what_is_no_journal_is_refused_and_untouched(path, journal, content):
    path.parent.mkdir()
    journal.write_bytes(content)
    with pytest.raises(StoreMismatch, match="cannot be read as the journal"):
        opened(path)
    assert journal.read_bytes() == content


def test_a_kill_between_a_save_and_the_end_of_the_journal_is_harmless(path, journal, monkeypatch):
    store = opened(path)
    write(store, CHUNKS[:2])
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        store.save()
    killed(store)
    assert path.exists() and journal.exists()
    with opened(path) as again:
        assert_holds(again, CHUNKS[:2])
        write(again, CHUNKS[2:])
    assert not journal.exists()
    assert_holds(opened(path), CHUNKS)


def test_until_a_save_is_in_place_the_journal_stays(path, journal, monkeypatch):
    def fails(*paths):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="full"), opened(path) as store:
            write(store)
    assert list(path.parent.iterdir()) == [journal]
    assert_holds(opened(path), CHUNKS)


def test_a_save_makes_the_journal_empty_and_the_next_chunk_begins_another(
    path, journal, monkeypatch
):
    store = opened(path)
    write(store, CHUNKS[:1])
    monkeypatch.setattr(surface_store, "SECONDS_BETWEEN_SAVES", 0.0)
    write(store, CHUNKS[1:2])
    assert path.exists() and not journal.exists()
    monkeypatch.undo()
    write(store, CHUNKS[2:])
    with xr.open_dataset(path, engine="h5netcdf") as saved:
        assert saved.done.values.sum() == 4
    killed(store)
    assert journal.exists()
    assert_holds(opened(path), CHUNKS)


def test_one_file_is_left_when_a_run_ends_however_it_ends(path):
    with pytest.raises(KeyboardInterrupt), opened(path) as store:
        write(store, CHUNKS[:1])
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == [path]
    with opened(path) as store:
        write(store, CHUNKS[1:])
    assert list(path.parent.iterdir()) == [path]
    before = path.stat().st_mtime_ns
    with opened(path) as store:
        assert_holds(store, CHUNKS)
    assert path.stat().st_mtime_ns == before  # nothing new, nothing written


@pytest.mark.skipif(os.name != "posix", reason="asks whether a process is there")
def test_what_a_killed_save_left_is_removed_and_nothing_else(path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with atomic_path(path) as temporary:
        temporary.touch()
        left = temporary.with_name(temporary.name.replace(str(os.getpid()), str(ended.pid)))
        left.touch()
    path.unlink()
    others = [
        f".surface.nc.{os.getppid()}.tmp",  # of a process that is running
        ".surface.nc.notes.tmp",
        ".surface.nc.tmp",
        f".surface.nc.{10**30}.tmp",
        ".other.nc.999999999.tmp",
    ]
    for name in others:
        (path.parent / name).touch()
    with opened(path):
        pass
    assert {file.name for file in path.parent.iterdir()} == set(others)


def test_values_that_were_not_written_are_refused(path):
    with opened(path) as store:
        write(store)
    with xr.open_dataset(path, engine="h5netcdf") as kept:
        changed = kept.load()
    changed["values"][0, 0] = np.nan
    changed.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(StoreMismatch, match="not those that were written"):
        opened(path)


@pytest.mark.parametrize("folder", ["a file/there", "a file"])
def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(tmp_path, folder):
    (tmp_path / "a file").touch()
    with pytest.raises(OSError, match="store: .*a file.* cannot be written to"):
        with opened(tmp_path / folder / "surface.nc"):
            pass
