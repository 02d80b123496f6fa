"""Tests of quality factors from tables and from the ranker."""

import concurrent.futures
import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from cqr_jax.data.compression import luma_table, nearest_quality
from cqr_jax.restoring import pictures, quality, recompression
from cqr_jax.restoring.picture import Picture


def _jpeg(rgb, **options):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "jpeg", **options)
    return pictures.decode(buffer.getvalue())


def test_quality_factor_of_libjpeg_tables_is_found():
    rgb = np.zeros((8, 8, 3), np.uint8)
    for factor in range(1, 101):
        found = _jpeg(rgb, quality=factor).compression.luma
        np.testing.assert_array_equal(found, luma_table(factor))
        # The tables of all quality factors differ.
        assert nearest_quality(found) == (factor, True)


def test_tables_of_other_encoders_get_the_nearest_factor():
    odd = tuple(int(x) for x in np.maximum(1, luma_table(40) + np.arange(64) % 2))
    factor, equal = nearest_quality(odd)
    assert abs(factor - 40) <= 2
    assert not equal


def test_ranker_estimates_the_quality_factor_without_tables(monkeypatch):
    monkeypatch.setattr(recompression, "find", lambda _: None)
    rgb = skimage.data.astronaut()
    for factor, source in ((5, "ranker"), (10, "ranker"), (60, "ranker, vague")):
        found = quality.measure(_jpeg(rgb, quality=factor)._replace(compression=None))
        assert found.quality_factor_from == source
        assert (found.quality_factor < 20) == (factor < 20)
        if factor < 20:
            assert abs(found.quality_factor - factor) <= 4


def test_pixels_tell_the_quality_factor_of_a_decoded_jpeg():
    picture = _jpeg(skimage.data.astronaut(), quality=60)
    found = quality.measure(picture._replace(compression=None))
    assert (found.quality_factor, found.quality_factor_from) == (60, "pixels")


def test_openvino_gives_the_scores_of_jax():
    pytest.importorskip("openvino")
    rng = np.random.default_rng(0)
    small = _jpeg(rng.integers(0, 256, (40, 50, 3), np.uint8), quality=30)
    for picture in (_jpeg(skimage.data.astronaut(), quality=10), small):
        scores = [quality.measure(picture, x).score for x in ("jax", "openvino")]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_threads_measure_at_the_same_time():
    rgb = skimage.data.astronaut()
    pictures_of = [_jpeg(rgb, quality=factor) for factor in (3, 10, 20, 40)] * 4
    expected = [quality.measure(picture) for picture in pictures_of]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(quality.measure, pictures_of)) == expected


def test_hidden_pixels_do_not_change_the_score():
    rgb = skimage.data.astronaut()
    hidden = np.zeros(rgb.shape[:2], bool)
    hidden[200:300] = True
    alpha = np.where(hidden, 0, 255).astype(np.uint8)
    scores = {
        quality.measure(Picture(np.where(hidden[..., None], level, rgb), alpha)).score
        for level in np.array([0, 90, 255], np.uint8)
    }
    assert len(scores) == 1
