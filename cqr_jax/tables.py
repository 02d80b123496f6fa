"""Results as tables: PSNR | SSIM | PSNR-B in the paper's layout, as text or Markdown.

A row of results is a dict as `cqr_jax.evaluation.table2` makes it. A table is a list of
lines, the first of them the head, each a list of cells.
"""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence

Table = list[list[str]]

_DIGITS = {"psnr": 2, "ssim": 4, "psnr_b": 2, "gmsd": 4}
FIGURES = ("psnr", "ssim", "psnr_b")  # of the literature's tables


def mean(values: Sequence[float]) -> float | None:
    """Mean of the finite values; None if there is none.

    An image equal to its original has an infinite PSNR, which would drown all others;
    rows tell how many images were so (`identical`), and tables mark them.
    """
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def by_method(rows: Iterable[dict], figures: Sequence[str] = FIGURES) -> Table:
    """A line for each dataset and quality, a column for each method.

    A cell gives the `figures` of its row.

    Where several rows fall into one cell (runs of one method with other seeds), it
    gives their mean and, behind it, their standard deviation.
    """
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        line = (row["dataset"], str(row["quality"]), str(row["images"]))
        cells.setdefault((line, row["method"]), []).append(row)
    return pivot(
        ("dataset", "QF", "images"),
        (
            (line, method, _cell(members, figures))
            for (line, method), members in cells.items()
        ),
    )


def pivot(head: Sequence[str], cells: Iterable[tuple[tuple, str, str]]) -> Table:
    """A table of cells, each given with its line (of the head's length) and column."""
    lines: dict[tuple, dict[str, str]] = {}
    for line, column, cell in cells:
        lines.setdefault(line, {})[column] = cell
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    body = [[*k, *(v.get(name, "") for name in columns)] for k, v in lines.items()]
    return [[*head, *columns], *body]


def shown(figure: str, value: float) -> str:
    """The value of one of the metrics, with the digits in which it is reported."""
    return f"{value:.{_DIGITS[figure]}f}"


def identical_note(rows: Iterable[dict]) -> str:
    """A line on the images whose PSNR no mean includes; empty if there are none."""
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
    """Aligned columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def markdown(table: Table) -> str:
    """A Markdown table."""
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in table
    ]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])


def to_csv(rows: Sequence[dict]) -> str:
    """All fields of all rows as CSV, in the order in which they first appear."""
    fields = list(dict.fromkeys(field for row in rows for field in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(rows: list[dict], figures: Sequence[str]) -> str:
    mark = "*" if any(row["identical"] for row in rows) else ""
    return " | ".join(_mean_and_spread(rows, figure) for figure in figures) + mark


def _mean_and_spread(rows: list[dict], figure: str) -> str:
    values = [row[figure] for row in rows if row[figure] is not None]
    if not values:
        return "inf"
    middle = shown(figure, statistics.fmean(values))
    if len(values) == 1:
        return middle
    return f"{middle} ±{shown(figure, statistics.stdev(values))}"
