"""Patterns: what is read, drawn and pruned, against hand counts and METHODS oracle 8."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from landscape_lib.mpo import patterns

L_SHAPE = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=bool)


# --- drawings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drawing",
    [
        L_SHAPE,
        L_SHAPE.astype(int),
        L_SHAPE.astype(float).tolist(),
        ["#..", "#..", "###"],
        ("X--", "100", "@1X"),
        "\n#..\n#  \n###\n",
    ],
)
def test_every_way_to_write_a_drawing_gives_the_same_pattern(drawing):
    pattern = patterns.from_drawing(drawing)
    assert pattern.dtype == bool and np.array_equal(pattern, L_SHAPE)


def test_a_drawing_is_a_copy_and_may_have_any_dimension():
    pattern = patterns.from_drawing(L_SHAPE)
    pattern[0, 0] = False
    assert L_SHAPE[0, 0]
    for shape in [(4,), (3, 3, 3), (2, 3, 2, 2)]:
        given = np.arange(np.prod(shape)).reshape(shape) % 2
        assert np.array_equal(patterns.from_drawing(given), given)
    assert patterns.from_drawing([[1]]).all()  # ordinary training


@pytest.mark.parametrize("name", patterns.NAMES)
@pytest.mark.parametrize("size", [16, 50, (30, 44)])
def test_our_own_pictures_can_be_drawn_at_any_size(name, size):
    pattern = patterns.draw(name, size)
    assert pattern.shape == (size if isinstance(size, tuple) else (size, size))
    assert 0.1 < pattern.mean() < 0.65
    assert np.array_equal(patterns.draw(name, size), pattern)


def test_there_are_at_least_eight_pictures_and_all_differ():
    drawn = {patterns.draw(name, 30).tobytes() for name in patterns.NAMES}
    assert len(drawn) == len(patterns.NAMES) >= 8


def test_the_smiley_is_upright():
    smiley = patterns.draw("smiley", 50)
    assert np.array_equal(smiley, smiley[:, ::-1])
    assert not smiley[18, 16] and not smiley[18, 33]  # the eyes are in the upper half
    assert not smiley[38, 25] and smiley[12, 25]  # and the mouth in the lower


def test_a_drawing_gets_finer_but_stays_the_same_picture():
    for name in patterns.NAMES:
        fine, coarse = patterns.draw(name, 200), patterns.draw(name, 50)
        assert np.mean(patterns.resize(fine, 50) != coarse) < 0.02


# --- images and text ----------------------------------------------------------------------------


def save(tmp_path, pixels, mode):
    path = tmp_path / f"{mode}.png"
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode=None).convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P"])
def test_without_transparency_dark_is_low(tmp_path, mode):
    path = save(tmp_path, np.where(L_SHAPE, 0, 255), mode)
    assert np.array_equal(patterns.from_image(path), L_SHAPE)


def test_with_transparency_opaque_is_low_whatever_the_colour(tmp_path):
    # METHODS A: the authors' icons are grey with alpha, of which only alpha counts.
    grey_alpha = np.stack([np.full((3, 3), 90), np.where(L_SHAPE, 255, 0)], axis=-1)
    colour = np.concatenate([np.full((3, 3, 3), 250), np.where(L_SHAPE, 255, 0)[..., None]], 2)
    for number, pixels in enumerate((grey_alpha, colour)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        assert np.array_equal(patterns.from_image(path), L_SHAPE)


def test_an_image_is_resized_by_area_and_compared_with_the_threshold(tmp_path):
    path = save(tmp_path, np.where(np.kron(L_SHAPE, np.ones((4, 4))), 0, 255), "L")
    assert np.array_equal(patterns.from_image(path, 3), L_SHAPE)
    assert np.array_equal(patterns.from_image(path, (24, 12)), np.kron(L_SHAPE, np.ones((8, 4))))
    quarter = save(tmp_path, [[0, 255, 255, 255], [255] * 4], "L")
    assert patterns.from_image(quarter, (1, 2), threshold=0.2).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="expected LOW and HIGH cells, got 2 that are HIGH"):
        patterns.from_image(quarter, (1, 2), threshold=0.3)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.where(L_SHAPE, 1000, 60000).astype(np.uint16)).save(path)  # 4 and 233
    assert np.array_equal(patterns.from_image(path), L_SHAPE)
    with pytest.raises(ValueError, match="that are HIGH"):
        patterns.from_image(path, threshold=0.99)  # 251 of 255 is darker than .98 only


def test_only_png_and_jpeg_are_opened(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("L", (4, 4)).save(path, format="EPS")  # for which PIL would start Ghostscript
    with pytest.raises(ValueError, match="path: expected a picture, .*PNG or JPEG"):
        patterns.from_image(path)


def test_text_fills_its_cells_and_leaves_a_margin():
    for text, size in [("A", 20), ("MPO", (20, 50)), ("two\nlines", 40)]:
        pattern = patterns.from_text(text, size)
        inner = pattern[1:-1, 1:-1]
        assert inner.sum() == pattern.sum() and 0.05 < pattern.mean() < 0.7
        free = [
            side - np.ptp(np.flatnonzero(pattern.any(1 - k)))
            for k, side in enumerate(pattern.shape)
        ]
        assert min(free) <= 6  # as large as fits, but for thin ends of strokes
    assert not np.array_equal(patterns.from_text("b", 20), patterns.from_text("d", 20))
    letter = patterns.from_text("L", 30)
    rows, columns = np.flatnonzero(letter.any(1)), np.flatnonzero(letter.any(0))
    assert letter[rows[-3]].sum() > 2 * letter[rows[3]].sum()  # upright: the bar is at the bottom
    assert letter[:, columns[1]].sum() > 2 * letter[:, columns[-2]].sum()  # and the stem is left


# --- masks and grids ----------------------------------------------------------------------------


def test_the_frame_of_random_masks_is_that_of_the_authors_code():
    mask = patterns.random_mask(30, 0.5, seed=3)
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()  # 116 cells
    assert mask[[1, -2], 1:-1].all() and mask[1:-1, [1, -2]].all()  # 108 cells
    assert mask[:, :].sum() - mask[2:-2, 2:-2].sum() == 108
    inside = np.mean([patterns.random_mask(30, 0.3, seed=s)[2:-2, 2:-2].mean() for s in range(50)])
    assert inside == pytest.approx(0.3, abs=0.01)
    plain = np.mean([patterns.random_mask(30, 0.3, frame=False, seed=s).mean() for s in range(50)])
    assert plain == pytest.approx(0.3, abs=0.01)
    assert np.array_equal(mask, patterns.random_mask(30, 0.5, seed=3))
    assert not np.array_equal(mask, patterns.random_mask(30, 0.5, seed=4))


@pytest.mark.parametrize(
    "p, low, high, pruned", [(0.1, 177, 499, 223), (0.5, 446, 450, 5), (0.9, 439, 182, 280)]
)
def test_pruned_random_masks_have_the_counts_of_the_source(p, low, high, pruned):  # METHODS A
    counts = np.zeros(3)
    for seed in range(40):
        classes = patterns.prune(patterns.random_mask(30, p, seed=seed))
        counts += [(classes == k).sum() / 40 for k in (1, -1, 0)]
    assert counts == pytest.approx([low, high, pruned], abs=12)


def test_resize_takes_the_majority_of_the_area():
    assert np.array_equal(patterns.resize(np.kron(L_SHAPE, np.ones((5, 5))), 3), L_SHAPE)
    assert np.array_equal(patterns.resize(L_SHAPE, (6, 9)), np.kron(L_SHAPE, np.ones((2, 3))))


# --- pruning ------------------------------------------------------------------------------------


def test_oracle_8_pruning():
    for value in (0, 1):
        assert not patterns.prune(np.full((5, 6), value)).any()
    pixel = np.zeros((5, 5), dtype=bool)
    pixel[2, 2] = True
    expected = np.zeros((5, 5), dtype=int)
    expected[1:4, 1:4] = -1
    expected[2, 2] = 1
    assert np.array_equal(patterns.prune(pixel), expected)
    for name in patterns.NAMES:
        pattern = patterns.draw(name, 30)
        assert np.array_equal(patterns.prune(~pattern), -patterns.prune(pattern))


@pytest.mark.parametrize("shape", [(9,), (6, 7), (4, 5, 4)])
def test_pruning_against_its_definition_in_any_dimension(shape):
    pattern = np.random.default_rng(0).random(shape) < 0.9
    got = patterns.prune(pattern)
    assert {-1, 0, 1} == set(np.unique(got))
    for cell in np.ndindex(shape):
        window = pattern[tuple(slice(max(0, c - 1), c + 2) for c in cell)]  # clipped at the border
        expected = 0 if (window == pattern[cell]).all() else (1 if pattern[cell] else -1)
        assert got[cell] == expected


def test_every_kth_cell_that_pruning_leaves_out_can_be_kept():
    half = patterns.from_drawing(["####...."] * 7)  # cells next to the border of both: columns 3, 4
    kept = patterns.trained(half, 3)
    trained = [f"{r}{c}" for r, c in zip(*np.nonzero(kept), strict=True)]
    lattice = {f"{r}{c}" for r in (0, 3, 6) for c in (0, 3, 6)}
    assert set(trained) == lattice | {f"{r}{c}" for r in range(7) for c in (3, 4)}
    assert np.array_equal(kept[kept != 0] > 0, half[kept != 0])


# --- mistakes -----------------------------------------------------------------------------------

HUGE = np.broadcast_to(np.array([0, 1] * 4096, dtype=np.int8), (1 << 20, 8192))

MISTAKES = {
    "no dimension": (lambda: patterns.from_drawing(1), ValueError, "got a single number"),
    "grey": (lambda: patterns.from_drawing([[0, 0.5]]), ValueError, "only 0 and 1, got 0.5"),
    "nan": (lambda: patterns.from_drawing([0, np.nan]), ValueError, "only 0 and 1, got nan"),
    "one class": (
        lambda: patterns.from_drawing(np.ones((2, 2))),
        ValueError,
        "expected LOW and HIGH cells, got 4 that are LOW",
    ),
    "one HIGH cell": (lambda: patterns.from_drawing([[0]]), ValueError, "got 1 that are HIGH"),
    "empty": (lambda: patterns.from_drawing([]), ValueError, r"got shape \(0,\)"),
    "too large": (lambda: patterns.from_drawing(HUGE), ValueError, "expected 1 to 4,194,304 cells"),
    "letters": (lambda: patterns.from_drawing(["#.", "#o"]), ValueError, "got row 1: '#o'"),
    "ragged rows": (lambda: patterns.from_drawing("#.\n#"), ValueError, "rows of one length"),
    "rows and numbers": (lambda: patterns.from_drawing(["#.", 3]), ValueError, "got row 1: 3"),
    "objects": (lambda: patterns.from_drawing({"a": 1}), TypeError, "got dict"),
    "ragged numbers": (
        lambda: patterns.from_drawing([[1, 0, 1], [1]]),
        ValueError,
        r"pattern: expected rows of one length, got rows of \[3, 1\]",
    ),
    "no file": (lambda: patterns.from_image("no.png"), FileNotFoundError, "no.png"),
    "no path": (lambda: patterns.from_image(None), TypeError, "path: expected .*got None"),
    "no picture": (lambda: patterns.from_image(__file__), ValueError, "path: expected a picture"),
    "threshold": (
        lambda: patterns.from_image("no.png", threshold=2),
        ValueError,
        "threshold: expected a number from 0 to 1, got 2",
    ),
    "name": (lambda: patterns.draw("dog"), ValueError, "name: expected one of 'smiley', .*'dog'"),
    "size 0": (lambda: patterns.draw("cat", 0), ValueError, "size: expected .*got 0"),
    "size half": (lambda: patterns.draw("cat", 2.5), ValueError, "size: expected .*got 2.5"),
    "three sizes": (lambda: patterns.draw("cat", (1, 2, 3)), ValueError, "size: expected"),
    "size huge": (lambda: patterns.draw("cat", 10**6), ValueError, "at most 4,194,304 cells"),
    "nothing to see": (lambda: patterns.draw("key", 1), ValueError, "expected LOW and HIGH cells"),
    "no text": (lambda: patterns.from_text(" \n", 20), ValueError, "one visible character"),
    "no room": (lambda: patterns.from_text("Wide", 2), ValueError, "have no room for 'Wide'"),
    "probability": (lambda: patterns.random_mask(9, 1.5), ValueError, "p: expected .*got 1.5"),
    "no probability": (lambda: patterns.random_mask(9, "a"), ValueError, "p: expected .*got 'a'"),
    "no room for a frame": (lambda: patterns.random_mask(4), ValueError, "at least 5 cells a side"),
    "all alike": (lambda: patterns.random_mask(9, 0, frame=False), ValueError, "LOW and HIGH"),
    "resize a line": (lambda: patterns.resize([0, 1], 3), ValueError, r"got shape \(2,\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name):
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert caught.type is kind
