"""Evaluation of the finished runs of an ablation study: Table 1."""

import pathlib
import statistics
from collections.abc import Iterable, Iterator

import ml_collections
import numpy as np
from scipy import stats

from cqr_jax import files, tables, weights
from cqr_jax.config import separate_quality, variants
from cqr_jax.errors import UserError
from cqr_jax.evaluation import published, table2
from cqr_jax.tables import MEASURES

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


def table1(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Evaluates all finished runs of an ablation; prints and writes Table 1.

    Also compares each variant with the full method, image by image, and writes
    WORKDIR/differences.csv and differences.md.

    Args:
      config: config of the preset ablation in `configs/eval.py`. Its workdir is not
        used.
      workdir: folder of the runs, to which the tables are written.

    Raises:
      UserError: if there is no finished run, or as in `table2.measure`.
    """
    file = weights.file_name("deblocker")
    methods = {
        f"{variant}/{path.parent.name}": str(path)
        for variant in variants(config.qualities)
        for path in sorted(pathlib.Path(workdir, variant).glob(f"seed*/{file}"))
    }
    if not methods:
        raise UserError(
            f"{workdir}: contains no finished run; train the runs with "
            "--config=configs/ablation.py, or set config.workdir to their folder"
        )
    rows, images = table2.measure(config, workdir, methods, {})
    rows, images = [list(_with_titles(x)) for x in (rows, images)]
    titled = [{**row, "method": row["title"]} for row in rows]
    table2.write(workdir, rows, images, titled, published.table1)
    compared = differences(images)
    if compared:
        _write(pathlib.Path(workdir), compared)


def _with_titles(rows: Iterable[dict]) -> Iterator[dict]:
    """Yields the rows with the title of their column.

    Leaves out the rows of models for one quality factor at other quality factors.
    """
    for row in rows:
        variant = row["method"].split("/")[0]
        separate = separate_quality(variant)
        if separate is None:
            yield {**row, "title": _TITLES.get(variant, variant)}
        elif separate == row["quality"]:
            yield {**row, "title": _SEPARATE}


def differences(images: Iterable[dict]) -> list[dict]:
    """Compares each variant with the full method on the same images and seeds.

    Args:
      images: rows of images as `table2.measure` returns them, with their `title`. The
        method of a run is VARIANT/SEED.

    Returns:
      A row for each set, quality, variant and metric: dataset, quality, variant (its
      title), metric, difference (mean over images and seeds), spread (standard
      deviation of the means of the seeds; None for one seed), p (of Wilcoxon's
      signed-rank test on the images' differences, each a mean over seeds), images and
      seeds (their numbers). Images for which a value is infinite are left out.
    """
    full: dict[tuple, dict] = {}
    others: dict[tuple, list[tuple]] = {}
    for row in images:
        variant, _, seed = row["method"].partition("/")
        place = row["dataset"], row["quality"], seed, row["image"]
        if variant == _FULL:
            full[place] = row
        elif seed:
            case = row["dataset"], row["quality"], row["title"]
            others.setdefault(case, []).append((place, row))
    found = []
    for (dataset, quality, title), runs in others.items():
        pairs = [(place, row, full[place]) for place, row in runs if place in full]
        for metric in MEASURES:
            changes = {
                (seed, image): row[metric] - ours[metric]
                for (_, _, seed, image), row, ours in pairs
            }
            compared = _compare(changes)
            if compared is not None:
                row = {"dataset": dataset, "quality": quality, "variant": title}
                found.append({**row, "metric": metric, **compared})
    return found


def _compare(changes: dict[tuple[str, str], float]) -> dict | None:
    """Returns the statistics of (seed, image) -> difference; None if there are none."""
    seeds = list(dict.fromkeys(seed for seed, _ in changes))
    names = list(dict.fromkeys(name for _, name in changes))
    table = np.array([[changes[seed, name] for name in names] for seed in seeds])
    table = table.reshape(len(seeds), len(names))
    table = table[:, np.isfinite(table).all(axis=0)]
    if not table.size:
        return None
    means, each = table.mean(axis=1), table.mean(axis=0)
    return {
        "difference": float(means.mean()),
        "spread": statistics.stdev(means.tolist()) if len(means) > 1 else None,
        "p": float(stats.wilcoxon(each).pvalue) if each.any() else 1.0,
        "images": len(each),
        "seeds": len(seeds),
    }


def _write(folder: pathlib.Path, compared: list[dict]) -> None:
    """Prints and writes the differences, in a table for each metric."""
    files.write(folder / "differences.csv", tables.to_csv(compared))
    sections = []
    for metric, name in zip(MEASURES, ("PSNR", "SSIM", "PSNR-B"), strict=True):
        digits = 4 if metric == "ssim" else 3
        title = f"{name}: difference to ours, on the same images and seeds"
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
        print(f"{title}\n{tables.text(table)}\n")
    files.write(folder / "differences.md", "\n".join(sections))


def _cell(row: dict, digits: int) -> str:
    spread = "" if row["spread"] is None else f" ±{row['spread']:.{digits}f}"
    p = "p<0.001" if row["p"] < 0.001 else f"p={row['p']:.3f}"
    return f"{row['difference']:+.{digits}f}{spread} ({p})"
