"""Tables of results: PSNR | SSIM | PSNR-B in the paper's layout, as text or Markdown.

A row of results is a dict as `cqr_jax.evaluation.table2` makes it. A table is a list of
lines, and a line is a list of cells. The first line is the header.
"""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence

Table = list[list[str]]

_DIGITS = {"psnr": 2, "ssim": 4, "psnr_b": 2, "gmsd": 4}
MEASURES = ("psnr", "ssim", "psnr_b")  # of the literature's tables


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean of the finite values, or None if there are none.

    An image equal to its original has an infinite PSNR, which would make the mean
    infinite. Rows hold the number of such images (`identical`), and tables mark them.
    """
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def by_method(rows: Iterable[dict], metrics: Sequence[str] = MEASURES) -> Table:
    """Makes a table with a line per dataset and quality, and a column per method.

    A cell shows the given `metrics` of its row. If several rows belong to a cell
    (runs of one method with different seeds), it shows their mean followed by their
    standard deviation.
    """
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        line = (row["dataset"], str(row["quality"]), str(row["images"]))
        cells.setdefault((line, row["method"]), []).append(row)
    return pivot(
        ("dataset", "QF", "images"),
        (
            (line, method, _cell(members, metrics))
            for (line, method), members in cells.items()
        ),
    )


def pivot(head: Sequence[str], cells: Iterable[tuple[tuple, str, str]]) -> Table:
    """Makes a table from (line, column, cell) triples.

    `line` is a tuple of the first cells of a line, with the length of `head`.
    """
    lines: dict[tuple, dict[str, str]] = {}
    for line, column, cell in cells:
        lines.setdefault(line, {})[column] = cell
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    body = [[*k, *(v.get(name, "") for name in columns)] for k, v in lines.items()]
    return [[*head, *columns], *body]


def shown(metric: str, value: float) -> str:
    """Formats the value of a metric with the usual number of digits."""
    return f"{value:.{_DIGITS[metric]}f}"


def identical_note(rows: Iterable[dict]) -> str:
    """Returns a note on images that means of PSNR leave out; '' if there are none."""
    cases = sorted(
        {
            f"{row['method']} on {row['dataset']} at QF {row['quality']}: "
            f"{row['identical']} of {row['images']}"
            for row in rows
            if row["identical"]
        }
    )
    if not cases:
        return ""
    what = "* images equal to their original, whose infinite PSNR no mean includes: "
    return what + "; ".join(cases)


def text(table: Table) -> str:
    """Formats a table as aligned columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def markdown(table: Table) -> str:
    """Formats a table as Markdown."""
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in table
    ]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])


def to_csv(rows: Sequence[dict]) -> str:
    """Formats all fields of all rows as CSV.

    Columns are in the order in which the fields first appear.
    """
    fields = list(dict.fromkeys(field for row in rows for field in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(rows: list[dict], metrics: Sequence[str]) -> str:
    mark = "*" if any(row["identical"] for row in rows) else ""
    return " | ".join(_mean_and_spread(rows, metric) for metric in metrics) + mark


def _mean_and_spread(rows: list[dict], metric: str) -> str:
    values = [row[metric] for row in rows if row[metric] is not None]
    if not values:
        return "inf"
    middle = shown(metric, statistics.fmean(values))
    if len(values) == 1:
        return middle
    return f"{middle} ±{shown(metric, statistics.stdev(values))}"
