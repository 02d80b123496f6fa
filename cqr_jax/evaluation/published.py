"""Results published by others, as printed there. None of them were measured here.

published.tsv holds PSNR (dB), SSIM and PSNR-B (dB) over the channels that it names, Y
or RGB. Unknown SSIM and PSNR-B are empty. Its sources for Y are:

- table1, table2: tables of the paper. Its BSDS500 is all 500 images. docs/evaluation.md
  lists oddities of both tables.
- later: Table 4 of SwinIR (Liang et al. 2021, arXiv:2108.10257). It gives RNAN's PSNR-B
  on Classic5 at QF 40 with one decimal. DRUNet, QGAC and DnCNN-3 are one model for all
  qualities; RNAN and SwinIR are one model for each quality.

For RGB it holds only PSNR, for JPEG with 4:2:0 chroma and libjpeg's tables:

- colour: JPEG, QGAC and FBCNN from FBCNN (Jiang et al. 2021, arXiv:2109.14573), SwinIR
  and GRL-S from GRL (Li et al. 2023, arXiv:2303.00748), ARCNN and RDN from later
  comparisons. QGAC and FBCNN are one model for all qualities; SwinIR and GRL-S are one
  model for each quality. Papers in which JPEG has 25.60 dB on LIVE1 at QF 10 upsample
  chroma differently, and are left out.
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
    """Returns title -> Table 1 of the paper, restricted to the sets of `rows`."""
    return _tables(("table1",), rows)


def table2(rows: Iterable[dict]) -> dict[str, tables.Table]:
    """Returns title -> Table 2 of the paper and later work, on the sets of `rows`."""
    return _tables(("table2", "later"), rows)


def colour(rows: Iterable[dict]) -> dict[str, tables.Table]:
    """Returns title -> table of PSNR over RGB, 4:2:0, on the sets of `rows`."""
    return _tables(("colour",), rows)


def psnr(dataset: str, quality: int, channels: str) -> dict[str, float]:
    """Returns method -> PSNR in dB of the sources 'later' and 'colour'.

    Args:
      dataset: name of a set, such as 'live1'.
      quality: JPEG quality factor.
      channels: 'Y' or 'RGB'.
    """
    return {
        row["method"]: float(row["psnr"])
        for row in _rows()
        if row["source"] in ("later", "colour")
        and (row["dataset"], row["quality"]) == (dataset, str(quality))
        and row["channels"] == channels
    }


def _rows() -> list[dict[str, str]]:
    with pathlib.Path(__file__).with_suffix(".tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _tables(sources: Iterable[str], rows: Iterable[dict]) -> dict[str, tables.Table]:
    wanted = {(row["dataset"], str(row["quality"])) for row in rows}
    known = _rows()
    found = {}
    for source in sources:
        cells = [
            (
                (row["dataset"], row["quality"]),
                row["method"],
                " | ".join(filter(None, (row[name] for name in tables.MEASURES))),
            )
            for row in known
            if row["source"] == source and (row["dataset"], row["quality"]) in wanted
        ]
        if cells:
            found[_TITLES[source]] = tables.pivot(("dataset", "QF"), cells)
    return found
