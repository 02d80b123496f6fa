"""How good a picture's JPEG quality is: the ranker's score, and the quality factor."""

import csv
import functools
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import Compression, libjpeg, nearest_quality
from cqr_jax.restoring import colour
from cqr_jax.restoring.pictures import Picture

RANKER = weights.SHIPPED / "compact-ranker.safetensors"
SCORES = weights.SHIPPED / "compact-ranker-scores.tsv"
_VAGUE = 20  # quality factor from which the score tells little
TOO_GOOD = 95  # quality factor from which JPEGs lose: benchmarks/results/blind.md
LOSE = "lose by being restored, unless they were compressed before"
_SIDE = 256  # of what is scored, from the middle of the picture


class Quality(NamedTuple):
    """Of one picture.

    Attributes:
      score: the ranker's, higher is better.
      factor: the quality factor, 1 to 100, nearest to what was found.
      source: 'tables' if it is from a JPEG's quantisation table, 'tables, nearest' if
        that is not one of libjpeg's; 'ranker' if it is estimated from the score, and
        'ranker, vague' where that tells little.
    """

    score: float
    factor: int
    source: str


def factors_of_scores(scores: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """The quality factors at which photographs have these scores.

    Of single pictures that is a guess, the vaguer the better they are: the preset
    ranker of `configs/eval.py` measures by how much it is off.

    Args:
      scores: of any shape.
      typical: (100,), of photographs at QF 1 to 100.

    Returns:
      int, of the shape of the scores.
    """
    rising = np.maximum.accumulate(typical)
    return np.rint(np.interp(scores, rising, np.arange(1, 101))).astype(int)


def measure(picture: Picture) -> Quality:
    """The quality of a picture as it is."""
    score = _score(_middle(picture))
    if picture.compression:
        factor, equal = nearest_quality(picture.compression.luma)
        return Quality(score, factor, "tables" if equal else "tables, nearest")
    factor = int(factors_of_scores(np.array(score), _typical_scores()))
    return Quality(score, factor, "ranker" if factor < _VAGUE else "ranker, vague")


def estimate(picture: Picture) -> Compression | None:
    """The compression of a picture without tables, where the ranker is sure of it.

    Returns:
      That of libjpeg at the estimated quality factor; None from a factor of 20 on,
      where the score tells little.
    """
    factor = int(
        factors_of_scores(np.array(_score(_middle(picture))), _typical_scores())
    )
    if factor >= _VAGUE:
        return None
    return libjpeg(factor, gray=picture.pixels.shape[-1] == 1)


def _middle(picture: Picture) -> np.ndarray:
    """Luma of the middle, float32, a square of `_SIDE`; edges repeated where short."""
    height, width = picture.pixels.shape[:2]
    top, left = (max(0, (n - _SIDE) // 2 // 8 * 8) for n in (height, width))
    part = picture.pixels[top : top + _SIDE, left : left + _SIDE]
    y = colour.planes(picture._replace(pixels=part))[0].values
    return np.pad(y, [(0, _SIDE - n) for n in y.shape], mode="edge")


def _score(y: np.ndarray) -> float:
    apply, variables = _ranker()
    return float(apply(variables, y[None, ..., None])[0][0])


@functools.cache
def _ranker():
    ranker = weights.load(RANKER, "ranker")
    return jax.jit(ranker.model.apply), ranker.variables


@functools.cache
def _typical_scores(path: pathlib.Path = SCORES) -> np.ndarray:
    """At QF 1 to 100."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return np.array([float(row["score"]) for row in rows])
