"""Files are whole or not there; paths are tried before work; a flipped bit is found."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from landscape_lib import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"  # missing parents are made
    with files.atomic_path(path) as temporary:
        temporary.write_text("old")
        assert not path.exists() and temporary.parent == path.parent
    with pytest.raises(ZeroDivisionError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with pytest.raises(FileNotFoundError), files.atomic_path(path):
        pass  # nothing was written
    assert path.read_text() == "old"
    with files.atomic_path(str(path)) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]  # nothing is left behind


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path):
    path = tmp_path / "file.txt"
    code = (
        "import os, signal, sys\n"
        "from landscape_lib.runtime import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode != 0
    assert path.read_text() == "old"
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("given", ["", "s3::x.nc", "s3://x/y.nc", "a\0b"])
def test_what_is_no_path_of_this_machine_is_refused(given):
    with pytest.raises(ValueError, match="store: expected the path of a file on this machine"):
        files.local_path("store", given)


@pytest.mark.skipif(os.name != "posix", reason="of POSIX")
@pytest.mark.parametrize("given", ["/dev/null", "/dev/zero", "~nobody of this name/x.nc"])
def test_what_is_no_file_is_refused_before_it_is_read(given):
    with pytest.raises(ValueError, match="store: expected the path of a file, got"):
        files.local_path("store", given)


def test_a_path_is_expanded_and_its_folder_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("store", "~/new/x.nc") == tmp_path / "new" / "x.nc"
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(IsADirectoryError, match="store: .* folder"):
        files.local_path("store", tmp_path / "new")
    with pytest.raises(TypeError, match="store: .* got int"):
        files.local_path("store", 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="store: .*file"):
        files.local_path("store", tmp_path / "file" / "x.nc")


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "x.nc"
    files.write(path, b"old")
    code = (
        "import resource, sys\n"
        "from landscape_lib import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    files.write(sys.argv[1], bytes(5000))\n"
        "except OSError as error:\n"
        "    print(error.__notes__[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "what it held before is safe" in done.stdout
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_every_flipped_bit_and_every_cut_is_found():
    content = files.sealed(bytes(range(200)))
    assert files.unsealed(content) == bytes(range(200))
    source = np.random.default_rng(0)
    for bit in source.choice(8 * len(content), 300, replace=False):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="damaged"):
            files.unsealed(bytes(flipped))
    for cut in (0, 1, 63, 64, 263):
        with pytest.raises(ValueError, match="damaged"):
            files.unsealed(content[:cut])


def test_what_a_dead_process_of_this_machine_left_goes_and_anothers_stays(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    left = tmp_path / f".x.nc.{files._HOST}.{int(dead.stdout)}.tmp"
    alive = tmp_path / f".x.nc.{files._HOST}.{os.getpid()}.tmp"
    elsewhere = tmp_path / f".x.nc.another.{int(dead.stdout)}.tmp"
    for path in (left, alive, elsewhere):
        path.write_text("half")
    files.remove_abandoned(tmp_path / "x.nc")
    assert not left.exists() and alive.exists() and elsewhere.exists()


def test_texts_of_several_files_stay_whole_in_one():
    def stored(name: str) -> xr.Dataset:
        content = io.BytesIO(files.netcdf(xr.Dataset({"name": name})))
        return xr.load_dataset(content, engine="h5netcdf")

    both = xr.concat([stored("none"), stored("mean-zero")], "fit")
    again = xr.load_dataset(io.BytesIO(files.netcdf(both)), engine="h5netcdf")
    assert again.name.values.tolist() == ["none", "mean-zero"]
