"""Tests of the pipeline: contents of batches, and streams that start at any step."""

import itertools

import numpy as np
import pytest

from cqr_jax.data import jpeg, pipeline
from cqr_jax.errors import UserError

LEVELS = ((1, 10), (11, 20), (21, 30))


def _take(stream, count):
    return list(itertools.islice(stream, count))


def _assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def _stream(builder, **kwargs):
    example = pipeline.pairs(48, LEVELS, augment=True)
    return pipeline.training_batches(builder, example, batch_size=4, seed=3, **kwargs)


def test_pairs_have_different_levels_and_qualities_within_them(builder):
    seen = set()
    for batch in _take(_stream(builder), 50):
        assert batch["image_i"].shape == (4, 48, 48, 1)
        assert batch["image_i"].dtype == np.uint8
        assert (batch["label_i"] != batch["label_j"]).all()
        for side in "ij":
            labels, qualities = batch[f"label_{side}"], batch[f"quality_{side}"]
            np.testing.assert_array_equal(labels, (qualities - 1) // 10 + 1)
            seen |= set(qualities.tolist())
    assert seen == set(range(1, 31))  # 400 draws of 30


def _places(image, whole):
    """Returns where each of the image's eight transforms is on the grid of `whole`."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, image.shape)[::8, ::8]
    turns = [np.rot90(image, k)[:, ::step] for k in range(4) for step in (1, -1)]
    found = []
    for turned in turns:
        # Few windows have the first row. Only these are compared as a whole.
        same = (windows[:, :, 0] == turned[0]).all(-1)
        same[same] = (windows[same] == turned).all((1, 2))
        found.append(same)
    return np.stack(found)


def test_both_images_of_a_pair_are_the_same_crop(builder):
    (batch,) = _take(_stream(builder), 1)
    records = list(pipeline.read(builder, "train").as_numpy_iterator())
    for k in range(4):
        together = 0
        for record in records:
            i, j = (
                _places(
                    batch[f"image_{side}"][k, ..., 0],
                    jpeg.decode(record["jpegs"][batch[f"quality_{side}"][k] - 1]),
                )
                for side in "ij"
            )
            together += (i & j).sum()
        assert together


def test_ladders_are_pillow_jpegs_of_crops_on_the_grid(builder):
    example = pipeline.ladders(64, (10, 30), augment=False)
    (batch,) = pipeline.validation_batches(
        builder, example, examples=3, batch_size=4, seed=0
    )
    np.testing.assert_array_equal(batch["mask"], [1, 1, 1, 0])
    assert batch["compressed"].shape == (4, 2, 64, 64, 1)
    for clean, compressed in zip(batch["clean"], batch["compressed"], strict=True):
        # Blocks are independent: the crop's own JPEG is the crop of the JPEG.
        for image, quality in zip(compressed, (10, 30), strict=True):
            own = jpeg.compress(np.ascontiguousarray(clean[..., 0]), quality)
            np.testing.assert_array_equal(image[..., 0], own)


def test_ladders_draw_pairs_of_different_qualities(builder):
    qualities = (10, 20, 30)
    example = pipeline.ladders(48, qualities, augment=False, draws=2)
    stream = pipeline.training_batches(builder, example, batch_size=8, seed=0)
    drawn = set()
    for batch in _take(stream, 4):
        assert batch["compressed"].shape == (8, 2, 48, 48, 1)
        for clean, pair in zip(batch["clean"], batch["compressed"], strict=True):
            y = np.ascontiguousarray(clean[..., 0])
            own = {quality: jpeg.compress(y, quality) for quality in qualities}
            found = [
                {q for q in qualities if np.array_equal(image[..., 0], own[q])}
                for image in pair
            ]
            assert not found[0] & found[1] or len(found[0]) > 1  # a flat crop
            drawn.add(tuple(min(quality) for quality in found))
    assert len(drawn) >= 6  # each ordered pair of two of the three


def test_augmentation_transforms_all_images_of_an_example_alike(builder):
    example = pipeline.ladders(48, (30,), augment=True)
    stream = pipeline.training_batches(builder, example, batch_size=8, seed=0)
    for batch in _take(stream, 3):
        error = batch["clean"].astype(float) - batch["compressed"][:, 0]
        assert np.abs(error).mean(axis=(1, 2, 3)).max() < 16


def test_augmentation_uses_all_eight_flips_and_rotations(builder):
    example = pipeline.ladders(48, (30,), augment=True)
    stream = pipeline.training_batches(builder, example, batch_size=8, seed=0)
    records = list(pipeline.read(builder, "train").as_numpy_iterator())
    wholes = [jpeg.decode(record["clean"]) for record in records]
    seen = set()
    for batch in _take(stream, 8):
        for crop in batch["clean"][..., 0]:
            turns = {i for w in wholes for i in np.argwhere(_places(crop, w))[:, 0]}
            assert turns
            seen |= turns if len(turns) == 1 else set()
    assert seen == set(range(8))


@pytest.mark.parametrize(
    "example",
    [
        pipeline.pairs(48, LEVELS, augment=True),
        pipeline.ladders(48, (10, 20, 30), augment=True, draws=2),
        pipeline.blind(32, (5, 95), 0.5, 0.5, augment=True),
    ],
)
def test_stream_can_start_at_any_step(builder, example):
    def stream(**kwargs):
        return pipeline.training_batches(
            builder, example, batch_size=4, seed=3, **kwargs
        )

    unbroken = _take(stream(), 12)  # over several epochs of the few records
    for first in (1, 11):
        resumed = _take(stream(first_step=first), 12 - first)
        for left, right in zip(unbroken[first:], resumed, strict=True):
            _assert_equal(left, right)


def test_epochs_have_each_record_once_in_different_orders(builder):
    count = builder.info.splits["train"].num_examples

    def name(record, seed):
        return {"key": record["name"] + "-" + str_of(record["left"])}

    import tensorflow as tf

    str_of = tf.strings.as_string
    stream = pipeline.training_batches(builder, name, batch_size=count, seed=0)
    epochs = [batch["key"].tolist() for batch in _take(stream, 4)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == count
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_processes_share_the_global_batch(builder):
    whole = _take(_stream(builder), 3)
    parts = [
        _take(_stream(builder, process_index=i, process_count=2), 3) for i in (0, 1)
    ]
    for step, batch in enumerate(whole):
        joined = {
            name: np.concatenate([part[step][name] for part in parts]) for name in batch
        }
        _assert_equal(batch, joined)


def test_processes_share_the_validation(builder):
    example = pipeline.ladders(64, (10, 30), augment=False)

    def batches(**kwargs):
        return pipeline.validation_batches(
            builder, example, examples=6, batch_size=4, seed=0, **kwargs
        )

    whole = {name: [batch[name] for batch in batches()] for name in batches()[0]}
    parts = [batches(process_index=i, process_count=2) for i in (0, 1)]
    assert all(len(part) == 2 for part in parts)
    for name, values in whole.items():
        found = np.concatenate([batch[name] for part in parts for batch in part])
        expected = np.concatenate(values)
        assert len(found) == len(expected) == 8
        assert sorted(x.tobytes() for x in found) == sorted(
            x.tobytes() for x in expected
        )


def test_different_seeds_give_different_batches(builder):
    example = pipeline.pairs(48, LEVELS, augment=True)
    first, second = (
        _take(pipeline.training_batches(builder, example, batch_size=4, seed=s), 1)[0]
        for s in (0, 1)
    )
    assert (first["image_i"] != second["image_i"]).any()


def test_missing_records_and_too_large_crops_are_errors(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"make them with: python -m data_prep\.build"):
        pipeline.open_records(str(tmp_path), "photos", 48)
    with pytest.raises(UserError, match="sides of 128"):
        pipeline.open_records(str(data_dir), "photos", 136)


def _blind(builder, **kwargs):
    """Returns a crop of 32 pixels, its JPEG, its photograph and its position there."""
    example = pipeline.blind(32, augment=False, **kwargs)
    (batch,) = pipeline.validation_batches(
        builder, example, examples=1, batch_size=1, seed=5
    )
    record = next(iter(pipeline.read(builder, "validation").take(1)))
    assert batch["clean"].shape == (1, 32, 32, 1)
    assert batch["compressed"].shape == (1, 1, 32, 32, 1)
    clean, image = batch["clean"][0, ..., 0], batch["compressed"][0, 0, ..., 0]
    whole = jpeg.decode(record["clean"].numpy())
    windows = np.lib.stride_tricks.sliding_window_view(whole, (32, 32))
    places = np.argwhere((windows == clean).all(axis=(2, 3)))
    assert len(places) == 1
    return clean, image, whole, places[0]


def _on_grid(whole, place, quality, shift, side):
    """Returns Pillow's JPEG of the part at `place`, on a grid that begins before it."""
    top, left = (max(0, p - s) for p, s in zip(place, shift, strict=True))
    part = np.ascontiguousarray(whole[top : top + side, left : left + side])
    return jpeg.compress(part, quality)[shift[0] :, shift[1] :]


def test_blind_at_the_corner_is_a_pillow_jpeg_at_a_drawn_quality(builder):
    clean, image, _, _ = _blind(builder, qualities=(5, 95), double=0.0, shifted=0.0)
    matches = [
        q for q in range(1, 101) if np.array_equal(jpeg.compress(clean, q), image)
    ]
    assert matches
    assert 5 <= matches[0] <= 95


def test_blind_shifted_is_a_pillow_jpeg_on_one_other_grid(builder):
    _, image, whole, place = _blind(
        builder, qualities=(20, 20), double=0.0, shifted=1.0
    )
    matches = [
        shift
        for shift in itertools.product(range(8), repeat=2)
        if np.array_equal(_on_grid(whole, place, 20, shift, 40)[:32, :32], image)
    ]
    assert len(matches) == 1
    assert matches != [(0, 0)]


def test_blind_twice_is_a_pillow_jpeg_of_a_pillow_jpeg(builder):
    _, image, whole, place = _blind(
        builder, qualities=(30, 30), double=1.0, shifted=0.0
    )
    matches = []
    for shift in itertools.product(range(8), repeat=2):
        once = _on_grid(whole, place, 30, shift, 48)
        again = jpeg.compress(np.ascontiguousarray(once[:40, :40]), 30)
        if np.array_equal(again[:32, :32], image):
            matches.append(shift)
    assert len(matches) == 1
