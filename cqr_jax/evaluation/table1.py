"""Evaluation of the finished runs of an ablation study: Table 1."""

import csv
import logging
import pathlib
import statistics
from collections.abc import Iterable

import ml_collections
import numpy as np
from scipy import stats

from cqr_jax import files, tables, weights
from cqr_jax.config import (
    ABLATED_FIELDS,
    separate_quality,
    split_list,
    variants,
)
from cqr_jax.errors import UserError
from cqr_jax.evaluation import published, table2
from cqr_jax.evaluation.metrics import METRICS
from cqr_jax.tables import MEASURES
from cqr_jax.training.workdir import learned

_FULL = "none"  # the variant that the others are compared with

# Columns of Table 1, then those of the other variants.
_TITLES = {
    "cqr": "w/o CQR",
    "dc": "w/o DC",
    "lq": "w/o L_Q",
    "lf": "w/o L_F",
    _FULL: "ours",
    "early": "L_F early",
    "middle": "L_F middle",
    "late": "L_F late",
}
_SEPARATE = "one QF each"

# Fields in which the configs of the runs may differ.
_OF_VARIANTS = {"seed", "ranker_weights", *ABLATED_FIELDS}

_log = logging.getLogger(__name__)

Runs = dict[str, dict[str, dict[str, float]]]  # seed -> image -> metric -> value


def table1(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Evaluates all finished runs of an ablation; prints and writes Table 1.

    Adds the runs that were evaluated before, from the files in `config.measured`. A run
    that is in the folder too is evaluated again. Also compares each variant with the
    full method, image by image, and writes WORKDIR/differences.csv and differences.md.

    Args:
      config: config of the preset ablation in `configs/eval.py`. Its workdir is not
        used.
      workdir: folder of the runs, to which the tables are written.

    Raises:
      UserError: if there is no run, if a file of `config.measured` can't be read, or as
        in `table2.measure`.
    """
    file = weights.file_name("deblocker")
    methods = {
        f"{variant}/{path.parent.name}": str(path)
        for variant in variants(config.qualities)
        for path in sorted(pathlib.Path(workdir, variant).glob(f"seed*/{file}"))
    }
    measured = {*methods, table2.JPEG} if methods else set()
    earlier = [row for row in read_measured(config) if row["method"] not in measured]
    if not methods and not earlier:
        raise UserError(
            f"{workdir}: contains no finished run; train the runs with "
            "--config=configs/ablation.py, or set config.workdir to their folder"
        )
    _warn_of_other_trainings(methods)
    names = {*methods, *(row["method"] for row in earlier)}
    if not any(name.startswith(f"{_FULL}/") for name in names):
        _log.warning(
            "%s: has no finished run of the variant %s, so the differences to it are "
            "missing",
            workdir,
            _FULL,
        )
    rows, images = _measure(config, workdir, methods) if methods else ([], [])
    rows += [
        {**row, "title": _title(row["method"])} for row in table2.summarize(earlier, {})
    ]
    rows.sort(key=_column)
    images += earlier
    titled = [{**row, "method": row["title"]} for row in rows]
    # All files are written before anything is printed, which can fail in a pipe.
    compared = _write(pathlib.Path(workdir), differences(images))
    table2.write(workdir, rows, images, titled, published.table1)
    for text in compared:
        print(text)


def read_measured(config: ml_collections.ConfigDict) -> list[dict]:
    """Reads the rows of images of all files in `config.measured`.

    Returns:
      Rows as `table2.measure` returns them, each with the `title` of its column. Those
      of other sets and quality factors than the config's are left out.

    Raises:
      UserError: if a file can't be read, has no such row, or has a run of another file.
    """
    found: list[dict] = []
    for path in split_list(config.measured):
        known = set(map(_case, found))
        more = _read(path, config)
        twice = {x for *_, x in known.intersection(map(_case, more))} - {table2.JPEG}
        if twice:
            raise UserError(f"config.measured: two files have the run {min(twice)}")
        found += [row for row in more if _case(row) not in known]
    return found


def _column(row: dict) -> int:
    """Returns the place of a row's column: plain JPEG, the variants, then others."""
    titles = [table2.JPEG, *_TITLES.values(), _SEPARATE]
    return titles.index(row["title"]) if row["title"] in titles else len(titles)


def _case(row: dict) -> tuple[str, int, str]:
    return row["dataset"], row["quality"], row["method"]


def _read(path: str, config: ml_collections.ConfigDict) -> list[dict]:
    """Reads the rows of images of one file; see `read_measured`."""
    sets = {pathlib.Path(name).name for name in split_list(config.sets)}
    qualities = set(config.qualities)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            lacking = sorted(METRICS.keys() - set(lines.fieldnames or ()))
            if lacking and set(MEASURES) <= set(lines.fieldnames or ()):
                raise UserError(
                    f"{path}: lacks the metric {lacking[0]}; evaluate these runs again"
                )
            found = [
                {
                    "dataset": row["dataset"],
                    "quality": int(row["quality"]),
                    "method": row["method"],
                    "image": row["image"],
                    **{name: float(row[name]) for name in METRICS},
                    "title": _title(row["method"]),
                }
                for row in lines
            ]
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(
            f"{path}: is not the images.csv of an evaluation of an ablation"
        ) from None
    kept = [x for x in found if x["dataset"] in sets and x["quality"] in qualities]
    if not kept:
        raise UserError(
            f"{path}: has no image of {config.sets} at these quality factors; set "
            "config.sets or config.qualities"
        )
    return kept


def _warn_of_other_trainings(methods: dict[str, str]) -> None:
    """Warns of runs that differ in more than what variants and seeds change."""
    found: dict[str, dict[str, list[str]]] = {}
    for method, path in methods.items():
        made = weights.header(path, "deblocker").provenance
        fields = learned(made.get("config", {}))
        fields |= {x: made.get(x) for x in ("commit", "data")}
        if made.get("ranker"):  # empty without a ranker, and missing in older files
            fields["ranker"] = made["ranker"]
        for name, value in fields.items():
            if name not in _OF_VARIANTS:
                runs = found.setdefault(name, {})
                runs.setdefault(str(value), []).append(method)
    for name, values in found.items():
        if len(values) > 1:
            listed = "; ".join(f"{k} in {', '.join(x)}" for k, x in values.items())
            _log.warning("the runs differ in %s: %s", name, listed)


def _measure(
    config: ml_collections.ConfigDict, workdir: str, methods: dict[str, str]
) -> tuple[list[dict], list[dict]]:
    """Returns the rows of `table2.measure`, each with the `title` of its column.

    Models for one quality factor are measured at this quality factor alone.
    """
    groups: dict[int | None, dict[str, str]] = {None: {}}
    for name, path in methods.items():
        quality = separate_quality(name.split("/")[0])
        groups.setdefault(quality, {})[name] = path
    found: tuple[list[dict], list[dict]] = ([], [])
    for quality, group in groups.items():
        each = ml_collections.ConfigDict(config.to_dict())
        if quality is not None:
            each.qualities = (quality,)
        for rows, more in zip(
            found, table2.measure(each, workdir, group, {}), strict=True
        ):
            # The rows of plain JPEG are the same in all groups.
            rows += [
                {**row, "title": _title(row["method"])}
                for row in more
                if quality is None or row["method"] in group
            ]
    return found


def _title(method: str) -> str:
    """Returns the title of the column of a method, VARIANT/SEED or 'jpeg'."""
    variant = method.split("/")[0]
    if separate_quality(variant) is not None:
        return _SEPARATE
    return _TITLES.get(variant, variant)


def differences(images: Iterable[dict]) -> list[dict]:
    """Compares each variant with the full method on the same images and seeds.

    Args:
      images: rows of images as `table2.measure` returns them, with their `title`. The
        method of a run is VARIANT/SEED.

    Returns:
      A row for each set, quality, variant and metric:

      - dataset, variant (its title), metric.
      - quality: a quality factor, or 'mean' for the mean over all of them.
      - difference: the mean over images and seeds.
      - interval: half the width of its 95 % confidence interval over trainings with
        other seeds. None if it is unknown, as for one seed. See `_half_width`.
      - p: of Wilcoxon's signed-rank test on the images' differences, each a mean over
        seeds. It compares these trainings on other images.
      - images, seeds: their numbers. An image is left out if its value is infinite, or
        if one of the compared runs lacks it.
    """
    cases: dict[tuple, dict[str, Runs]] = {}
    for row in images:
        variant, _, seed = row["method"].partition("/")
        if seed:
            title = _FULL if variant == _FULL else row["title"]
            runs = cases.setdefault((row["dataset"], row["quality"]), {})
            runs.setdefault(title, {}).setdefault(seed, {})[row["image"]] = {
                metric: row[metric] for metric in MEASURES
            }
    for dataset in dict.fromkeys(dataset for dataset, _ in cases):
        parts = [runs for (of, _), runs in cases.items() if of == dataset]
        if len(parts) > 1:
            cases[dataset, "mean"] = _averaged(parts)
    found = []
    for (dataset, quality), runs in cases.items():
        full = runs.pop(_FULL, {})
        for metric in MEASURES:
            width = _half_width([full, *runs.values()], metric)
            for title, others in runs.items():
                table = _changes(full, others, metric)
                if not table.size:
                    continue
                each = table.mean(axis=0)
                seeds, count = table.shape
                found.append(
                    {
                        "dataset": dataset,
                        "quality": quality,
                        "variant": title,
                        "metric": metric,
                        "difference": float(each.mean()),
                        "interval": None if width is None else width / seeds**0.5,
                        "p": float(stats.wilcoxon(each).pvalue) if each.any() else 1.0,
                        "images": count,
                        "seeds": seeds,
                    }
                )
    return found


def _averaged(parts: list[dict[str, Runs]]) -> dict[str, Runs]:
    """Returns the means over quality factors of what all of them have."""
    found: dict[str, Runs] = {}
    for title, runs in parts[0].items():
        for seed, images in runs.items():
            for image in images:
                held = [x.get(title, {}).get(seed, {}).get(image) for x in parts]
                values = [x for x in held if x is not None]
                if len(values) == len(parts):
                    found.setdefault(title, {}).setdefault(seed, {})[image] = {
                        metric: statistics.fmean(x[metric] for x in values)
                        for metric in MEASURES
                    }
    return found


def _changes(full: Runs, others: Runs, metric: str) -> np.ndarray:
    """Returns the differences of the runs to those of the full method.

    The result has the shape (seeds, images). It has the seeds of both, and the images
    of all these runs with finite values.
    """
    seeds = [seed for seed in others if seed in full]
    names = _common([runs[seed] for runs in (full, others) for seed in seeds])
    table = np.array(
        [[others[s][x][metric] - full[s][x][metric] for x in names] for s in seeds]
    ).reshape(len(seeds), len(names))
    return table[:, np.isfinite(table).all(axis=0)]


def _common(runs: list[dict[str, dict[str, float]]]) -> list[str]:
    """Returns the images that all runs have, in the order of the first run."""
    return [name for name in (runs[0] if runs else ()) if all(name in x for x in runs)]


def _half_width(variants: list[Runs], metric: str) -> float | None:
    """Returns half the 95 % confidence interval of the difference of two variants.

    It is for one seed, and has to be divided by the root of the number of seeds. A
    variant and a seed are assumed to add to the mean over images, and what remains to
    have the same variance in all variants (an analysis of variance in two ways, fitted
    by least squares because a variant can lack some seeds). Its estimate is then better
    than one from the few seeds of two variants.

    Args:
      variants: the runs of each variant.
      metric: metric of the difference.

    Returns:
      The half width; None if the runs don't suffice, as with one seed.
    """
    names = _common([images for runs in variants for images in runs.values()])
    if not names:
        return None
    cells = [
        (variant, seed, [images[name][metric] for name in names])
        for variant, runs in enumerate(variants)
        for seed, images in runs.items()
    ]
    values = np.array([x for _, _, x in cells])
    values = values[:, np.isfinite(values).all(axis=0)].mean(axis=1)
    values -= values.mean()  # for exact sums
    seeds = list(dict.fromkeys(seed for _, seed, _ in cells))
    indicators = np.zeros((len(cells), len(variants) + len(seeds)))
    for row, (variant, seed, _) in zip(indicators, cells, strict=True):
        row[[variant, len(variants) + seeds.index(seed)]] = 1
    effects, _, rank, _ = np.linalg.lstsq(indicators, values)
    degrees = len(cells) - rank
    if degrees < 1:
        return None
    variance = np.sum((values - indicators @ effects) ** 2) / degrees
    return float(stats.t.ppf(0.975, degrees) * np.sqrt(2 * variance))


def _write(folder: pathlib.Path, compared: list[dict]) -> list[str]:
    """Writes the differences; returns the text of a table for each metric."""
    if not compared:
        return []
    files.write(folder / "differences.csv", tables.to_csv(compared))
    sections, texts = [], []
    for metric, name in zip(MEASURES, ("PSNR", "SSIM", "PSNR-B"), strict=True):
        digits = 4 if metric == "ssim" else 3
        title = (
            f"{name}: difference to ours on the same images and seeds, ± half the 95 % "
            "interval over seeds (p over images)"
        )
        table = tables.pivot(
            ("dataset", "QF", "images"),
            (
                (
                    (row["dataset"], str(row["quality"]), str(row["images"])),
                    row["variant"],
                    _cell(row, digits),
                )
                for row in compared
                if row["metric"] == metric
            ),
        )
        sections.append(f"{title}\n\n{tables.markdown(table)}\n")
        texts.append(f"{title}\n{tables.text(table)}\n")
    files.write(folder / "differences.md", "\n".join(sections))
    return texts


def _cell(row: dict, digits: int) -> str:
    interval = row["interval"]
    width = "" if interval is None else f" ±{interval:.{digits}f}"
    p = "p<0.001" if row["p"] < 0.001 else f"p={row['p']:.3f}"
    return f"{row['difference']:+.{digits}f}{width} ({p})"
