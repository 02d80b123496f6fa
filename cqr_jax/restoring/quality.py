"""How good a picture's JPEG quality is: the ranker's score, and the quality factor."""

import csv
import functools
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.restoring import colour
from cqr_jax.restoring.pictures import Picture

RANKER = weights.SHIPPED / "compact-ranker.safetensors"
SCORES = weights.SHIPPED / "compact-ranker-scores.tsv"
_VAGUE = 20  # quality factor from which the score tells little
TOO_GOOD = 95  # quality factor from which JPEGs lose: benchmarks/results/blind.md
LOSE = "lose by being restored, unless they were compressed before"
_SIDE = 256  # of what is scored, from the middle of the picture

# Luma at QF 50, row by row (ITU-T T.81, table K.1).
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


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


def table(factor: int) -> np.ndarray:
    """libjpeg's quantisation table of luma at a quality factor of 1 to 100, (64,)."""
    scale = 5000 // factor if factor < 50 else 200 - 2 * factor
    return np.clip((np.array(_LUMA) * scale + 50) // 100, 1, 255)


def factor_of_table(quantization: tuple[int, ...]) -> tuple[int, bool]:
    """The quality factor whose table is nearest, in mean ratio, and if it is equal."""
    found = np.asarray(quantization)
    distances = [
        float(np.mean(np.abs(np.log(found / table(factor)))))
        for factor in range(1, 101)
    ]
    best = int(np.argmin(distances))
    return best + 1, distances[best] == 0


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
    if picture.quantization:
        factor, equal = factor_of_table(picture.quantization)
        return Quality(score, factor, "tables" if equal else "tables, nearest")
    factor = int(factors_of_scores(np.array(score), _typical_scores()))
    return Quality(score, factor, "ranker" if factor < _VAGUE else "ranker, vague")


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
