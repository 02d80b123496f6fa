"""Input pipeline: reads TFRecords and yields the batches of the two training stages.

Batches are dictionaries of NumPy arrays. Images are uint8 of shape
(batch, patch, patch, 1), or (batch, patch, patch, 3) in RGB. JPEGs have one axis more:
(batch, qualities, patch, patch, 1 or 3). The training steps scale them to [0, 1].

All randomness is stateless and keyed by the config's seed and the index of the example
in the stream. The stream can therefore start at any step: a resumed run sees the same
batches as an uninterrupted one, and the batches don't depend on the number of
processes.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cqr_jax.data import degradations, records
from cqr_jax.data.compression import FEATURES
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.data.kinds import LADDER
from cqr_jax.errors import UserError

Batch = dict[str, np.ndarray]
Example = Callable[[dict, tf.Tensor], dict]

# Pixels that `blind` needs beyond its patch: one block for each of two JPEGs.
BLIND_MARGIN = 2 * BLOCK
_SHUFFLE_BUFFER = 1024  # records, which are already written in random order


def pairs(patch: int, levels: tuple[tuple[int, int], ...], augment: bool) -> Example:
    """Makes examples of the ranker's stage: the same crop at two quality levels.

    Two different levels are drawn uniformly, then a quality factor is drawn uniformly
    within each (paper section 4.1). The fields of an example are image_i and image_j,
    uint8 (patch, patch, 1); label_i and label_j, int32 (), 1 to the number of levels;
    quality_i and quality_j, int32 (), 1 to 30.

    Args:
      patch: side of the crop in pixels, a multiple of 8.
      levels: first and last quality factor of each level, worst first.
      augment: whether to flip and rotate by multiples of 90 degrees at random.
    """
    table = tf.constant(levels, tf.int32)

    def example(record, seed):
        seeds = tf.random.split(seed, 4)
        count = len(levels)
        first = _uniform(seeds[0], 0, count)
        second = (first + _uniform(seeds[1], 1, count)) % count
        images, fields = [], {}
        for side, level, key in (("i", first, seeds[2]), ("j", second, seeds[3])):
            low, high = table[level][0], table[level][1]
            quality = _uniform(key, low, high + 1)
            fields[f"quality_{side}"] = quality
            fields[f"label_{side}"] = level + 1
            images.append(record["jpegs"][quality - records.QUALITIES[0]])
        image_i, image_j = _crops(record, images, [], patch, augment, seed)
        return {"image_i": image_i, "image_j": image_j, **fields}

    return example


def ladders(
    patch: int, qualities: tuple[int, ...], augment: bool, draws: int = 0
) -> Example:
    """Makes examples of the deblocker's stage: a clean crop and its JPEGs.

    The fields are clean, (patch, patch, 1), and compressed,
    (draws or len(qualities), patch, patch, 1).

    Args:
      patch: side of the crop in pixels, a multiple of 8.
      qualities: JPEG quality factors.
      augment: whether to flip and rotate by multiples of 90 degrees at random.
      draws: number of qualities to draw for each crop, without repetition. 0 takes all
        qualities in their order.
    """
    rungs = [quality - records.QUALITIES[0] for quality in qualities]

    def example(record, seed):
        chosen = rungs
        if draws:
            key = tf.random.fold_in(seed, 2)
            order = tf.random.experimental.stateless_shuffle(tf.constant(rungs), key)
            chosen = tf.unstack(order[:draws])
        images = [record["jpegs"][rung] for rung in chosen]
        clean, *compressed = _crops(
            record, images, [record["clean"]], patch, augment, seed
        )
        return {"clean": clean, "compressed": tf.stack(compressed)}

    return example


def blind(
    patch: int,
    qualities: tuple[int, int],
    double: float,
    shifted: float,
    augment: bool,
) -> Example:
    """Makes examples of the deblocker's stage with realistic JPEGs.

    A crop of the clean sub-image is compressed when it is read, at a quality factor
    that is drawn uniformly. With probability `double`, the crop is compressed before
    that at another such quality factor and on another grid. With probability `shifted`,
    the block grid has a random origin, as after cropping; otherwise it begins at the
    corner.

    The fields are clean, (patch, patch, 1), and compressed, (1, patch, patch, 1).

    Args:
      patch: side of the crop in pixels, a multiple of 8.
      qualities: lowest and highest JPEG quality factor, within 1 to 100.
      double: probability of double compression.
      shifted: probability of a grid with a random origin. The origin is one of the 64
        positions in a block, including the corner.
      augment: whether to flip and rotate by multiples of 90 degrees at random.
    """
    low, high = qualities
    room = patch + BLOCK  # side of the crop for the last compression
    first_room = patch + BLIND_MARGIN  # side of the crop for the first of two

    def compress(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        quality = _uniform(key, low, high + 1)
        # This op takes a quality for each call; tf.io.encode_jpeg takes a constant.
        data = tf.raw_ops.EncodeJpegVariableQuality(images=image, quality=quality)
        return decode(data)

    def cut(images, side, key, places) -> list[tf.Tensor]:
        vertical, horizontal = tf.unstack(tf.random.split(key, 2))
        top, left = _uniform(vertical, 0, places), _uniform(horizontal, 0, places)
        return [image[top : top + side, left : left + side] for image in images]

    def example(record, seed):
        keys = tf.unstack(tf.random.split(tf.random.fold_in(seed, 3), 7))
        clean = tf.image.decode_png(record["clean"], channels=1)
        top = _uniform(keys[0], 0, record["height"] - first_room + 1)
        left = _uniform(keys[1], 0, record["width"] - first_room + 1)
        clean = clean[top : top + first_room, left : left + first_room]
        twice = tf.random.stateless_uniform((), keys[2]) < double
        once = tf.cond(twice, lambda: compress(clean, keys[3]), lambda: clean)
        clean, image = cut([clean, once], room, keys[4], BLOCK)
        image = compress(image, keys[5])
        anywhere = tf.random.stateless_uniform((), keys[6]) < shifted
        places = tf.where(anywhere, BLOCK, 1)
        images = cut([clean, image], patch, tf.random.fold_in(keys[6], 1), places)
        images = _turned(images, patch, augment, seed)
        return {"clean": images[0], "compressed": images[1][None]}

    return example


def colour(
    patch: int,
    mixture: degradations.Mixture,
    augment: bool,
    cases: Sequence[int] = (),
) -> Example:
    """Makes examples of the deblocker's stage in colour, compressed when read.

    The fields are:

    - clean: RGB, (patch, patch, 3).
    - compressed: (1 + len(cases), patch, patch, 3). The last is drawn from the mixture.
    - compression: float32, (1 + len(cases), `compression.FEATURES`), the features of
      each compression that the network takes.

    Args:
      patch: side of the crop in pixels, a multiple of 8.
      mixture: probabilities of the degradations.
      augment: whether to flip and rotate by multiples of 90 degrees at random.
      cases: quality factors of additional JPEGs of the crop, by libjpeg with 4:2:0
        chroma. They precede the one that is drawn.
    """
    count = 1 + len(cases)

    def draw(image, seed):
        rng = np.random.default_rng(seed.view(np.uint64))
        clean, *drawn = degradations.example(image, patch, mixture, augment, rng)
        found = [degradations.aligned(clean, quality) for quality in cases]
        compressed, conditions = zip(*found, drawn, strict=True)
        return clean, np.stack(compressed), np.stack(conditions)

    def example(record, seed):
        image = tf.image.decode_png(record["clean"], channels=3)
        types = (tf.uint8, tf.uint8, tf.float32)
        clean, compressed, conditions = tf.numpy_function(
            draw, (image, tf.cast(seed, tf.int64)), types, stateful=False
        )
        return {
            "clean": tf.ensure_shape(clean, (patch, patch, 3)),
            "compressed": tf.ensure_shape(compressed, (count, patch, patch, 3)),
            "compression": tf.ensure_shape(conditions, (count, FEATURES)),
        }

    return example


def joined(streams: Sequence[Iterator[Batch]]) -> Iterator[Batch]:
    """Yields the concatenation of one batch from each stream."""
    for parts in zip(*streams, strict=True):
        yield {name: np.concatenate([x[name] for x in parts]) for name in parts[0]}


def training_batches(
    builder: tfds.core.DatasetBuilder,
    example: Example,
    *,
    batch_size: int,
    seed: int,
    stream: int = 0,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Returns the endless stream of training batches, starting at `first_step`.

    Args:
      builder: TFDS builder of the records.
      example: `pairs(...)`, `ladders(...)`, `blind(...)` or `colour(...)`.
      batch_size: global batch size over all processes, a multiple of `process_count`.
      seed: seed of the training.
      stream: number of the stream among those of the training. Streams of one seed
        draw their random numbers independently.
      first_step: number of the first batch.
      process_index, process_count: index and number of processes. Each process gets
        its share of every global batch.
    """
    data = read(builder, "train")
    count = builder.info.splits["train"].num_examples
    first = first_step * batch_size
    epoch, offset = divmod(first, count)
    buffer = min(count, _SHUFFLE_BUFFER)

    def shuffled(epoch):
        return data.shuffle(
            buffer,
            seed=stream * 2**52 + seed * 2**20 + epoch,
            reshuffle_each_iteration=False,
        )

    def is_local(index, record):
        del record
        share = batch_size // process_count
        return index % batch_size // share == process_index

    epochs = tf.data.Dataset.range(epoch, tf.int64.max)
    data = epochs.flat_map(shuffled).skip(offset).enumerate(first).filter(is_local)
    data = data.map(
        lambda index, record: example(record, fold(seed, index, stream)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    data = data.batch(batch_size // process_count).prefetch(tf.data.AUTOTUNE)
    return data.as_numpy_iterator()


def validation_batches(
    builder: tfds.core.DatasetBuilder,
    example: Example,
    *,
    examples: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> list[Batch]:
    """Returns the validation batches, which are always the same and kept in memory.

    The last batch is padded with the examples that would come next. The field `mask`
    (float32, (batch,)) is 0 for these and 1 for the others.

    Args:
      builder: TFDS builder of the records.
      example: as in `training_batches`, without augmentation.
      examples: total number of examples. The records are repeated as often as needed,
        each time with other crops.
      batch_size, seed, process_index, process_count: as in `training_batches`.
    """
    padded = -(-examples // batch_size) * batch_size
    data = read(builder, "validation").repeat().take(padded).enumerate()
    data = data.map(
        lambda index, record: {
            **example(record, fold(seed, index)),
            "mask": tf.cast(index < examples, tf.float32),
        },
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    data = data.batch(batch_size // process_count).shard(process_count, process_index)
    return list(data.as_numpy_iterator())


def open_records(
    data_dir: str, name: str, side: int, kind: str = LADDER
) -> tfds.core.DatasetBuilder:
    """Returns the builder of existing records, which must fit crops of this side.

    Raises:
      UserError: if there are no records, or a sub-image is smaller than a crop.
    """
    builder = records.open_builder(data_dir, name, kind)
    shortest = builder.info.metadata["min_side"]
    if side > shortest:
        raise UserError(
            f"crops of {side} pixels don't fit the records of '{name}', whose "
            f"sub-images may have sides of {shortest}; take smaller crops, or build "
            "records with a larger --min_side"
        )
    return builder


def read(builder: tfds.core.DatasetBuilder, split: str) -> tf.data.Dataset:
    """Reads records in storage order, without decoding their images."""
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    return builder.as_dataset(split=split, shuffle_files=False, read_config=config)


def fold(seed: int, index: tf.Tensor, stream: int = 0) -> tf.Tensor:
    """Returns the seed of the example at `index` in the stream."""
    return tf.random.fold_in(tf.stack([np.int64(seed), np.int64(stream)]), index)


def _uniform(seed: tf.Tensor, low, high) -> tf.Tensor:
    """Draws an integer uniformly from low..high-1."""
    return tf.random.stateless_uniform((), seed, low, high, tf.int32)


def decode(data: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG to the same pixels as Pillow."""
    return tf.io.decode_jpeg(data, channels=1, dct_method="INTEGER_ACCURATE")


def decode_crop(
    data: tf.Tensor, top: tf.Tensor, left: tf.Tensor, patch: int
) -> tf.Tensor:
    """Decodes a square crop of a JPEG to the same pixels as Pillow."""
    return tf.image.decode_and_crop_jpeg(
        data,
        tf.stack([top, left, patch, patch]),
        channels=1,
        dct_method="INTEGER_ACCURATE",
    )


def _crops(
    record: dict,
    jpegs: list[tf.Tensor],
    pngs: list[tf.Tensor],
    patch: int,
    augment: bool,
    seed: tf.Tensor,
) -> list[tf.Tensor]:
    """Takes the same random crop of all PNGs, then of all JPEGs.

    The crop is aligned to the 8x8 grid. All crops are flipped and rotated alike.
    """
    top, left, _, _ = tf.unstack(tf.random.split(tf.random.fold_in(seed, 1), 4))
    top = BLOCK * _uniform(top, 0, (record["height"] - patch) // BLOCK + 1)
    left = BLOCK * _uniform(left, 0, (record["width"] - patch) // BLOCK + 1)
    images = [
        tf.image.decode_png(png, channels=1)[top : top + patch, left : left + patch]
        for png in pngs
    ]
    images += [decode_crop(data, top, left, patch) for data in jpegs]
    return _turned(images, patch, augment, seed)


def _turned(
    images: list[tf.Tensor], patch: int, augment: bool, seed: tf.Tensor
) -> list[tf.Tensor]:
    """Flips and rotates all square images alike at random if `augment`."""
    _, _, turn, flip = tf.unstack(tf.random.split(tf.random.fold_in(seed, 1), 4))
    stack = tf.ensure_shape(tf.stack(images), (len(images), patch, patch, 1))
    if augment:
        stack = tf.image.rot90(stack, _uniform(turn, 0, 4))
        if_flipped = tf.reverse(stack, axis=[2])
        stack = tf.where(_uniform(flip, 0, 2) == 1, if_flipped, stack)
    return tf.unstack(stack)
