"""PSNR, SSIM and PSNR-B of colour JPEGs and of deblockers, as in the literature.

libjpeg encodes an RGB image with its own tables, by default with 4:2:0 chroma, and
decodes it. Deblockers restore it as cqr-restore does. The metrics are computed over
RGB, uint8.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterable

import ml_collections
import numpy as np

from cqr_jax import tables
from cqr_jax.config import split_list
from cqr_jax.data import degradations, jpeg
from cqr_jax.data.compression import SUBSAMPLINGS, Compression, libjpeg
from cqr_jax.errors import UserError
from cqr_jax.evaluation import metrics, published, table2
from cqr_jax.restoring import pictures, restorer
from cqr_jax.restoring.picture import Picture


def psnr(reference: np.ndarray, image: np.ndarray) -> float:
    """Computes PSNR in dB from the mean squared error over all channels.

    The PSNR of equal images is infinite.

    Args:
      reference, image: uint8, (height, width, channels).
    """
    return metrics.psnr(_side_by_side(reference), _side_by_side(image))


def _side_by_side(image: np.ndarray) -> np.ndarray:
    """Reshapes (height, width, channels) to (height, width * channels)."""
    return image.reshape(len(image), -1)


def mean_of_channels(
    metric: Callable[[np.ndarray, np.ndarray], float],
    reference: np.ndarray,
    image: np.ndarray,
) -> float:
    """Computes the mean of a metric over the channels.

    Args:
      metric: metric of `cqr_jax.evaluation.metrics`, of two (height, width) images.
      reference, image: uint8, (height, width, channels).
    """
    channels = (np.moveaxis(x, -1, 0) for x in (reference, image))
    return float(np.mean([metric(*pair) for pair in zip(*channels, strict=True)]))


def psnr_b(reference: np.ndarray, image: np.ndarray) -> float:
    """Computes PSNR-B in dB from the squared error of RGB and the blocking effect of Y.

    Y is that of MATLAB's `rgb2ycbcr`. QGAC (Ehrlich et al. 2020) and FBCNN (Jiang et
    al. 2021) use the same definition: their plain JPEG on LIVE1 has 24.20 dB at
    QF 10. Ours has 24.21 dB.

    Args:
      reference, image: uint8 RGB, (height, width, 3).
    """
    error = np.mean(np.square(reference.astype(np.float64) - image))
    blocking = metrics.blocking_effect(jpeg.luma(image))
    return metrics.psnr_of_mse(float(error) + blocking)


# Name -> metric of (reference, image), both RGB.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "psnr": psnr,
    "ssim": functools.partial(mean_of_channels, metrics.ssim),
    "psnr_b": psnr_b,
}


def evaluate_colour(config: ml_collections.ConfigDict) -> None:
    """Runs the preset colour; prints the measured and the published tables.

    Writes WORKDIR/rows.json, rows.csv, images.csv (a row for each image) and table.md.

    Args:
      config: config of the preset colour in `configs/eval.py`.

    Raises:
      UserError: as in `measure`, or if two of the weights have the same name.
    """
    methods = table2.by_name(split_list(config.weights), [table2.JPEG])
    rows, images = measure(config, methods)
    title = f"Measured, {config.subsampling}: PSNR | SSIM | PSNR-B over RGB"
    table2.write(config.workdir, rows, images, rows, _published, title)


def _published(rows: Iterable[dict]) -> dict[str, tables.Table]:
    """Returns the published tables for the sets of `rows`; all are for 4:2:0."""
    return published.colour(x for x in rows if x["subsampling"] == "4:2:0")


def measure(
    config: ml_collections.ConfigDict, methods: dict[str, str]
) -> tuple[list[dict], list[dict]]:
    """Measures plain JPEG and every deblocker on every set and quality.

    Images are read, compressed and scored on all cores while the networks run.

    Args:
      config: config of the preset colour in `configs/eval.py`.
      methods: name -> path of a deblocker's weights.

    Returns:
      Rows of the sets and rows of the images, as in `table2.measure`, but without gmsd
      and with subsampling ('4:2:0').

    Raises:
      UserError: if a set or weights are missing, or if an image can't be read or is
        gray.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    runs = table2.networks(methods, config.self_ensemble, seconds)
    images = table2.find_images(split_list(config.sets), config.set_dir)
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
    subsampling = {"subsampling": config.subsampling}
    return [{**row, **subsampling} for row in rows], [
        {**row, **subsampling} for row in each
    ]


def load(path: str | os.PathLike) -> np.ndarray:
    """Reads a colour image to evaluate.

    Args:
      path: path of the image.

    Returns:
      uint8 RGB, (height, width, 3).

    Raises:
      UserError: as in `table2.load`, or if the image is gray.
    """
    image = table2.load(path, jpeg.load_rgb)
    # Gray images have no chroma to lose, so they would bias the mean of a colour
    # evaluation. Gray sets have their own presets.
    if image.ndim == 2:
        raise UserError(
            f"{path}: is gray, but this evaluation needs colour images; remove it from "
            "its set, or use the preset table2 or blind of configs/eval.py"
        )
    return image


def compress(image: np.ndarray, compression: Compression) -> Picture:
    """Compresses an RGB image (uint8, (height, width, 3)) as JPEG.

    Returns the JPEG as cqr-restore reads it.
    """
    return pictures.decode(degradations.encode(image, compression), stored=True)
