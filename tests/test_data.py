"""Data sets are found where they are, read completely or refused, and never downloaded here."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from landscape_lib import data, image_tree, runtime
from landscape_lib.data_files import FACTS

load = partial(data.load, device="cpu")
SYSTEM_FOLDER = data.SYSTEM_FOLDER
CIFAR = FACTS["cifar10"].classes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: no data sets, an empty cache, no network. Returns a folder for data."""

    def offline(*args: object, **options: object) -> None:
        raise URLError("the test machine is offline")

    for name in ("FashionMNIST", "CIFAR10"):
        monkeypatch.setattr(torchvision.datasets, name, offline)
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


def fashion(folder: Path, split: str = "test", count: int = 20, compress: bool = False) -> None:
    labels = np.arange(count, dtype=np.uint8) % 10
    write_idx(folder, split, random_bytes(count, 28, 28), labels, compress)


def batches(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        content = {"data": random_bytes(10, 3072, seed=i), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load("mnist", "test"), "name: expected one of 'digits', .* got 'mnist'"),
        (lambda: load("digits", "val"), "split: expected 'train' or 'test', got 'val'"),
        (lambda: load("digits", "test", samples=0), "samples: expected at least 1, got 0"),
        (lambda: load("digits", "test", samples=361), "samples: expected 1 to 360 .* got 361"),
        (lambda: load("digits", "test", dtype=torch.int8), "dtype: .* got torch.int8"),
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


@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_in_torchvision_layout(home: Path, compress: bool) -> None:
    fashion(home / "FashionMNIST" / "raw", compress=compress)
    dataset = load("fashion_mnist", "test")
    assert dataset.x.shape == (20, 1, 28, 28)
    assert np.array_equal(pixel_values(dataset)[:, 0].numpy(), random_bytes(20, 28, 28))
    assert dataset.y.tolist() == [i % 10 for i in range(20)]
    assert dataset.classes[0] == "T-shirt/top" and dataset.classes[9] == "Ankle boot"
    assert dataset.source == "Fashion-MNIST, idx files (20 of 10,000 images)"


def test_cifar10_in_torchvision_layout(home: Path) -> None:
    names = [f"data_batch_{i}" for i in range(1, 6)]
    batches(home / "cifar-10-batches-py", names)
    dataset = load("cifar10", "train")
    expected = np.concatenate([random_bytes(10, 3, 32, 32, seed=i) for i in range(5)])
    assert np.array_equal(pixel_values(dataset).numpy(), expected)
    assert dataset.y.tolist() == list(range(10)) * 5
    assert dataset.source.startswith("CIFAR-10, Python batch files")
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

    class Download:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert download
            fashion(Path(root) / "FashionMNIST" / "raw", count=14)

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Download)
    cached = tmp_path / "cache" / "landscape_lib" / "FashionMNIST" / "raw"
    system = tmp_path / "system" / "fashion-mnist"

    downloaded = load("fashion_mnist", "test")
    assert (len(downloaded), downloaded.source.split(" (")[0]) == (14, "torchvision download")
    assert cached.is_dir() and os.listdir(cached.parents[1]) == ["FashionMNIST"]
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
        *("train/<class>/", "system package", "cache", "torchvision downloads it", "offline"),
        *(str(data.cache_folder()), 'load("digits"'),
    ):
        assert part in message
    assert ("dataset-fashion-mnist" in message) is (name == "fashion_mnist")


def test_an_interrupted_download_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(root: str, train: bool, download: bool) -> None:
        (Path(root) / "cifar-10-batches-py").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", "test")
    assert list(data.cache_folder().iterdir()) == []


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


def damage_idx(home: Path, compress: bool, keep: float) -> str:
    fashion(home / "FashionMNIST" / "raw", compress=compress)
    name = "t10k-images-idx3-ubyte" + (".gz" if compress else "")
    cut(home / "FashionMNIST" / "raw" / name, keep)
    return name


def damage_gzip_content(home: Path) -> str:
    fashion(home / "FashionMNIST" / "raw", compress=True)
    path = home / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path.name


def damage_label_count(home: Path) -> str:
    write_idx(home / "fashion-mnist", "test", random_bytes(20, 28, 28), np.zeros(19, np.uint8))
    return "t10k-labels-idx1-ubyte: .*expected 20 labels.*19"


def damage_label_value(home: Path) -> str:
    labels = np.full(20, 10, np.uint8)
    write_idx(home / "fashion-mnist", "test", random_bytes(20, 28, 28), labels)
    return "t10k-labels-idx1-ubyte: .*expected labels 0 to 9, found 10 to 10"


def damage_image_size(home: Path) -> str:
    write_idx(home / "fashion-mnist", "test", random_bytes(20, 8, 8), np.zeros(20, np.uint8))
    return "t10k-images-idx3-ubyte: .*28.*found"


def remove_labels(home: Path) -> str:
    fashion(home / "fashion-mnist")
    (home / "fashion-mnist" / "t10k-labels-idx1-ubyte").unlink()
    return "fashion-mnist: incomplete: expected also t10k-labels-idx1-ubyte"


def cut_batch(home: Path) -> str:
    batches(home / "cifar-10-batches-py", ["test_batch"])
    cut(home / "cifar-10-batches-py" / "test_batch", 0.5)
    return "test_batch: truncated or corrupt"


def shorten_batch(home: Path) -> str:
    batches(home / "cifar-10-batches-py", ["test_batch"])
    content = {"data": random_bytes(9, 3072), "labels": list(range(10))}
    (home / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content))
    return r"test_batch: .*for each of 10 labels, found uint8 \(9, 3072\)"


def plant_code(home: Path) -> str:
    batches(home / "cifar-10-batches-py", ["test_batch"])
    (home / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(os.getcwd))
    return "test_batch: .*UnpicklingError: a reference to posix.getcwd"


def cut_image(home: Path) -> str:
    tree(home / "test", suffix="jpg")
    cut(home / "test" / "cat" / "0001.jpg", 0.6)
    return "0001.jpg: truncated or corrupt"


def resize_image(home: Path) -> str:
    tree(home / "test")
    Image.new("RGB", (31, 32)).save(home / "test" / "cat" / "0001.png")
    return "0001.png: expected 32 x 32 pixels, found 32 x 31"


def remove_class(home: Path) -> str:
    tree(home / "test")
    shutil.rmtree(home / "test" / "cat")
    return "test: incomplete: expected also cat/"


def empty_class(home: Path) -> str:
    tree(home / "test")
    shutil.rmtree(home / "test" / "cat")
    (home / "test" / "cat").mkdir()
    return "cat: incomplete: expected .jpg, .jpeg, .png files, found none"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("fashion_mnist", lambda home: damage_idx(home, False, 0.9) + ": .*expected 20 x 28 x 28"),
        ("fashion_mnist", lambda home: damage_idx(home, False, 0.0) + ": .*idx header"),
        ("fashion_mnist", lambda home: damage_idx(home, True, 0.9) + ": .*complete gzip file"),
        ("fashion_mnist", lambda home: damage_idx(home, True, 0.0) + ": .*"),
        ("fashion_mnist", lambda home: damage_gzip_content(home) + ": .*complete gzip file"),
        ("fashion_mnist", damage_label_count),
        ("fashion_mnist", damage_label_value),
        ("fashion_mnist", damage_image_size),
        ("fashion_mnist", remove_labels),
        ("cifar10", cut_batch),
        ("cifar10", shorten_batch),
        ("cifar10", plant_code),
        ("cifar10", cut_image),
        ("cifar10", resize_image),
        ("cifar10", remove_class),
        ("cifar10", empty_class),
    ],
)
def test_a_damaged_file_is_named(name: str, damage: Callable[[Path], str], home: Path) -> None:
    message = damage(home)
    with pytest.raises(ValueError, match=message):
        load(name, "test")
    assert not list(home.parent.rglob("*.pt")), "nothing damaged is kept"


def test_one_missing_batch_of_five_is_named(home: Path) -> None:
    batches(home / "cifar-10-batches-py", [f"data_batch_{i}" for i in (1, 2, 4, 5)])
    with pytest.raises(ValueError, match="incomplete: expected also data_batch_3"):
        load("cifar10", "train")


# --- the decoded copy of an image tree ------------------------------------------------------


def test_a_tree_is_decoded_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(home / "test")
    first = load("cifar10", "test")

    def refuse(*args: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_tree, "_pictures", refuse)
    again = load("cifar10", "test")
    assert torch.equal(again.x, first.x) and torch.equal(again.y, first.y)
    decoded = data.cache_folder() / "decoded"
    assert [path.suffix for path in decoded.iterdir()] == [".pt"], "no temporary file is left"


def test_another_tree_is_not_mistaken_for_the_decoded_one(home: Path) -> None:
    """Same names, other pictures."""
    tree(home / "test")
    before = pixel_values(load("cifar10", "test"))
    path = home / "test" / "cat" / "0001.png"
    Image.fromarray(np.full((32, 32, 3), 255, dtype=np.uint8)).save(path)
    os.utime(path, ns=(0, 0))
    after = pixel_values(load("cifar10", "test"))
    assert (before != after).flatten(1).any(dim=1).sum() == 1


def test_a_damaged_decoded_copy_is_made_again(home: Path) -> None:
    tree(home / "test")
    before = load("cifar10", "test")
    (stored,) = (data.cache_folder() / "decoded").iterdir()
    cut(stored, 0.5)
    with pytest.warns(UserWarning, match=f"{stored.name}: damaged"):
        again = load("cifar10", "test")
    assert torch.equal(again.x, before.x)
    assert torch.equal(load("cifar10", "test").x, before.x)


def test_a_cache_that_cannot_be_written_is_no_obstacle(home: Path, tmp_path: Path) -> None:
    tree(home / "test")
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="could not keep the decoded images"):
        assert len(load("cifar10", "test")) == 30


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
