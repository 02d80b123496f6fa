"""Tiles: every pixel once, no seam where a network sees no further than they lap."""

import numpy as np
import pytest

from cqr_jax import tiles


def _mean_of_neighbours(images):
    """Each pixel's mean with all within 8 pixels of it, rounded; zeros outside."""
    padded = np.pad(images.astype(int), ((0, 0), (8, 8), (8, 8)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (17, 17), axis=(1, 2))
    return (windows.sum((-1, -2)) // 17**2).astype(np.uint8)


def _whole(y):
    padded = np.pad(y, [(0, max(40 - n, -n % 8)) for n in y.shape], mode="edge")
    return _mean_of_neighbours(padded[None])[0, : y.shape[0], : y.shape[1]]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_tiled_equals_whole_within_reach(batch):
    """Images of several sizes, whose tiles share batches."""
    shapes = [(40, 40), (64, 100), (1, 1), (33, 47), (7, 121)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    found = tiles.restore(
        _mean_of_neighbours, iter(images), side=40, overlap=8, batch=batch
    )
    for y, restored in zip(images, found, strict=True):
        np.testing.assert_array_equal(restored, _whole(y))


def test_images_are_taken_when_a_batch_has_room():
    taken = []

    def images():
        for i in range(9):
            taken.append(i)
            yield np.zeros((16, 16), np.uint8)

    restored = tiles.restore(lambda x: x, images(), side=16, overlap=0, batch=4)
    next(restored)
    assert len(taken) == 4
    assert len(list(restored)) == 8


def test_tiles_stand_on_the_grid_of_blocks():
    seen = []

    def run(images):
        seen.append(images[0].copy())
        return images

    y = np.add.outer(8 * np.arange(100) % 256, np.arange(90) % 8).astype(np.uint8)
    (restored,) = tiles.restore(run, [y], side=32, overlap=8)
    np.testing.assert_array_equal(restored, y)
    assert len(seen) > 12
    assert all(tile[0, 0] % 64 == 0 for tile in seen)


@pytest.mark.parametrize(("side", "overlap"), [(36, 8), (40, 4), (40, 24)])
def test_sides_off_the_grid_are_refused(side, overlap):
    y = np.zeros((50, 50), np.uint8)
    with pytest.raises(ValueError, match="multiples of 8"):
        next(tiles.restore(_mean_of_neighbours, [y], side, overlap))
