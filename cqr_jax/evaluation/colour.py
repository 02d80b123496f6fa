"""PSNR, SSIM and PSNR-B of colour JPEGs and of deblockers, as the literature has them.

An RGB image is saved by libjpeg with its tables, by default with 4:2:0 chroma, and
decoded by it. Deblockers restore it as cqr-restore does. The figures are of RGB, uint8.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterable

import ml_collections
import numpy as np

from cqr_jax import tables
from cqr_jax.config import SUBSAMPLINGS, split_list
from cqr_jax.data import degradations, jpeg, kinds
from cqr_jax.data.compression import Compression, libjpeg
from cqr_jax.errors import UserError
from cqr_jax.evaluation import metrics, published, table2
from cqr_jax.restoring import pictures, restorer
from cqr_jax.restoring.pictures import Picture


def psnr(reference: np.ndarray, image: np.ndarray) -> float:
    """PSNR in dB of one mean squared error over all channels; infinite if it is 0.

    Args:
      reference, image: uint8, (height, width, channels).
    """
    return metrics.psnr(_side_by_side(reference), _side_by_side(image))


def _side_by_side(image: np.ndarray) -> np.ndarray:
    """(height, width, channels) -> (height, width * channels)."""
    return image.reshape(len(image), -1)


def mean_of_channels(
    metric: Callable[[np.ndarray, np.ndarray], float],
    reference: np.ndarray,
    image: np.ndarray,
) -> float:
    """The mean of what a metric of `cqr_jax.evaluation.metrics` gives for each channel.

    Args:
      metric: of two images (height, width).
      reference, image: uint8, (height, width, channels).
    """
    channels = (np.moveaxis(x, -1, 0) for x in (reference, image))
    return float(np.mean([metric(*pair) for pair in zip(*channels, strict=True)]))


def psnr_b(reference: np.ndarray, image: np.ndarray) -> float:
    """PSNR-B in dB: the squared error of RGB plus the blocking effect of Y.

    Y is that of MATLAB's `rgb2ycbcr`. So have it QGAC (Ehrlich et al. 2020) and FBCNN
    (Jiang et al. 2021): plain JPEG on LIVE1 has 24.20 dB at QF 10.

    Args:
      reference, image: uint8 RGB, (height, width, 3).
    """
    error = np.mean(np.square(reference.astype(np.float64) - image))
    blocking = metrics.blocking_effect(jpeg.luma(image))
    return metrics.psnr_of_mse(float(error) + blocking)


# Of (reference, image), RGB.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "psnr": psnr,
    "ssim": functools.partial(mean_of_channels, metrics.ssim),
    "psnr_b": psnr_b,
}


def evaluate_colour(config: ml_collections.ConfigDict) -> None:
    """Evaluates as the preset colour says, prints the table and what was published.

    Writes WORKDIR/rows.json, rows.csv, images.csv (a row for each image) and table.md.

    Args:
      config: as the preset colour of `configs/eval.py` makes it.

    Raises:
      UserError: as `measure`; or two of the weights have one name.
    """
    methods = table2.by_name(split_list(config.weights), [table2.JPEG])
    rows, images = measure(config, methods)
    title = f"Measured, {config.subsampling}: PSNR | SSIM | PSNR-B over RGB"
    table2.write(config.workdir, rows, images, rows, _published, title)


def _published(rows: Iterable[dict]) -> dict[str, tables.Table]:
    """What was published for the sets of `rows`: of 4:2:0 alone."""
    return published.colour(x for x in rows if x["subsampling"] == "4:2:0")


def measure(
    config: ml_collections.ConfigDict, methods: dict[str, str]
) -> tuple[list[dict], list[dict]]:
    """The metrics of plain JPEG and of every deblocker on every set and quality.

    Images are read, compressed and scored on all cores beside the networks.

    Args:
      config: as the preset colour of `configs/eval.py` makes it.
      methods: name -> path of a deblocker's weights.

    Returns:
      Rows of the sets and rows of the images, as `table2.measure` returns them, but
      without gmsd, and with subsampling ('4:2:0').

    Raises:
      UserError: a set or weights are missing, an image can't be read, or it is gray.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    runs = table2.networks(methods, config.self_ensemble, seconds)
    images = table2.find_images(split_list(config.sets), config.set_dir, kinds.COLOUR)
    differing: list[pathlib.Path] = []
    sampling = SUBSAMPLINGS[config.subsampling]

    def loaded(key):
        image = images[key]
        clean = load(image.path)
        if image.expected and not image.is_expected(jpeg.luma(clean)):
            differing.append(image.path)
        compressed = [
            compress(clean, libjpeg(quality, sampling)) for quality in config.qualities
        ]
        return key, clean, compressed

    def restore(case):
        key, clean, compressed = case
        results = {table2.JPEG: compressed}
        for name, run in runs.items():
            results[name] = list(
                restorer.restore_pictures(run, compressed, projecting=config.projection)
            )
        return key, clean, results

    def score(case):
        key, clean, results = case
        return {
            (key, quality, name): tuple(
                metric(clean, picture.pixels) for metric in METRICS.values()
            )
            for name, restored in results.items()
            for quality, picture in zip(config.qualities, restored, strict=True)
        }

    found = table2.over_images(images, loaded, restore, score, seconds)
    table2.warn_of(differing, config.set_dir)
    rows, each = table2.to_rows(config, images, found, methods, METRICS)
    told = {"subsampling": config.subsampling}
    return [{**row, **told} for row in rows], [{**row, **told} for row in each]


def load(path: str | os.PathLike) -> np.ndarray:
    """Reads a colour image that is to be measured.

    Args:
      path: of the image.

    Returns:
      uint8 RGB, (height, width, 3).

    Raises:
      UserError: as `table2.load`; or the image is gray.
    """
    image = table2.load(path, jpeg.load_rgb)
    # Whoever asks for the figures of colours would not expect gray images in their
    # mean: these have no chroma to lose. Gray sets have presets of their own.
    if image.ndim == 2:
        raise UserError(
            f"{path}: is gray, but this evaluation is of colours; remove it from its "
            "set, or take the preset table2 or blind of configs/eval.py"
        )
    return image


def compress(image: np.ndarray, compression: Compression) -> Picture:
    """The JPEG of an RGB image (uint8, (height, width, 3)), as cqr-restore reads it."""
    return pictures.decode(degradations.encode(image, compression), stored=True)
