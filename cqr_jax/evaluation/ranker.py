"""Evaluation of the ranker: pairwise accuracy, rank correlation, score against QF."""

import json
import logging
import pathlib
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from scipy import stats

from cqr_jax import files, progress, tables, weights
from cqr_jax.config import level_ranges, split_list
from cqr_jax.data import jpeg
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.errors import UserError
from cqr_jax.evaluation import drawing, table2
from cqr_jax.models.ranker import MIN_SIDE
from cqr_jax.restoring import quality
from cqr_jax.training.steps import to_float

_log = logging.getLogger(__name__)

_QUALITIES = np.arange(1, 101)
_BATCH = 26  # images scored at once
_ESTIMATED = (5, 10, 20, 30, 50)  # quality factors whose estimates are measured


def evaluate_ranker(config: ml_collections.ConfigDict) -> dict:
    """Scores images at QF 1 to 100 and uncompressed; prints and writes the results.

    Writes ranker.json, scores.csv, typical.tsv and ranker.png to `config.workdir`.
    typical.tsv holds the median score of each QF, from which a score gives a QF.

    Args:
      config: config of the preset ranker in `configs/eval.py`.

    Returns:
      The content of ranker.json; see `summary`.

    Raises:
      UserError: if no weights are given, if weights, a set or an image can't be read,
        or if an image is too small.
    """
    if not config.weights:
        raise UserError(
            "config.weights: name the ranker's weights, a .safetensors file"
        )
    ranker = weights.load(config.weights, "ranker")
    images = table2.find_images(split_list(config.sets), config.set_dir)
    table2.check(images.values(), config.set_dir)
    score = jax.jit(
        lambda batch: ranker.model.apply(ranker.variables, to_float(batch))[0]
    )

    def scores(path):
        clean = _middle(path, config.side)
        ladder = [jpeg.compress(clean, int(q)) for q in _QUALITIES] + [clean] * _BATCH
        batches = np.stack(ladder)[: len(ladder) // _BATCH * _BATCH, :, :, None]
        found = [score(x) for x in batches.reshape(-1, _BATCH, *batches.shape[1:])]
        return np.concatenate(jax.device_get(found))[: len(_QUALITIES) + 1]

    paths = {key: image.path for key, image in images.items()}
    scored = map(scores, paths.values())
    done = progress.over(scored, len(paths), "scoring", "image")
    table = np.stack(list(done)).astype(np.float64)
    result = {
        "weights": config.weights,
        "sets": list(split_list(config.sets)),
        "images": len(paths),
        "side": config.side,
        **summary(table[:, :-1], table[:, -1], level_ranges(config)),
    }
    folder = pathlib.Path(config.workdir)
    names = [*map(str, _QUALITIES), "clean"]
    rows = [
        {"image": key, **dict(zip(names, line, strict=True))}
        for key, line in zip(paths, table.tolist(), strict=True)
    ]
    files.write(folder / "scores.csv", tables.to_csv(rows))
    files.write(folder / "typical.tsv", typical(table[:, :-1]))
    files.write(folder / "ranker.json", json.dumps(result, indent=2) + "\n")
    files.write(folder / "ranker.png", plot(table[:, :-1], table[:, -1]))
    print(describe(result))
    _log.info("metrics, scores and plot in %s", folder)
    return result


def typical(scores: np.ndarray) -> str:
    """Returns the median over images of (images, 100) scores at each QF, as TSV."""
    lines = [
        f"{qf}\t{score:.4f}"
        for qf, score in zip(_QUALITIES, np.median(scores, axis=0), strict=True)
    ]
    return "\n".join(["qf\tscore", *lines]) + "\n"


def summary(
    scores: np.ndarray, clean: np.ndarray, levels: tuple[tuple[int, int], ...]
) -> dict:
    """Computes the metrics of a ranker over the quality factors of its levels.

    Args:
      scores: (images, 100), scores of each image at QF 1 to 100.
      clean: (images,), scores of the images without compression.
      levels: first and last quality factor of each level, worst first.

    Returns:
      A dictionary with these fields. The accuracies are over pairs of the same image at
      two quality factors within the levels; a tie is an error.

      - `accuracy`: over all pairs of different levels, as in training.
      - `accuracy_by_levels`: 'i-j' -> accuracy.
      - `accuracy_by_distance`: difference in QF -> accuracy, including pairs of the
        same level.
      - `spearman`, `kendall` (tau-b): correlations of score and QF within the levels,
        `pooled` over all images, and their `mean` and `min` over images.
      - `clean`: `mean` and `std` of the scores of clean images, and two fractions of
        images: those that score higher than each of their own JPEGs up to the highest
        level (`fraction_above_qN`, where N is its last QF), and up to QF 100
        (`fraction_above_q100`).
      - `qf_error`: QF -> `mean` and `max` over images of the absolute error of the QF
        that the score gives by the median scores of the other images. Empty if there is
        one image.
    """
    first, last = levels[0][0], levels[-1][1]
    qualities = np.arange(first, last + 1)
    inside = scores[:, first - 1 : last]
    return {
        **_accuracies(inside, levels),
        "spearman": _correlation(stats.spearmanr, inside, qualities),
        "kendall": _correlation(stats.kendalltau, inside, qualities),
        "clean": {
            "mean": float(np.mean(clean)),
            "std": float(np.std(clean)),
            f"fraction_above_q{last}": float(np.mean(clean > inside.max(axis=1))),
            "fraction_above_q100": float(np.mean(clean > scores.max(axis=1))),
        },
        "qf_error": _quality_errors(scores),
    }


def _accuracies(scores: np.ndarray, levels: tuple[tuple[int, int], ...]) -> dict:
    """Computes the accuracies of `summary` from the scores within the levels."""
    level = np.array(
        [i for i, (low, high) in enumerate(levels, 1) for _ in range(low, high + 1)]
    )
    low, high = np.triu_indices(len(level), 1)
    right = np.mean(scores[:, low] < scores[:, high], axis=0)

    def accuracy(chosen: np.ndarray) -> float:
        return float(np.mean(right[chosen]))

    return {
        "accuracy": accuracy(level[low] != level[high]),
        "accuracy_by_levels": {
            f"{i}-{j}": accuracy((level[low] == i) & (level[high] == j))
            for i in range(1, len(levels) + 1)
            for j in range(i + 1, len(levels) + 1)
        },
        "accuracy_by_distance": {
            str(distance): accuracy(high - low == distance)
            for distance in range(1, len(level))
        },
    }


def _correlation(
    function: Callable, scores: np.ndarray, qualities: np.ndarray
) -> dict[str, float]:
    """Computes a correlation of `scipy.stats` over all images and of each image."""
    each = [float(function(qualities, line).statistic) for line in scores]
    pooled = function(np.tile(qualities, len(scores)), scores.ravel()).statistic
    return {"pooled": float(pooled), "mean": float(np.mean(each)), "min": min(each)}


def _quality_errors(scores: np.ndarray) -> dict[str, dict]:
    """Computes `qf_error` of `summary` from the scores at QF 1 to 100."""
    if len(scores) < 2:
        return {}
    errors = []
    for i, line in enumerate(scores):
        medians = np.median(np.delete(scores, i, axis=0), axis=0)
        errors.append(np.abs(quality.factors_of_scores(line, medians) - _QUALITIES))
    table = np.stack(errors)[:, np.array(_ESTIMATED) - 1]
    return {
        str(qf): {"mean": float(np.mean(column)), "max": int(np.max(column))}
        for qf, column in zip(_ESTIMATED, table.T, strict=True)
    }


def describe(result: dict) -> str:
    """Formats the result as text for a terminal."""
    distances = result["accuracy_by_distance"]
    shown = [d for d in ("1", "2", "3", "5", "10", "15", "20") if d in distances]
    lines = [
        ["accuracy, all pairs of levels", f"{result['accuracy']:.4f}"],
        *(
            [f"accuracy, levels {pair}", f"{value:.4f}"]
            for pair, value in result["accuracy_by_levels"].items()
        ),
        *([f"accuracy, QF {d} apart", f"{distances[d]:.4f}"] for d in shown),
    ]
    for name in ("spearman", "kendall"):
        for how, value in result[name].items():
            lines.append([f"{name}, {how}", f"{value:.4f}"])
    for name, value in result["clean"].items():
        lines.append([f"clean: {name.replace('_', ' ')}", f"{value:.4f}"])
    for qf, error in result["qf_error"].items():
        text = f"mean {error['mean']:.1f}, maximum {error['max']}"
        lines.append([f"error of QF {qf} estimated from the score", text])
    head = [f"ranker on {', '.join(result['sets'])}", f"{result['images']} images"]
    return tables.text([head, *lines])


def plot(scores: np.ndarray, clean: np.ndarray) -> bytes:
    """Plots the score against QF as a PNG: median and spread over images.

    The scores of the clean images are shown beside them.

    Args:
      scores: (images, 100), scores at QF 1 to 100.
      clean: (images,), scores of the clean images.
    """
    from matplotlib.figure import Figure  # slow to import, and used only here

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    bands = ((0, 100, 0.15, "all images"), (25, 75, 0.35, "middle half"))
    for low, high, alpha, label in bands:
        edges = np.percentile(scores, [low, high], axis=0)
        axes.fill_between(_QUALITIES, *edges, alpha=alpha, color="C0", label=label)
        axes.fill_between(
            [103, 107], *np.percentile(clean, [low, high]), alpha=alpha, color="C1"
        )
    axes.plot(_QUALITIES, np.median(scores, axis=0), color="C0", label="median")
    axes.plot([103, 107], [np.median(clean)] * 2, color="C1", label="without JPEG")
    axes.set_xlabel("JPEG quality factor")
    axes.set_ylabel("score (higher is better)")
    axes.set_title(f"Ranker's score, {len(scores)} images")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return drawing.png(figure, dpi=120)


def _middle(path: pathlib.Path, side: int) -> np.ndarray:
    """Reads Y of an image, cropped to its central square of `side` on the 8x8 grid.

    Does not crop if `side` is 0.
    """
    y = jpeg.load_named(path)
    if min(y.shape) < max(side, MIN_SIDE):
        raise UserError(
            f"{path}: smaller than {max(side, MIN_SIDE)} pixels; lower config.side"
        )
    if not side:
        return y
    top, left = ((length - side) // 2 // BLOCK * BLOCK for length in y.shape)
    return np.ascontiguousarray(y[top : top + side, left : left + side])
