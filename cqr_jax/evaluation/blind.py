"""Blind evaluation of deblockers: any quality, any block grid, double compression."""

import functools
import itertools
import json
import logging
import operator
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from cqr_jax import files, progress, tables
from cqr_jax.config import split_list
from cqr_jax.data import jpeg
from cqr_jax.data.compression import SUBSAMPLINGS, features, libjpeg
from cqr_jax.errors import UserError
from cqr_jax.evaluation import colour, metrics, table2
from cqr_jax.restoring import network, restorer, tiles
from cqr_jax.restoring.picture import Picture

_log = logging.getLogger(__name__)

_QUALITIES = (5, *range(10, 91, 10), 95)
_SHIFT = (3, 5)  # rows and columns to crop, which shifts the block grid
_DOUBLE = ((10, 90), (90, 10), (30, 50), (50, 30), (75, 95), (95, 75))
_HALF = (4, 4)  # the shift of FBCNN (Jiang et al. 2021), half a block

_COLOUR_QUALITIES = (*_QUALITIES, 98, 100)
_COLOUR_DOUBLE = ((10, 50), (50, 10), (30, 90), (75, 95))
_FEW = (10, 40, 80)  # qualities for the rarer chroma subsamplings


class Degradation(NamedTuple):
    """How an image was degraded.

    Attributes:
      kind: 'aligned' (the block grid begins at the corner), 'shifted' (cropped after
        compression), 'double' (compressed twice on the same grid) or 'double shifted'
        (cropped between the compressions).
      qualities: JPEG quality factors, in the order of the compressions.
      shift: rows and columns to crop if the kind is shifted.
      subsampling: chroma subsampling of an RGB image, a key of
        `compression.SUBSAMPLINGS`; empty for a gray image.
    """

    kind: str
    qualities: tuple[int, ...]
    shift: tuple[int, int] = _SHIFT
    subsampling: str = ""

    def is_file(self) -> bool:
        """Returns whether the degraded image is a JPEG file.

        An image that is cropped after compression is a PNG.
        """
        return self.kind != "shifted"

    def title(self) -> str:
        """Returns the kind, with the subsampling and any shift other than `_SHIFT`."""
        words = [self.subsampling, self.kind]
        if "shifted" in self.kind and self.shift != _SHIFT:
            words.append(f"by {self.shift[0]}, {self.shift[1]}")
        return " ".join(filter(None, words))


DEGRADATIONS = (
    *(Degradation("aligned", (quality,)) for quality in _QUALITIES),
    *(Degradation("shifted", (quality,)) for quality in _QUALITIES),
    *(Degradation("double", pair) for pair in _DOUBLE),
    *(Degradation("double shifted", pair) for pair in _DOUBLE),
    # Cases that FBCNN published.
    *(Degradation("double", pair) for pair in ((10, 50), (50, 10))),
    Degradation("double shifted", (30, 50), _HALF),
)


def _of_colour(
    kind: str, qualities: tuple[int, ...], subsampling: str = "4:2:0"
) -> Degradation:
    return Degradation(kind, qualities, _HALF, subsampling)


COLOUR_DEGRADATIONS = (
    *(_of_colour("aligned", (quality,)) for quality in _COLOUR_QUALITIES),
    *(
        _of_colour("aligned", (quality,), subsampling)
        for subsampling in ("4:2:2", "4:4:4")
        for quality in _FEW
    ),
    *(_of_colour("shifted", (quality,)) for quality in _FEW),
    *(_of_colour("double", pair) for pair in _COLOUR_DOUBLE),
    *(_of_colour("double shifted", pair) for pair in _COLOUR_DOUBLE),
)


def degrade(
    clean: np.ndarray, degradation: Degradation
) -> tuple[np.ndarray, np.ndarray]:
    """Degrades an image, and crops its original to match.

    Args:
      clean: uint8, (height, width), with sides above 5 pixels.
      degradation: degradation of a gray image.

    Returns:
      The degraded image and its original, both uint8 with the same shape.
    """
    first, *second = degradation.qualities
    image, clean = _cropped(jpeg.compress(clean, first), clean, degradation)
    for quality in second:
        image = jpeg.compress(image, quality)
    return image, clean


def degrade_colour(
    clean: np.ndarray, degradation: Degradation
) -> tuple[Picture, np.ndarray]:
    """Degrades a colour image, and crops its original to match.

    Args:
      clean: uint8 RGB, (height, width, 3), with sides above 5 pixels.
      degradation: degradation of an RGB image.

    Returns:
      The degraded picture, as cqr-restore reads its file, and its original, uint8. Both
      have the same shape. A picture that is cropped after the last compression has no
      compression.
    """
    sampling = SUBSAMPLINGS[degradation.subsampling]
    first, *second = (libjpeg(x, sampling) for x in degradation.qualities)
    picture = colour.compress(clean, first)
    if "shifted" in degradation.kind:
        image, clean = _cropped(picture.pixels, clean, degradation)
        picture = Picture(image)
    for compression in second:
        picture = colour.compress(picture.pixels, compression)
    return picture, clean


def _cropped(
    image: np.ndarray, clean: np.ndarray, degradation: Degradation
) -> tuple[np.ndarray, np.ndarray]:
    """Crops an image and its original if the degradation is shifted."""
    if "shifted" not in degradation.kind:
        return image, clean
    top, left = degradation.shift
    cut = np.ascontiguousarray(image[top:, left:])
    return cut, np.ascontiguousarray(clean[top:, left:])


def evaluate_blind(config: ml_collections.ConfigDict) -> list[dict]:
    """Restores degraded images with every deblocker; prints and writes the gains.

    Writes WORKDIR/blind.json, blind.csv and blind.md.

    Args:
      config: config of the preset blind in `configs/eval.py`.

    Returns:
      A row for each degradation and method, with the fields kind, qualities, method,
      images, psnr (dB, the mean over the degraded images), gain (dB, the mean increase
      in PSNR by restoration) and worst (dB, the lowest gain of any image). Images that
      equal their original before or after restoration are left out.

    Raises:
      UserError: if no weights are given, or if weights, a set or an image can't be
        read.
    """

    def degraded(clean, degradation):
        image, clean = degrade(clean, degradation)
        last = degradation.qualities[-1]
        condition = (
            table2.gray_features(last) if degradation.is_file() else features(None)
        )
        return tiles.Conditioned(image, condition), clean

    return _compare(
        config,
        DEGRADATIONS,
        table2.load,
        degraded,
        lambda run, images: map(metrics.to_uint8, tiles.restore(run, images)),
        lambda clean, image: metrics.psnr(
            clean, image.image if isinstance(image, tiles.Conditioned) else image
        ),
    )


def evaluate_blind_colour(config: ml_collections.ConfigDict) -> list[dict]:
    """Does the same as `evaluate_blind` for colour pictures.

    Pictures are restored as cqr-restore does. PSNR is over RGB.

    Args:
      config: config of the preset blind_colour in `configs/eval.py`.

    Returns:
      Rows as in `evaluate_blind`. The kinds begin with the chroma subsampling.

    Raises:
      UserError: as in `evaluate_blind`, or if an image is gray.
    """
    return _compare(
        config,
        COLOUR_DEGRADATIONS,
        colour.load,
        degrade_colour,
        functools.partial(_restored_pictures, config.projection),
        lambda clean, picture: colour.psnr(clean, picture.pixels),
    )


def _restored_pictures(
    projecting: bool, run: network.Run, pictures: Iterable[Picture]
) -> Iterator[Picture]:
    return restorer.restore_pictures(run, pictures, projecting=projecting)


def _compare(
    config: ml_collections.ConfigDict,
    degradations: Sequence[Degradation],
    load: Callable[[pathlib.Path], np.ndarray],
    degrade: Callable[[np.ndarray, Degradation], tuple[Any, np.ndarray]],
    restore: Callable[[network.Run, Iterator[Any]], Iterable[Any]],
    psnr: Callable[[np.ndarray, Any], float],
) -> list[dict]:
    """Restores degraded images with every deblocker; prints and writes the gains.

    Images are restored one after the other, so that few are in memory at a time.

    Args:
      config: config with sets, set_dir, weights and workdir.
      degradations: degradations to apply to each image.
      load: path -> clean image.
      degrade: clean image, degradation -> degraded image and its original.
      restore: network, degraded images -> restored images.
      psnr: original, degraded or restored image -> dB.
    """
    if not config.weights:
        raise UserError("config.weights: name deblockers' weights, .safetensors files")
    methods = table2.by_name(split_list(config.weights), [table2.JPEG])
    runs = table2.networks(methods)
    images = table2.find_images(split_list(config.sets), config.set_dir)
    table2.check(images.values(), config.set_dir)
    cases = [(image.path, x) for image in images.values() for x in degradations]

    def measure(name, restored) -> list[float]:
        """Returns the PSNR of each case."""
        degraded, again = itertools.tee(_degraded(cases, load, degrade))
        found = restored(image for image, _ in degraded)
        values = (
            psnr(clean, image) for (_, clean), image in zip(again, found, strict=True)
        )
        return list(progress.over(values, len(cases), name, "image"))

    ways: Mapping[str, Callable] = {table2.JPEG: iter} | {
        name: functools.partial(restore, run) for name, run in runs.items()
    }
    found = np.array([measure(*way) for way in ways.items()])
    found = found.reshape(len(ways), len(images), len(degradations))
    rows = gains(found, list(methods), degradations)
    folder = pathlib.Path(config.workdir)
    shown = as_table(rows)
    files.write(folder / "blind.json", json.dumps(rows, indent=2) + "\n")
    files.write(folder / "blind.csv", tables.to_csv(rows))
    files.write(folder / "blind.md", tables.markdown(shown) + "\n")
    print(tables.text(shown))
    _log.info("gains in %s", folder)
    return rows


def gains(
    psnr: np.ndarray,
    methods: Sequence[str],
    degradations: Sequence[Degradation] = DEGRADATIONS,
) -> list[dict]:
    """Returns the rows of `evaluate_blind`.

    Args:
      psnr: PSNR in dB, (1 + methods, images, degradations). The first is that of the
        degraded images.
      methods: names of the methods.
      degradations: degradations of each image.
    """
    rows = []
    for i, degradation in enumerate(degradations):
        counted = np.isfinite(psnr[:, :, i]).all(0)
        if not counted.any():
            continue
        plain, *restored = psnr[:, counted, i]
        for name, gain in zip(methods, restored - plain, strict=True):
            rows.append(
                {
                    "kind": degradation.title(),
                    "qualities": " then ".join(map(str, degradation.qualities)),
                    "images": int(counted.sum()),
                    "psnr": float(np.mean(plain)),
                    "method": name,
                    "gain": float(np.mean(gain)),
                    "worst": float(np.min(gain)),
                }
            )
    return rows


def as_table(rows: Iterable[dict]) -> tables.Table:
    """Makes a table with a line per degradation.

    It shows the mean and the lowest gain of each method in dB.
    """
    return tables.pivot(
        ("degraded", "QF", "images", "PSNR"),
        (
            (
                (row["kind"], row["qualities"], str(row["images"]), _db(row["psnr"])),
                row["method"],
                f"{row['gain']:+.2f} ({row['worst']:+.2f})",
            )
            for row in rows
        ),
    )


def _degraded(
    cases: Iterable[tuple[pathlib.Path, Degradation]], load: Callable, degrade: Callable
) -> Iterator[tuple[Any, np.ndarray]]:
    """Applies `degrade` to each case; reads an image once for consecutive cases."""
    for path, group in itertools.groupby(cases, operator.itemgetter(0)):
        clean = load(path)
        for _, degradation in group:
            yield degrade(clean, degradation)


def _db(value: float) -> str:
    return tables.shown("psnr", value)
