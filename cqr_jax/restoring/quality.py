"""Measures the JPEG quality of a picture by the ranker's score and quality factor."""

import csv
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import nearest_quality
from cqr_jax.restoring import colour, network, recompression, transparency
from cqr_jax.restoring.picture import Picture

RANKER = weights.SHIPPED / "compact-ranker.safetensors"
SCORES = weights.SHIPPED / "compact-ranker-scores.tsv"
_VAGUE = 20  # from this quality factor on, estimates from the score are unreliable
# From this quality factor on, `compact`, a network of Y, makes JPEGs worse:
# benchmarks/results/blind.md
TOO_GOOD = 80
LOSE = "can get worse with a network of Y; --skip-above leaves them alone"
_SIDE = 256  # of the central square that is scored, in pixels


class Quality(NamedTuple):
    """The quality of one picture.

    Attributes:
      score: the ranker's score; higher is better.
      quality_factor: the nearest quality factor of libjpeg, 1 to 100.
      quality_factor_from: 'tables' if it is from a JPEG's quantisation table, 'tables,
        nearest' if that table is not one of libjpeg's, 'pixels' if `recompression.find`
        found it, 'ranker' if it is estimated from the score, and 'ranker, vague' if
        that estimate is unreliable.
    """

    score: float
    quality_factor: int
    quality_factor_from: str


def factors_of_scores(scores: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """Estimates quality factors from scores.

    The estimate for a single picture becomes less reliable with rising quality. The
    preset `ranker` of `configs/eval.py` measures its error.

    Args:
      scores: of any shape.
      typical: (100,), scores of photographs at QF 1 to 100.

    Returns:
      The quality factors at which photographs have these scores, int, of the shape of
      the scores.
    """
    rising = np.maximum.accumulate(typical)
    return np.rint(np.interp(scores, rising, np.arange(1, 101))).astype(int)


def measure(picture: Picture, engine: str = "auto") -> Quality:
    """Measures the quality of a picture.

    The score is that of the central 256x256 pixels. Hidden pixels have no effect.

    Args:
      picture: the picture.
      engine: what runs the ranker, as in `network.load`.

    Raises:
      UserError: if the engine does not work here.
    """
    found = score(picture, engine)
    if picture.compression:
        factor, equal = nearest_quality(picture.compression.luma)
        return Quality(found, factor, "tables" if equal else "tables, nearest")
    if compression := recompression.find(transparency.filled(picture)):
        return Quality(found, nearest_quality(compression.luma)[0], "pixels")
    factor = int(factors_of_scores(np.array(found), _typical_scores()))
    return Quality(found, factor, "ranker" if factor < _VAGUE else "ranker, vague")


def score(picture: Picture, engine: str = "auto") -> float:
    """Returns the ranker's score of the central 256x256 pixels of a picture.

    Hidden pixels have no effect. The arguments and errors are those of `measure`.
    """
    return _scorer(engine)(_middle(transparency.filled(picture)))


def _middle(picture: Picture) -> np.ndarray:
    """Returns luma of the central square, float32; smaller pictures are edge-padded."""
    height, width = picture.pixels.shape[:2]
    top, left = (max(0, (n - _SIDE) // 2 // 8 * 8) for n in (height, width))
    part = picture.pixels[top : top + _SIDE, left : left + _SIDE]
    y = colour.planes(picture._replace(pixels=part))[0].values
    return np.pad(y, [(0, _SIDE - n) for n in y.shape], mode="edge")


@functools.cache
def _scorer(engine: str) -> Callable[[np.ndarray], float]:
    """Returns a function from luma, float32 (_SIDE, _SIDE), to its score."""
    return network.choose(engine, _openvino_scorer, _jax_scorer)


def _openvino_scorer() -> Callable[[np.ndarray], float]:
    from cqr_jax.restoring.openvino_compiler import Compiler

    compiler = Compiler("f32")

    def model():
        from cqr_jax.export import onnx

        *_, arrays = weights.read(RANKER)
        return compiler.core.read_model(onnx.ranker_to_onnx(weights.nested(arrays)))

    compiled = compiler.compile(RANKER, {"image": [1, _SIDE, _SIDE, 1]}, model)

    def score(y: np.ndarray) -> float:
        request = compiled.create_infer_request()  # threads can't share one
        return float(request.infer(y[None, ..., None])[0][0])

    return score


def _jax_scorer() -> Callable[[np.ndarray], float]:
    import jax

    ranker = weights.load(RANKER, "ranker")
    apply = jax.jit(ranker.model.apply)
    return lambda y: float(apply(ranker.variables, y[None, ..., None])[0][0])


@functools.cache
def _typical_scores(path: pathlib.Path = SCORES) -> np.ndarray:
    """Returns the typical scores at QF 1 to 100."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return np.array([float(row["score"]) for row in rows])
