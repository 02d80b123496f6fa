"""Tests of colour degradations: their distribution, and Pillow's JPEGs."""

import io

import numpy as np
import pytest
from PIL import Image

from configs import deblock
from cqr_jax.data import degradations
from cqr_jax.data.compression import (
    FEATURES,
    Compression,
    features,
    libjpeg,
    nearest_quality,
)
from cqr_jax.data.degradations import Mixture
from data_prep import sources

# The preset's, and one of aligned libjpeg files alone.
USUAL = Mixture(**deblock.get_config("colour").colour)
PLAIN = USUAL._replace(
    gray=0, subsampled=(1, 0), other_tables=0, double=0, shifted=0, unknown=0
)


@pytest.fixture(scope="module")
def photograph():
    """A uint8 RGB photograph, (160, 176, 3)."""
    with Image.open(sources.embedded("test")[0]) as image:
        return np.asarray(image.convert("RGB"))[60:220, 100:276]


@pytest.mark.parametrize("quality", [1, 10, 50, 51, 95, 100])
@pytest.mark.parametrize("sampling", [(1, 1), (1, 2), (2, 2)])
def test_tables_and_bytes_equal_pillows(photograph, quality, sampling):
    buffer = io.BytesIO()
    subsampling = {(1, 1): 0, (1, 2): 1, (2, 2): 2}[sampling]
    Image.fromarray(photograph).save(
        buffer, "JPEG", quality=quality, subsampling=subsampling
    )
    compression = libjpeg(quality, sampling)
    with Image.open(buffer) as image:
        assert tuple(image.quantization[0]) == compression.luma
        assert tuple(image.quantization[1]) == compression.chroma
    assert degradations.encode(photograph, compression) == buffer.getvalue()
    assert nearest_quality(compression.luma) == (quality, True)


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [((60, 100), 80), ((5, 40), 22.5), ((5, 100), 0.7 * 27.5 + 0.3 * 75)],
)
def test_quality_factors_are_uniform_in_their_ranges(qualities, expected):
    rng = np.random.default_rng(0)
    mixture = PLAIN._replace(qualities=qualities)
    drawn = [degradations.draw(mixture, False, rng).luma for _ in range(2000)]
    factors = {libjpeg(quality).luma: quality for quality in range(1, 101)}
    found = [factors[table] for table in drawn]
    assert qualities[0] <= min(found) < qualities[0] + 3
    assert qualities[1] - 3 < max(found) <= qualities[1]
    assert np.mean(found) == pytest.approx(expected, abs=3 * np.std(found) / 2000**0.5)


def test_features_equal_values_computed_by_hand():
    """Uses the bands of the tables of QF 50. The first step of luma is 16."""
    told = features(libjpeg(50, (1, 2)))
    luma = np.array(libjpeg(50).luma).reshape(8, 8)
    first = [luma[0, 1], luma[1, 0], luma[0, 2], luma[1, 1], luma[2, 0]]
    assert told.shape == (FEATURES,)
    np.testing.assert_array_equal(told[:3], [1, 0, 1])  # known, down 1, across 2
    assert told[3] == pytest.approx(np.log2(16) / 8)
    assert told[4] == pytest.approx(np.log2(np.mean(first)) / 8)
    assert told[7] == pytest.approx(np.log2(17) / 8)  # chroma
    assert not features(None).any()
    assert not features(libjpeg(50, gray=True))[7:].any()
    assert not features(Compression((1,) * 64, (1,) * 64))[3:].any()


@pytest.mark.parametrize(
    ("sampling", "trained"),
    [((2, 1), (1, 2)), ((1, 4), (1, 2)), ((4, 1), (1, 2)), ((4, 2), (2, 2))],
)
def test_features_of_other_sampling_are_those_of_the_nearest_trained_one(
    sampling, trained
):
    told = features(libjpeg(30, sampling))
    np.testing.assert_array_equal(told, features(libjpeg(30, trained)))


def test_aligned_example_is_the_jpeg_of_its_crop(photograph):
    """With 4:4:4 chroma, no block depends on what is beyond the crop."""
    rng = np.random.default_rng(0)
    mixture = PLAIN._replace(qualities=(20, 20), subsampled=(0, 0))
    clean, compressed, told = degradations.example(photograph, 96, mixture, False, rng)
    np.testing.assert_array_equal(told, features(libjpeg(20, (1, 1))))
    assert clean.shape == compressed.shape == (96, 96, 3)
    own = degradations.compress(clean, libjpeg(20, (1, 1)))
    np.testing.assert_array_equal(compressed, own)


def test_clean_and_compressed_are_the_same_crop(photograph):
    rng = np.random.default_rng(0)
    mixture = USUAL._replace(qualities=(90, 100), other_tables=0, double=1, shifted=1)
    for _ in range(20):
        clean, compressed, _ = degradations.example(photograph, 96, mixture, True, rng)
        assert np.abs(clean.astype(int) - compressed).mean() < 6


def test_double_compression_is_that_of_two_jpegs(photograph, monkeypatch):
    """Half of the doubly compressed pictures have one grid in both compressions."""
    first, second = libjpeg(10, (1, 1)), libjpeg(60, (1, 1))
    equal = 0
    for seed in range(40):
        drawn = iter((first, second))
        monkeypatch.setattr(degradations, "draw", lambda *args, of=drawn: next(of))
        clean, compressed, _ = degradations.example(
            photograph, 96, PLAIN._replace(double=1), False, np.random.default_rng(seed)
        )
        twice = degradations.compress(degradations.compress(clean, first), second)
        equal += np.array_equal(compressed, twice)
        assert not np.array_equal(compressed, degradations.compress(clean, second))
    assert 10 <= equal <= 30


def test_augmentation_turns_and_flips(photograph):
    views = [np.rot90(photograph, k)[:, ::step] for k in range(4) for step in (1, -1)]
    windows = [
        np.lib.stride_tricks.sliding_window_view(x, (32, 32), (0, 1)) for x in views
    ]
    found = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        clean, _, _ = degradations.example(photograph, 32, PLAIN, True, rng)
        crop = np.moveaxis(clean, -1, 0)
        for i, each in enumerate(windows):
            # Few windows have the first row. Only these are compared as a whole.
            same = (each[:, :, :, 0] == crop[:, 0]).all(axis=(2, 3))
            if any(np.array_equal(x, crop) for x in each[same]):
                found.add(i)
    assert found == set(range(8))


def test_examples_are_a_function_of_the_generator(photograph):
    first, second = (
        degradations.example(photograph, 64, USUAL, True, np.random.default_rng(5))
        for _ in range(2)
    )
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("changed", "share"),
    [({}, 1.0), ({"unknown": 1}, 0), ({"shifted": 1}, 0), ({"unknown": 0.3}, 0.7)],
)
def test_compression_is_known_as_often_as_configured(photograph, changed, share):
    rng = np.random.default_rng(0)
    mixture = PLAIN._replace(**changed)
    told = [
        degradations.example(photograph, 32, mixture, False, rng)[2][0]
        for _ in range(300)
    ]
    assert np.mean(told) == pytest.approx(share, abs=0.08)


def test_shifted_blocks_begin_at_all_eight_columns(photograph):
    """Differences between columns are the largest where blocks meet."""
    mixture = PLAIN._replace(qualities=(5, 5), shifted=1)
    found = set()
    for seed in range(40):
        _, compressed, _ = degradations.example(
            photograph, 96, mixture, False, np.random.default_rng(seed)
        )
        steps = np.abs(np.diff(compressed[..., 1].astype(int), axis=1)).mean(0)
        found.add(int(np.argmax([steps[i::8].mean() for i in range(8)])))
    assert len(found) == 8


def test_gray_examples_have_no_colour(photograph):
    mixture = USUAL._replace(gray=1, other_tables=0.5)
    rng = np.random.default_rng(0)
    for _ in range(10):
        for image in degradations.example(photograph, 64, mixture, True, rng)[:2]:
            assert (image == image[..., :1]).all()


def test_draws_have_the_configured_shares_and_valid_tables():
    rng = np.random.default_rng(0)
    drawn = [degradations.draw(USUAL, rng.random() < 0.1, rng) for _ in range(2000)]
    shares = {
        sampling: np.mean([x.sampling == sampling for x in drawn if x.chroma])
        for sampling in ((2, 2), (1, 2), (1, 1))
    }
    half, across = USUAL.subsampled
    assert shares[2, 2] == pytest.approx(half, abs=0.05)
    assert shares[1, 2] == pytest.approx(across, abs=0.03)
    qualities = np.array([nearest_quality(x.luma)[0] for x in drawn[:300]])
    assert np.mean(qualities <= 50) == pytest.approx(0.7, abs=0.1)
    assert qualities.min() <= 8
    assert qualities.max() >= 95
    equal = np.mean([nearest_quality(x.luma)[1] for x in drawn[:300]])
    assert equal == pytest.approx(1 - 0.25 * 2 / 3, abs=0.07)
    for compression in drawn:
        for table in filter(None, (compression.luma, compression.chroma)):
            assert len(table) == 64
            assert 1 <= min(table) <= max(table) <= 255


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [((5, 100), 0.7 * 0.5 + 0.3), ((50, 100), 0.98), ((75, 100), 1), ((5, 30), 0)],
)
def test_low_qualities_have_their_share_if_the_range_has_both(qualities, expected):
    """Expected is the share above QF 27, or above QF 50 without low qualities."""
    mixture = PLAIN._replace(qualities=qualities, low=0.7)
    rng = np.random.default_rng(0)
    drawn = [degradations.draw(mixture, False, rng).luma for _ in range(500)]
    limit = 27 if qualities == (5, 100) else 50
    found = np.mean([nearest_quality(luma)[0] > limit for luma in drawn])
    assert found == pytest.approx(expected, abs=0.06)


def test_drawn_tables_can_be_encoded_at_the_lowest_qualities(photograph):
    rng = np.random.default_rng(1)
    mixture = USUAL._replace(qualities=(1, 10), other_tables=1)
    for _ in range(30):
        compression = degradations.draw(mixture, False, rng)
        image = degradations.compress(photograph, compression)
        assert image.shape == photograph.shape
