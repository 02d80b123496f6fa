"""Tests of stored coefficients and of projection onto quantisation intervals."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from cqr_jax.data import ycbcr
from cqr_jax.data.compression import libjpeg
from cqr_jax.restoring import coefficients, colour, pictures, projection, restorer
from cqr_jax.restoring.coefficients import Component
from data_prep import sources

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photograph():
    """uint8 RGB, 90x123: no side is a multiple of 8."""
    with Image.open(sources.embedded("test")[0]) as image:
        return np.asarray(image.convert("RGB"))[60:150, 100:223]


def _jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _dct(samples):
    """Transforms whole blocks of samples, 0 to 255, by SciPy."""
    found = np.empty(samples.shape)
    for top in range(0, samples.shape[0], 8):
        for left in range(0, samples.shape[1], 8):
            block = samples[top : top + 8, left : left + 8].astype(float) - 128
            found[top : top + 8, left : left + 8] = dctn(block, norm="ortho")
    return found


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [5, 50, 95])
def test_stored_coefficients_are_those_of_the_decoded_plane(
    photograph, quality, progressive
):
    y = np.ascontiguousarray(photograph[:88, :120, 1])
    data = _jpeg(y, quality=quality, progressive=progressive)
    (found,) = pictures.decode(data, stored=True).stored
    assert found.coefficients.dtype == np.int16
    assert found.sampling == (1, 1)
    np.testing.assert_array_equal(found.steps.ravel(), libjpeg(quality).luma)
    with Image.open(io.BytesIO(data)) as image:
        decoded = _dct(np.asarray(image))
    # Rounding the samples, and clipping some, moves a coefficient by a few units.
    steps = np.tile(found.steps, (11, 15))
    assert np.abs(found.coefficients * steps - decoded).mean() < 0.5


@pytest.mark.parametrize(
    ("subsampling", "sampling", "shape"),
    [(0, (1, 1), (96, 128)), (1, (1, 2), (96, 64)), (2, (2, 2), (48, 64))],
)
def test_chroma_components_have_the_subsampled_resolution(
    photograph, subsampling, sampling, shape
):
    data = _jpeg(photograph, quality=30, subsampling=subsampling)
    y, cb, cr = pictures.decode(data, stored=True).stored
    assert y.coefficients.shape == (96, 128)
    for part in (cb, cr):
        assert part.coefficients.shape == shape
        assert part.sampling == sampling
        np.testing.assert_array_equal(part.steps.ravel(), libjpeg(30).chroma)


@pytest.mark.parametrize(
    ("gray", "slots"), [(True, (1,)), (True, (3,)), (False, (0, 2)), (False, (2, 1))]
)
def test_tables_are_found_by_their_slots(photograph, gray, slots):
    image = np.ascontiguousarray(photograph[..., 1]) if gray else photograph
    data = bytearray(_jpeg(image, quality=30))
    for slot, new in enumerate(slots):
        place = data.index(bytes([0xFF, 0xDB, 0, 67, slot]))
        data[place + 4] = new
    components = data.index(b"\xff\xc0") + 10
    for i in range(1 if gray else 3):
        data[components + 3 * i + 2] = slots[min(i, 1)]
    with_slots = pictures.decode(bytes(data), stored=True)
    expected = pictures.decode(_jpeg(image, quality=30), stored=True)
    assert with_slots.compression == expected.compression
    for ours, theirs in zip(with_slots.stored, expected.stored, strict=True):
        np.testing.assert_array_equal(ours.steps, theirs.steps)
        np.testing.assert_array_equal(ours.coefficients, theirs.coefficients)


def test_files_without_ycbcr_coefficients_have_none_stored(photograph):
    image = Image.fromarray(photograph)
    for name, options in (("PNG", {}), ("WEBP", {})):
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        assert pictures.decode(buffer.getvalue(), stored=True).stored is None
    cmyk = io.BytesIO()
    image.convert("CMYK").save(cmyk, "JPEG")
    assert pictures.decode(cmyk.getvalue(), stored=True).stored is None
    rgb = _jpeg(photograph, keep_rgb=True)
    assert pictures.decode(rgb, stored=True).stored is None
    assert pictures.decode(_jpeg(photograph)).stored is None  # not asked for
    assert coefficients.read(b"no JPEG", 8, 8, {}).components is None


def test_projection_of_one_block_equals_a_calculation_by_hand():
    """All coefficients of the block but two are inside their intervals."""
    steps = np.full((8, 8), 10.0, np.float32)
    stored = np.zeros((8, 8), np.int16)
    stored[0, 0], stored[0, 1] = 3, -2
    component = Component(stored, steps, (1, 1))
    found = np.full((8, 8), 2.0)
    found[0, 0], found[0, 1], found[3, 5] = 37.0, -24.9, -6.0
    matrix = np.array(
        [
            [
                np.sqrt((1 if u == 0 else 2) / 8) * np.cos((2 * x + 1) * u * np.pi / 16)
                for x in range(8)
            ]
            for u in range(8)
        ]
    )
    plane = ((matrix.T @ found @ matrix + 128) / 255).astype(np.float32)
    projected = projection.project(plane, component) * 255.0 - 128
    expected = found.copy()
    expected[0, 0], expected[3, 5] = 35.0, -5.0
    np.testing.assert_allclose(matrix @ projected @ matrix.T, expected, atol=1e-3)
    # 7 of 10 and 6 of 10 are no more than 0.75 steps off; 8 would be.
    assert projection.share_outside(plane, component) == 0
    found[0, 0] = 38.0
    plane = ((matrix.T @ found @ matrix + 128) / 255).astype(np.float32)
    assert projection.share_outside(plane, component) == 1 / 64


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_projection_ends_inside_and_is_idempotent(photograph, subsampling):
    whole = np.ascontiguousarray(photograph[:80, :112])
    data = _jpeg(whole, quality=40, subsampling=subsampling)
    picture = pictures.decode(data, stored=True)
    for plane, part in zip(colour.planes(picture), picture.stored, strict=True):
        noisy = plane.values + RNG.normal(0, 0.1, plane.values.shape).astype("f")
        projected = projection.project(noisy, part)
        assert projected.shape == noisy.shape
        before, after = (projection.share_outside(x, part) for x in (noisy, projected))
        assert after == 0 < before
        again = projection.project(projected, part)
        np.testing.assert_allclose(again, projected, atol=1e-5)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_original_of_a_jpeg_is_inside(photograph, subsampling):
    """Up to the rounding of Y, Cb and Cr to integers."""
    whole = np.ascontiguousarray(photograph[:80, :112])
    data = _jpeg(whole, quality=30, subsampling=subsampling)
    planes = whole / 255 @ ycbcr.FROM_RGB.T + ycbcr.ZERO
    for i, part in enumerate(pictures.decode(data, stored=True).stored):
        original = planes[..., i].astype(np.float32)
        moved = np.abs(projection.project(original, part) - original) * 255
        assert moved.max() < 1
        assert moved.mean() < 0.01


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_projection_brings_any_picture_nearer_to_the_original(photograph, subsampling):
    whole = np.ascontiguousarray(photograph[:80, :112])
    data = _jpeg(whole, quality=50, subsampling=subsampling)
    planes = whole / 255 @ ycbcr.FROM_RGB.T + ycbcr.ZERO
    for i, part in enumerate(pictures.decode(data, stored=True).stored):
        original = planes[..., i].astype(np.float32)
        noisy = original + RNG.normal(0, 0.05, original.shape).astype(np.float32)
        projected = projection.project(noisy, part)
        before, after = (np.square(x - original).mean() for x in (noisy, projected))
        assert after < 0.999 * before


def test_projection_brings_a_blurred_picture_nearer_to_its_original(photograph):
    whole = np.ascontiguousarray(photograph[:80, :112])
    picture = pictures.decode(_jpeg(whole, quality=80), stored=True)

    def blur(x):
        return (x + np.roll(x, 1, 1) + np.roll(x, 1, 2)) / 3

    error = []
    for projecting in (False, True):
        (found,) = restorer.restore_pictures(blur, [picture], projecting=projecting)
        error.append(np.square(found.pixels - whole.astype(float)).mean())
    assert error[1] < 0.6 * error[0]


@pytest.fixture(autouse=True)
def _no_file_counts_as_compressed_before(monkeypatch):
    monkeypatch.setattr(projection, "limit", lambda quality: 1.0)


def test_files_compressed_before_are_not_projected(photograph, monkeypatch):
    picture = pictures.decode(_jpeg(photograph, quality=90), stored=True)

    def darker_half(x):
        return x * np.where(np.arange(x.shape[-1]) % 2, 1.0, 0.8).astype(np.float32)

    def restored(limit):
        monkeypatch.setattr(projection, "limit", lambda quality: limit)
        (found,) = restorer.restore_pictures(darker_half, [picture])
        return found.pixels

    (alone,) = restorer.restore_pictures(darker_half, [picture], projecting=False)
    np.testing.assert_array_equal(restored(0.0), alone.pixels)
    assert (restored(1.0) != alone.pixels).mean() > 0.5
