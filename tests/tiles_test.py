"""Tiles: every pixel once, no seam where a network sees no further than they lap."""

import numpy as np
import pytest

from cqr_jax import tiles


def _mean_of_neighbours(images):
    """Each pixel's mean with all within 8 pixels of it, rounded; zeros outside."""
    padded = np.pad(images.astype(int), ((0, 0), (8, 8), (8, 8), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (17, 17), axis=(1, 2))
    return (windows.sum((-1, -2)) // 17**2).astype(np.uint8)


@pytest.mark.parametrize("shape", [(40, 40), (64, 100), (33, 47), (7, 121), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_tiled_equals_whole_within_reach(shape, batch):
    y = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = tiles.restore(_mean_of_neighbours, y, side=40, overlap=8, batch=batch)
    padded = np.pad(y, [(0, max(40 - n, -n % 8)) for n in shape], mode="edge")
    whole = _mean_of_neighbours(padded[None, ..., None])[0, : shape[0], : shape[1], 0]
    np.testing.assert_array_equal(found, whole)


def test_tiles_stand_on_the_grid_of_blocks():
    seen = []

    def run(images):
        seen.append(images[0, :, :, 0].copy())
        return images

    y = np.add.outer(8 * np.arange(100) % 256, np.arange(90) % 8).astype(np.uint8)
    np.testing.assert_array_equal(tiles.restore(run, y, side=32, overlap=8), y)
    assert len(seen) > 12
    assert all(tile[0, 0] % 64 == 0 for tile in seen)


@pytest.mark.parametrize(("side", "overlap"), [(36, 8), (40, 4), (40, 24)])
def test_sides_off_the_grid_are_refused(side, overlap):
    y = np.zeros((50, 50), np.uint8)
    with pytest.raises(ValueError, match="multiples of 8"):
        tiles.restore(_mean_of_neighbours, y, side, overlap)
