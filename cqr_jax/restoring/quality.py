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
_VAGUE = 30  # quality factor beyond which the score tells little
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


def factor_of_score(score: float) -> int:
    """The quality factor at which photographs have this score.

    On the photographs that it comes from it is off by 0.5 on average at QF 5, 1.5 at QF
    10, 3.4 at QF 20, 8 at QF 30, and by more above: the ranker was trained up to there.
    """
    scores, factors = _typical_scores()
    return round(float(np.interp(score, scores, factors)))


def measure(picture: Picture) -> Quality:
    """The quality of a picture as it is."""
    score = _score(_middle(picture))
    if picture.quantization:
        factor, equal = factor_of_table(picture.quantization)
        return Quality(score, factor, "tables" if equal else "tables, nearest")
    factor = factor_of_score(score)
    return Quality(score, factor, "ranker" if factor <= _VAGUE else "ranker, vague")


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
def _typical_scores(path: pathlib.Path = SCORES) -> tuple[np.ndarray, np.ndarray]:
    """Scores, rising, and the quality factors that have them."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    scores = np.array([float(row["score"]) for row in rows])
    return np.maximum.accumulate(scores), np.array([int(row["qf"]) for row in rows])
