"""What deblockers gain where they were not trained: any quality, grid, and twice."""

import functools
import itertools
import json
import logging
import operator
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from cqr_jax import evaluate, files, metrics, progress, tables, weights
from cqr_jax.config import words
from cqr_jax.data import jpeg
from cqr_jax.errors import UserError
from cqr_jax.restoring import network, tiles

_log = logging.getLogger(__name__)

_QUALITIES = (5, *range(10, 91, 10), 95)
_SHIFT = (3, 5)  # rows and columns cropped away, so that blocks begin elsewhere
_DOUBLE = ((10, 90), (90, 10), (30, 50), (50, 30), (75, 95), (95, 75))


class Degradation(NamedTuple):
    """How an image became what is to be restored.

    Attributes:
      kind: 'aligned' (its blocks begin at its corner), 'shifted' (cropped afterwards),
        'double' (twice on one grid) or 'double shifted' (cropped in between).
      qualities: JPEG quality factors, in the order of the compressions.
    """

    kind: str
    qualities: tuple[int, ...]


DEGRADATIONS = (
    *(Degradation("aligned", (quality,)) for quality in _QUALITIES),
    *(Degradation("shifted", (quality,)) for quality in _QUALITIES),
    *(Degradation("double", pair) for pair in _DOUBLE),
    *(Degradation("double shifted", pair) for pair in _DOUBLE),
)


def degrade(
    clean: np.ndarray, degradation: Degradation
) -> tuple[np.ndarray, np.ndarray]:
    """The image that is to be restored, and the original of what it shows.

    Args:
      clean: uint8, (height, width), sides above 5 pixels.
      degradation: what befalls it.

    Returns:
      The degraded image and its original, both uint8 of one shape.
    """
    first, *second = degradation.qualities
    image = jpeg.compress(clean, first)
    if "shifted" in degradation.kind:
        top, left = _SHIFT
        image, clean = (np.ascontiguousarray(x[top:, left:]) for x in (image, clean))
    for quality in second:
        image = jpeg.compress(image, quality)
    return image, clean


def evaluate_blind(config: ml_collections.ConfigDict) -> list[dict]:
    """Restores degraded images with every deblocker; prints and writes the gains.

    Writes WORKDIR/blind.json, blind.csv and blind.md.

    Args:
      config: as the preset blind of `configs/eval.py` makes it.

    Returns:
      A row for each degradation and method: kind, qualities, method, images, and psnr
      (dB, averaged over the images) of the degraded ones and gain (dB), the mean of
      what restoring adds to it, with `worst`, the lowest of any image. Images that
      are equal to their original, before or after, are left out.

    Raises:
      UserError: no weights are given, or they, a set or an image can't be read.
    """
    if not config.weights:
        raise UserError("config.weights: name deblockers' weights, .safetensors files")
    methods = evaluate.by_name(words(config.weights), [evaluate.JPEG])
    networks = {
        name: network.Network(weights.load(path, "deblocker"))
        for name, path in methods.items()
    }
    images = evaluate.find_images(words(config.sets), config.set_dir)
    evaluate.check(images.values(), config.set_dir)
    cases = [(image.path, x) for image in images.values() for x in DEGRADATIONS]

    def measure(name, restore):
        """PSNR of each case."""
        degraded, again = itertools.tee(_degraded(cases))
        restored = restore(y for y, _ in degraded)
        psnr = (
            metrics.psnr(clean, y if y.dtype == np.uint8 else metrics.to_uint8(y))
            for (_, clean), y in zip(again, restored, strict=True)
        )
        return list(progress.over(psnr, len(cases), name, "image"))

    batch = network.tile_batch()
    ways = {evaluate.JPEG: iter} | {
        name: functools.partial(tiles.restore, run, batch=batch)
        for name, run in networks.items()
    }
    psnr = np.array([measure(*way) for way in ways.items()])
    psnr = psnr.reshape(len(ways), len(images), len(DEGRADATIONS))
    rows = gains(psnr, list(methods))
    folder = pathlib.Path(config.workdir)
    shown = as_table(rows)
    files.write(folder / "blind.json", json.dumps(rows, indent=2) + "\n")
    files.write(folder / "blind.csv", tables.to_csv(rows))
    files.write(folder / "blind.md", tables.markdown(shown) + "\n")
    print(tables.text(shown))
    _log.info("gains in %s", folder)
    return rows


def gains(psnr: np.ndarray, methods: Sequence[str]) -> list[dict]:
    """The rows of `evaluate_blind`.

    Args:
      psnr: dB, (1 + methods, images, `DEGRADATIONS`), those of the degraded images
        first.
      methods: their names.
    """
    rows = []
    for i, degradation in enumerate(DEGRADATIONS):
        counted = np.isfinite(psnr[:, :, i]).all(0)
        if not counted.any():
            continue
        plain, *restored = psnr[:, counted, i]
        for name, gain in zip(methods, restored - plain, strict=True):
            rows.append(
                {
                    "kind": degradation.kind,
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
    """A line for each degradation; each method's mean gain and the lowest in dB."""
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
    cases: Iterable[tuple[pathlib.Path, Degradation]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`degrade` of each case; an image in several cases on end is read once."""
    for path, group in itertools.groupby(cases, operator.itemgetter(0)):
        clean = evaluate.load(path)
        for _, degradation in group:
            yield degrade(clean, degradation)


def _db(value: float) -> str:
    return tables.shown("psnr", value)
