"""Data sets are found where they are, read completely or refused, and never downloaded here."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from landscape_lib import data, runtime
from landscape_lib.data_files import FACTS

load = partial(data.load, device="cpu")
SYSTEM_FOLDER = data.SYSTEM_FOLDER
CIFAR = FACTS["cifar10"].classes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: no data sets, an empty cache, no network. Returns a folder for data."""

    def offline(self: object) -> None:
        raise URLError("the test machine is offline")

    for reader in (torchvision.datasets.FashionMNIST, torchvision.datasets.CIFAR10):
        monkeypatch.setattr(reader, "download", offline)
    monkeypatch.setattr(data, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(
    folder: Path, split: str, images: np.ndarray, labels: np.ndarray, compress: bool = False
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "train" if split == "train" else "t10k"
    for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
        sizes = struct.pack(f">{values.ndim}I", *values.shape)
        content = bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()
        path = folder / f"{prefix}-{kind}-ubyte{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(content) if compress else content)


def fashion(folder: Path, count: int = 20, compress: bool = False) -> None:
    """Write both splits, as torchvision expects to find them."""
    labels = np.arange(count, dtype=np.uint8) % 10
    for split in ("train", "test"):
        write_idx(folder, split, random_bytes(count, 28, 28), labels, compress)


def batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, label: Callable[[int], float] = int
) -> None:
    """Write CIFAR-10's files, and let torchvision expect their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, object] = {"batches.meta": {"label_names": list(CIFAR)}}
    for i, name in enumerate(["test_batch", *(f"data_batch_{n}" for n in range(1, 6))]):
        labels = [label(n) for n in range(10)]
        contents[name] = {"data": random_bytes(10, 3072, seed=i), "labels": labels}
    sums = []
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    CIFAR10 = torchvision.datasets.CIFAR10
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[0][1]})
    monkeypatch.setattr(CIFAR10, "test_list", sums[1:2])
    monkeypatch.setattr(CIFAR10, "train_list", sums[2:])


def tree(folder: Path, per_class: int = 3, suffix: str = "png") -> None:
    """Write images whose first pixel holds 10 x class + number: (class, number) of each image."""
    for label, name in enumerate(CIFAR):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.full((32, 32, 3), 10 * label + i, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:04}.{suffix}")


def pixel_values(dataset: data.Dataset) -> torch.Tensor:
    """The stored bytes, with the normalisation undone by hand."""
    mean = torch.tensor(dataset.mean)[:, None, None]
    std = torch.tensor(dataset.std)[:, None, None]
    return ((dataset.x * std + mean) * FACTS[dataset.name].white).round().to(torch.uint8)


# --- digits, and what every data set offers -------------------------------------------------


def test_digits_split_is_complete_disjoint_fixed_and_stratified() -> None:
    from sklearn.datasets import load_digits

    train, test = load("digits", "train"), load("digits", "test")
    assert (train.x.shape, test.x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    together = torch.cat([pixel_values(train), pixel_values(test)]).flatten(1)
    original = torch.from_numpy(load_digits().data).to(torch.uint8)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, original.tolist()))
    share = test.y.bincount() / torch.cat([train.y, test.y]).bincount()
    assert ((share - 0.2).abs() < 0.01).all()
    assert torch.equal(test.x, load("digits", "test").x)
    assert train.source == "scikit-learn digits"


def test_digits_normalisation_constants_are_those_of_the_train_split() -> None:
    pixels = load("digits", "train", dtype=torch.float64).images().double()
    facts = FACTS["digits"]
    assert round(pixels.mean().item(), 4) == facts.mean[0]
    assert round(pixels.std(correction=0).item(), 4) == facts.std[0]


@pytest.mark.parametrize(
    "dtype", [None, torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
def test_images_have_the_dtype_asked_for_and_labels_are_int64(dtype: torch.dtype | None) -> None:
    dataset = load("digits", "test", dtype=dtype)
    assert dataset.x.dtype == (dtype or torch.get_default_dtype())
    assert dataset.y.dtype == torch.int64
    exact = load("digits", "test", dtype=torch.float64)
    precision = torch.finfo(dataset.x.dtype).eps
    torch.testing.assert_close(dataset.x.double(), exact.x, rtol=2 * precision, atol=precision)


def test_images_undo_the_normalisation() -> None:
    from sklearn.datasets import load_digits

    pictures = torch.cat([load("digits", split).images() for split in ("train", "test")])
    assert pictures.shape == (1797, 8, 8)
    assert pictures.min() == 0 and pictures.max() == 1
    assert pictures.mean().item() == pytest.approx(load_digits().images.mean() / 16, abs=1e-6)


def test_batches_hold_every_image_once_with_its_label() -> None:
    dataset = load("digits", "test")
    index = dict(zip(map(tuple, dataset.x.flatten(1).tolist()), dataset.y.tolist(), strict=True))
    for shuffle in (False, True):
        parts = list(dataset.batches(100, shuffle, torch.Generator().manual_seed(0)))
        assert [len(y) for _, y in parts] == [100, 100, 100, 60]
        x, y = (torch.cat(part) for part in zip(*parts, strict=True))
        assert torch.equal(x, dataset.x) is not shuffle
        assert sorted(map(tuple, x.flatten(1).tolist())) == sorted(index)
        assert [index[tuple(row)] for row in x.flatten(1).tolist()] == y.tolist()


def test_shuffling_draws_from_the_given_generator_only() -> None:
    dataset = load("digits", "test")
    generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    first = torch.cat([y for _, y in dataset.batches(64, shuffle=True, generator=generator)])
    second = torch.cat([y for _, y in dataset.batches(64, shuffle=True, generator=generator)])
    assert torch.equal(torch.get_rng_state(), before)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, dataset.y[order])
    assert not torch.equal(first, second)


def test_subset_is_fixed_nested_and_without_replacement() -> None:
    dataset = load("digits", "train")
    before = torch.get_rng_state()
    small, large = dataset.subset(50), dataset.subset(200)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(large.x[:50], small.x) and torch.equal(large.y[:50], small.y)
    assert len(large.x.flatten(1).unique(dim=0)) == 200
    assert not torch.equal(dataset.subset(50, seed=1).y, small.y)
    loaded = load("digits", "train", samples=50)
    assert torch.equal(loaded.x, small.x) and torch.equal(loaded.y, small.y)
    everything = dataset.subset(len(dataset))
    assert torch.equal(everything.y.bincount(), dataset.y.bincount())


def test_to_changes_dtype_and_keeps_what_is_known() -> None:
    dataset = load("digits", "test")
    double = dataset.to(dtype=torch.float64, device="cpu")
    assert double.x.dtype == torch.float64 and double.y.dtype == torch.int64
    assert (double.source, double.classes) == (dataset.source, dataset.classes)
    assert dataset.x.dtype == torch.float32


def test_data_go_to_the_best_device_unless_told() -> None:
    """DESIGN section 1: tensors on the device."""
    best = runtime.pick_device(None)
    for device, expected in ((None, best.type), ("cpu", "cpu")):
        dataset = data.load("digits", "test", device=device)
        assert dataset.x.device.type == dataset.y.device.type == expected
        assert dataset.images().device.type == "cpu"
        assert dataset.subset(5).y.device.type == expected
        batch, _ = next(iter(dataset.batches(5, shuffle=True, generator=torch.Generator())))
        assert batch.device.type == expected


def test_the_default_device_of_the_caller_does_not_matter(home: Path) -> None:
    tree(home / "test")
    with torch.device("meta"):
        for name, count in (("digits", 360), ("cifar10", 30)):
            dataset = load(name, "test")
            assert len(dataset) == count and dataset.x.device.type == "cpu"
            assert torch.equal(load(name, "test", samples=5).x, dataset.subset(5).x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load("mnist", "test"), "name: expected one of 'digits', .* got 'mnist'"),
        (lambda: load("digits", "val"), "split: expected 'train' or 'test', got 'val'"),
        (lambda: load("digits", "test", samples=0), "samples: expected at least 1, got 0"),
        (lambda: load("digits", "test", samples=361), "samples: expected 1 to 360 .* got 361"),
        (lambda: load("digits", "test", samples="5"), "samples: expected at least 1, got '5'"),
        (lambda: load("digits", "test", samples=True), "samples: expected at least 1, got True"),
        (lambda: load("digits", "test", dtype=torch.int8), "dtype: .* got torch.int8"),
        (
            lambda: load("digits", "test", dtype="float32"),
            "dtype: .*, got 'float32' .torch.float32",
        ),
        (lambda: load("digits", "test", device="nowhere"), "device: 'nowhere'"),
        (lambda: load("digits", "test").subset(-1), "samples: expected 1 to 360"),
        (lambda: load("digits", "test").batches(0), "size: expected at least 1 .* got 0"),
        (lambda: load("digits", "test").batches(8, True), "generator: .* got none"),
        (lambda: load("digits", "test").to(dtype=torch.int64), "dtype: .* got torch.int64"),
    ],
)
def test_bad_input_is_named_before_any_work(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- where data sets are searched for -------------------------------------------------------


@pytest.mark.parametrize("layout", ["FashionMNIST/raw", "fashion-mnist"])
def test_fashion_mnist_in_the_layouts_of_torchvision_and_debian(home: Path, layout: str) -> None:
    fashion(home / layout, compress=layout == "fashion-mnist")
    dataset = load("fashion_mnist", "test")
    assert dataset.x.shape == (20, 1, 28, 28)
    assert np.array_equal(pixel_values(dataset)[:, 0].numpy(), random_bytes(20, 28, 28))
    assert dataset.y.tolist() == [i % 10 for i in range(20)]
    assert dataset.classes[0] == "T-shirt/top" and dataset.classes[9] == "Ankle boot"
    assert dataset.source == "Fashion-MNIST, idx files (20 of 10,000 images)"
    with pytest.raises(ValueError, match="^samples: expected 1 to 20 .* got 21"):
        load("fashion_mnist", "test", samples=21)


def test_cifar10_in_torchvision_layout(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches(home / "cifar-10-batches-py", monkeypatch)
    dataset = load("cifar10", "train")
    expected = np.concatenate([random_bytes(10, 3, 32, 32, seed=i) for i in range(1, 6)])
    assert np.array_equal(pixel_values(dataset).numpy(), expected)
    assert dataset.x.is_contiguous()
    assert dataset.y.tolist() == list(range(10)) * 5
    assert dataset.source == "CIFAR-10, Python batch files (50 of 50,000 images)"
    assert dataset.images().shape == (50, 32, 32, 3)


@pytest.mark.parametrize("parent", ["", "cifar10"])
def test_cifar10_as_image_tree(home: Path, parent: str) -> None:
    tree(home / parent / "test")
    dataset = load("cifar10", "test")
    values = pixel_values(dataset)[:, 0, 0, 0].tolist()
    assert sorted(values) == sorted(10 * label + i for label in range(10) for i in range(3))
    assert [value // 10 for value in values] == dataset.y.tolist()
    assert len(set(dataset.y[:10].tolist())) > 3, "not sorted by class"
    assert dataset.source == "CIFAR-10, ImageFolder tree of PNG files (30 of 10,000 images)"
    some, chosen = load("cifar10", "test", samples=7, seed=3), dataset.subset(7, seed=3)
    assert torch.equal(some.x, chosen.x) and torch.equal(some.y, chosen.y)
    assert some.source == dataset.source
    with pytest.raises(ValueError, match="^samples: expected 1 to 30 .* got 31"):
        load("cifar10", "test", samples=31)


def test_image_folders_are_matched_by_class_name(home: Path) -> None:
    for i, name in enumerate(FACTS["fashion_mnist"].classes):
        folder = home / "train" / name.lower().replace("/", "-").replace(" ", "_")
        folder.mkdir(parents=True)
        Image.fromarray(np.full((28, 28), i, dtype=np.uint8)).save(folder / "a.png")
    dataset = load("fashion_mnist", "train")
    assert torch.equal(pixel_values(dataset)[:, 0, 0, 0].long(), dataset.y)


def test_cifar10_class_order_is_torchvisions() -> None:
    """torchvision's labels follow ``batches.meta``, which is alphabetical, as ImageFolder is."""
    assert sorted(CIFAR) == list(CIFAR)
    assert (CIFAR[0], CIFAR[1], CIFAR[9]) == ("airplane", "automobile", "truck")


def test_search_order(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LANDSCAPE_DATA, then the system, then the cache, then torchvision's download."""

    def download(self: torchvision.datasets.FashionMNIST) -> None:
        if not Path(self.raw_folder).is_dir():
            fashion(Path(self.raw_folder), count=14)

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", download)
    cached = tmp_path / "cache" / "landscape_lib" / "FashionMNIST" / "raw"
    system = tmp_path / "system" / "fashion-mnist"

    downloaded = load("fashion_mnist", "test")
    assert (len(downloaded), downloaded.source.split(" (")[0]) == (14, "torchvision download")
    assert cached.is_dir()
    fashion(cached, count=13)
    assert len(load("fashion_mnist", "test")) == 13
    fashion(system, count=12, compress=True)
    assert len(load("fashion_mnist", "test")) == 12
    assert load("fashion_mnist", "test").source.startswith("Debian dataset-fashion-mnist")
    fashion(home / "FashionMNIST" / "raw", count=11)
    assert len(load("fashion_mnist", "test")) == 11
    monkeypatch.delenv("LANDSCAPE_DATA")
    assert len(load("fashion_mnist", "test")) == 12


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_nothing_found_is_one_error_that_names_every_way(name: str, home: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(name, "train")
    message = str(caught.value)
    for part in (
        *("LANDSCAPE_DATA", f"{home}, which does not hold it", FACTS[name].folders[0]),
        *("train/<class>/", "system package", "cache", "torchvision downloads it", "is offline"),
        *(str(data.cache_folder()), 'load("digits"'),
    ):
        assert part in message
    assert ("dataset-fashion-mnist" in message) is (name == "fashion_mnist")


def test_torchvision_is_needed_for_its_own_files_only(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert len(load("digits", "test")) == 360
    with pytest.raises(FileNotFoundError, match="(?s)was not found.*torchvision: needed"):
        load("fashion_mnist", "test")
    tree(home / "test")
    assert len(load("cifar10", "test")) == 30
    fashion(home / "FashionMNIST" / "raw")
    with pytest.raises(ImportError, match="torchvision: needed to read.*pip install torchvision"):
        load("fashion_mnist", "test")


def test_the_library_runs_without_torchvision() -> None:
    program = (
        "import sys; sys.modules['torchvision'] = None; import landscape_lib as ll; "
        "ll.data.load('digits', 'test', device='cpu')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_tree_of_another_data_set_is_passed_over(home: Path) -> None:
    """STL-10 shares eight class names with CIFAR-10 and has two of its own."""
    tree(home / "train")
    for old, new in (("automobile", "car"), ("frog", "monkey")):
        (home / "train" / old).rename(home / "train" / new)
    with pytest.raises(FileNotFoundError):
        load("cifar10", "train")


# --- damaged files --------------------------------------------------------------------------


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


RAW, FILES = "FashionMNIST/raw", "cifar-10-batches-py"
IMAGES, LABELS = f"{RAW}/t10k-images-idx3-ubyte", f"{RAW}/t10k-labels-idx1-ubyte"


def cut_idx(home: Path, keep: float) -> str:
    fashion(home / RAW)
    cut(home / IMAGES, keep)
    return f"{RAW}: expected the files of torchvision's FashionMNIST, found them .*truncated"


def many_dimensions(home: Path) -> str:
    fashion(home / RAW)
    (home / IMAGES).write_bytes(bytes([0, 0, 8, 255]) + bytes([0, 0, 0, 1] * 255) + b"x")
    return f"{RAW}: .*corrupt: AssertionError"


def cut_gzip(home: Path) -> str:
    fashion(home / "fashion-mnist", compress=True)
    cut(home / "fashion-mnist" / "t10k-images-idx3-ubyte.gz", 0.9)
    return "fashion-mnist: .*truncated or corrupt"


def damage_label_count(home: Path) -> str:
    fashion(home / RAW)
    write_idx(home / RAW, "test", random_bytes(20, 28, 28), np.zeros(19, np.uint8))
    return rf"{RAW}: .*images \(20, 1, 28, 28\) and labels \(19,\)"


def damage_label_value(home: Path) -> str:
    fashion(home / RAW)
    write_idx(home / RAW, "test", random_bytes(20, 28, 28), np.full(20, 10, np.uint8))
    return f"{RAW}: .*labels from 10 to 10"


def damage_image_size(home: Path) -> str:
    fashion(home / RAW)
    write_idx(home / RAW, "test", random_bytes(20, 8, 8), np.zeros(20, np.uint8))
    return rf"{RAW}: .*images \(20, 1, 8, 8\)"


def remove_labels(home: Path) -> str:
    fashion(home / RAW)
    (home / LABELS).unlink()
    return f"{RAW}: .*missing"


def plant_code(home: Path) -> str:
    (home / FILES).mkdir()
    (home / FILES / "test_batch").write_bytes(pickle.dumps(os.getcwd))
    return f"{FILES}: expected the files of torchvision's CIFAR10, .*not found or corrupted"


def cut_image(home: Path) -> str:
    tree(home / "test", suffix="jpg")
    cut(home / "test" / "cat" / "0001.jpg", 0.6)
    return "expected a picture, a whole PNG or JPEG file, got .*0001.jpg': .*[Tt]runcated"


def resize_image(home: Path) -> str:
    tree(home / "test")
    Image.new("RGB", (31, 32)).save(home / "test" / "cat" / "0001.png")
    return "0001.png': expected 32 x 32 pixels, found 31 x 32"


def remove_class(home: Path) -> str:
    tree(home / "test")
    shutil.rmtree(home / "test" / "cat")
    return "test: expected one folder for each of airplane, .*, found airplane, .*bird, deer"


def double_class(home: Path) -> str:
    tree(home / "test")
    shutil.copytree(home / "test" / "cat", home / "test" / "Cat")
    return "test: expected one folder for each of .*, found Cat, .*, cat"


def link_class_in_a_circle(home: Path) -> str:
    remove_class(home)
    (home / "test" / "cat").symlink_to("cat")
    return "test: expected one folder for each of"


def link_image_in_a_circle(home: Path) -> str:
    tree(home / "test")
    (home / "test" / "cat" / "0003.png").symlink_to("0003.png")
    return "0003.png': .*symbolic links"


def other_format(home: Path) -> str:
    """PIL would start Ghostscript to read an EPS file, whatever it is called."""
    tree(home / "test")
    Image.new("RGB", (32, 32)).save(home / "test" / "cat" / "0001.png", format="EPS")
    return "0001.png': cannot identify image file"


def decompression_bomb(home: Path) -> str:
    """A header that promises 10^10 pixels."""
    tree(home / "test")
    path = home / "test" / "cat" / "0001.png"
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">2I", 100_000, 100_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    return "0001.png': .*decompression bomb"


def empty_class(home: Path) -> str:
    tree(home / "test")
    shutil.rmtree(home / "test" / "cat")
    (home / "test" / "cat").mkdir()
    return "cat: expected .jpg, .jpeg, .png files, found none"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("fashion_mnist", partial(cut_idx, keep=0.9)),
        ("fashion_mnist", partial(cut_idx, keep=0.0)),
        ("fashion_mnist", many_dimensions),
        ("fashion_mnist", cut_gzip),
        ("fashion_mnist", damage_label_count),
        ("fashion_mnist", damage_label_value),
        ("fashion_mnist", damage_image_size),
        ("fashion_mnist", remove_labels),
        ("cifar10", plant_code),
        ("cifar10", cut_image),
        ("cifar10", resize_image),
        ("cifar10", remove_class),
        ("cifar10", double_class),
        ("cifar10", empty_class),
        ("cifar10", link_class_in_a_circle),
        ("cifar10", link_image_in_a_circle),
        ("cifar10", other_format),
        ("cifar10", decompression_bomb),
    ],
)
def test_a_damaged_file_is_named(name: str, damage: Callable[[Path], str], home: Path) -> None:
    message = damage(home)
    with pytest.raises(ValueError, match=message):
        load(name, "test")


@pytest.mark.parametrize("value", [0.7, 10, -1], ids=str)
def test_labels_of_cifar_are_whole_numbers_in_range(
    value: float, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even in files with the right checksums."""
    batches(home / FILES, monkeypatch, lambda n: value if n == 3 else n)
    found = {0.7: "torch.float32 labels", 10: "to 10", -1: "from -1"}[value]
    with pytest.raises(ValueError, match=f"{FILES}: .*{found}"):
        load("cifar10", "test")


def test_one_missing_batch_is_noticed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches(home / FILES, monkeypatch)
    (home / FILES / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=f"{FILES}: .*missing"):
        load("cifar10", "train")


def test_links_to_folders_are_not_followed(home: Path) -> None:
    tree(home / "test")
    for name in ("cat", "dog"):
        (home / "test" / name / "up").symlink_to("..")
    assert len(load("cifar10", "test")) == 30


def test_16_bit_grey_is_scaled_not_clipped(home: Path) -> None:
    """1,000 of 65,535 is 3.9 of 255."""
    for name in FACTS["fashion_mnist"].classes:
        folder = home / "test" / name.replace("/", "-")
        folder.mkdir(parents=True)
        Image.fromarray(np.full((28, 28), 1000, dtype=np.uint16)).save(folder / "a.png")
    assert set(pixel_values(load("fashion_mnist", "test")).flatten().tolist()) == {4}


# --- the real data sets, where they are -----------------------------------------------------


@pytest.mark.skipif(
    not (SYSTEM_FOLDER / "fashion-mnist").is_dir(),
    reason="needs Debian's package dataset-fashion-mnist",
)
def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Xiao et al. 2017: 6,000 + 1,000 images per class; the constants are the train split's."""
    monkeypatch.setattr(data, "SYSTEM_FOLDER", SYSTEM_FOLDER)
    train, test = load("fashion_mnist", "train"), load("fashion_mnist", "test")
    assert train.source == test.source == "Debian dataset-fashion-mnist"
    assert train.y.bincount().tolist() == [6_000] * 10
    assert test.y.bincount().tolist() == [1_000] * 10
    pixels = train.images()
    assert round(pixels.mean(dtype=torch.float64).item(), 4) == train.mean[0]
    assert round(pixels.double().std(correction=0).item(), 4) == train.std[0]


REAL_CIFAR = os.environ.get("LANDSCAPE_DATA", "")
REAL_CACHE = os.environ.get("XDG_CACHE_HOME", "")


def test_the_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Krizhevsky 2009: 5,000 images per class. JPEG changes the constants in the third digit."""
    monkeypatch.setenv("LANDSCAPE_DATA", REAL_CIFAR)
    monkeypatch.setenv("XDG_CACHE_HOME", REAL_CACHE)
    try:
        train = load("cifar10", "train")
    except FileNotFoundError:
        pytest.skip("needs CIFAR-10 in $LANDSCAPE_DATA or in the cache")
    assert train.y.bincount().tolist() == [5_000] * 10
    rounding = 2e-3 if "JPEG" in train.source else 5e-5
    pixels = train.images()
    for channel in range(3):
        values = pixels[..., channel].double()
        assert values.mean().item() == pytest.approx(train.mean[channel], abs=rounding)
        assert values.std(correction=0).item() == pytest.approx(train.std[channel], abs=rounding)
