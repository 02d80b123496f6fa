"""Tiles: no seam where a network sees no further than they lap."""

import itertools

import numpy as np
import pytest

from cqr_jax.restoring import tiles


def _mean_of_neighbours(images):
    """Each pixel's mean with all within 4 pixels of it; zeros outside."""
    padded = np.pad(images.astype(np.float32), ((0, 0), (4, 4), (4, 4)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(1, 2))
    return windows.mean((-1, -2))


def _whole(y):
    padded = np.pad(y, [(0, max(40 - n, -n % 8)) for n in y.shape], mode="reflect")
    return _mean_of_neighbours(padded[None])[0, : y.shape[0], : y.shape[1]]


@pytest.mark.parametrize("margin", [0, 8, 16, 24])
def test_weights_add_up_and_tiles_fade(margin):
    """An image of ones stays one; each tile's own level fades into the next."""
    ones = np.ones((200, 136), np.float32)
    (restored,) = tiles.restore(lambda x: x, [ones], side=64, margin=margin)
    np.testing.assert_allclose(restored, 1, atol=1e-6)
    levels = itertools.count()
    (restored,) = tiles.restore(
        lambda x: np.full_like(x, next(levels)), [ones[:64]], side=64, margin=margin
    )
    assert (np.diff(restored, axis=1) >= 0).all()
    largest = {0: 1.0, 8: 1 / 8, 16: 1 / 16, 24: 1 / 8}[margin]
    assert np.diff(restored, axis=1).max() == pytest.approx(largest)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_tiled_equals_whole_within_reach(batch):
    """Images of several sizes, whose tiles share batches."""
    shapes = [(40, 40), (64, 100), (1, 1), (33, 47), (7, 121)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    found = tiles.restore(
        _mean_of_neighbours, iter(images), side=40, margin=8, batch=batch
    )
    for y, restored in zip(images, found, strict=True):
        np.testing.assert_allclose(restored, _whole(y), atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_that_fit_equal_the_whole_within_reach(batch):
    shapes = [(40, 40), (64, 100), (1, 1), (33, 47), (7, 121), (130, 90)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    sides = []

    def run(images):
        sides.append(images.shape[1:])
        return _mean_of_neighbours(images)

    run.multiple, run.parallel = 16, 2
    found = tiles.restore(run, iter(images), side=80, margin=8, batch=batch)
    for y, restored in zip(images, found, strict=True):
        padded = np.pad(y, [(0, max(64 - n, -n % 16)) for n in y.shape], "reflect")
        whole = _mean_of_neighbours(padded[None])[0, : y.shape[0], : y.shape[1]]
        np.testing.assert_allclose(restored, whole, atol=1e-3)
    assert len(set(sides)) > 2
    assert {x % 16 for pair in sides for x in pair} == {0}
    assert max(max(pair) for pair in sides) <= 80


@pytest.mark.parametrize(
    ("shape", "parallel", "sides"),
    [
        ((200, 300), 1, (208, 304)),  # one tile
        ((200, 300), 2, (208, 160)),  # two tiles: (300 + 16) / 2 = 158
        ((20, 30), 1, (64, 64)),  # the shortest side
        ((816, 1225), 1, (288, 320)),  # 3 x 4 tiles: 848 / 3 and 1273 / 4
        ((816, 1225), 5, (176, 320)),  # 5 x 4 tiles are computed in four rounds
    ],
)
def test_sides_of_tiles_cover_an_image_with_the_least_work(shape, parallel, sides):
    assert tiles.fitting(shape, 320, 8, 16, parallel) == sides


def test_images_are_taken_when_a_batch_has_room():
    taken = []

    def images():
        for i in range(9):
            taken.append(i)
            yield np.zeros((16, 16), np.uint8)

    restored = tiles.restore(lambda x: x, images(), side=16, margin=0, batch=4)
    next(restored)
    assert len(taken) == 4
    assert len(list(restored)) == 8


def test_tiles_stand_on_the_grid_of_blocks():
    seen = []

    def run(images):
        seen.append(images[0].copy())
        return images.astype(np.float32)

    y = np.add.outer(8 * np.arange(100) % 256, np.arange(90) % 8).astype(np.uint8)
    (restored,) = tiles.restore(run, [y], side=32, margin=8)
    np.testing.assert_allclose(restored, y, atol=1e-3)
    assert len(seen) > 12
    assert all(tile[0, 0] % 64 == 0 for tile in seen)


@pytest.mark.parametrize(("side", "margin"), [(36, 8), (40, 4), (40, 24)])
def test_sides_off_the_grid_are_refused(side, margin):
    y = np.zeros((50, 50), np.uint8)
    with pytest.raises(ValueError, match="multiples of 8"):
        next(tiles.restore(_mean_of_neighbours, [y], side, margin))
