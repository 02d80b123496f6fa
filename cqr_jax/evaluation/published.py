"""Figures published by others, as they printed them: nothing here was measured by us.

published.tsv holds PSNR (dB), SSIM and PSNR-B (dB), of the channels that it names: Y,
or RGB. SSIM and PSNR-B are empty where they aren't known. Of Y:

- table1, table2: of the paper. Its BSDS500 is all 500 images. The README lists oddities
  of both tables.
- later: Table 4 of SwinIR (Liang et al. 2021, arXiv:2108.10257). RNAN's PSNR-B on
  Classic5 at QF 40 stands there with one decimal. DRUNet, QGAC and DnCNN-3 are one
  model for all qualities, RNAN and SwinIR one for each.

Of RGB, JPEG with 4:2:0 chroma by libjpeg's tables, PSNR alone:

- colour: JPEG, QGAC and FBCNN as in FBCNN (Jiang et al. 2021, arXiv:2109.14573),
  SwinIR and GRL-S as in GRL (Li et al. 2023, arXiv:2303.00748), ARCNN and RDN as later
  comparisons have them. QGAC and FBCNN are one model for all qualities, SwinIR and
  GRL-S one for each. Papers whose JPEG has 25.60 dB on LIVE1 at QF 10 enlarge chroma
  otherwise, and aren't here.
"""

import csv
import pathlib
from collections.abc import Iterable

from cqr_jax import tables

_TITLES = {
    "table1": "Published, not measured here: Table 1 of the paper",
    "table2": "Published, not measured here: Table 2 of the paper",
    "later": "Published, not measured here: Table 4 of SwinIR (arXiv:2108.10257)",
    "colour": "Published, not measured here: PSNR over RGB, 4:2:0, from FBCNN "
    "(arXiv:2109.14573) and GRL (arXiv:2303.00748)",
}


def table1(rows: Iterable[dict]) -> dict[str, tables.Table]:
    """Title -> Table 1 of the paper, as far as it is on the sets of `rows`."""
    return _tables(("table1",), rows)


def table2(rows: Iterable[dict]) -> dict[str, tables.Table]:
    """Title -> Table 2 of the paper, and later work, on the sets of `rows`."""
    return _tables(("table2", "later"), rows)


def colour(rows: Iterable[dict]) -> dict[str, tables.Table]:
    """Title -> PSNR over RGB, chroma 4:2:0, on the sets of `rows`."""
    return _tables(("colour",), rows)


def _tables(sources: Iterable[str], rows: Iterable[dict]) -> dict[str, tables.Table]:
    wanted = {(row["dataset"], str(row["quality"])) for row in rows}
    with pathlib.Path(__file__).with_suffix(".tsv").open(newline="") as file:
        known = list(csv.DictReader(file, delimiter="\t"))
    found = {}
    for source in sources:
        cells = [
            (
                (row["dataset"], row["quality"]),
                row["method"],
                " | ".join(filter(None, (row[figure] for figure in tables.FIGURES))),
            )
            for row in known
            if row["source"] == source and (row["dataset"], row["quality"]) in wanted
        ]
        if cells:
            found[_TITLES[source]] = tables.pivot(("dataset", "QF"), cells)
    return found
