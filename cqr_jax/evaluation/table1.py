"""Evaluation of the finished runs of an ablation study: Table 1."""

import pathlib

import ml_collections

from cqr_jax import weights
from cqr_jax.config import ABLATIONS
from cqr_jax.errors import UserError
from cqr_jax.evaluation import published, table2

# Columns of Table 1.
_TITLES = {
    "cqr": "w/o CQR",
    "dc": "w/o DC",
    "lq": "w/o L_Q",
    "lf": "w/o L_F",
    "none": "ours",
}


def table1(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Evaluates all finished runs of an ablation; prints and writes Table 1.

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
        for variant in ABLATIONS
        for path in sorted(pathlib.Path(workdir, variant).glob(f"seed*/{file}"))
    }
    if not methods:
        raise UserError(
            f"{workdir}: contains no finished run; train the runs with "
            "--config=configs/ablation.py, or set config.workdir to their folder"
        )
    rows, images = table2.measure(config, workdir, methods, {})
    titled = [
        {**row, "method": _TITLES.get(row["method"].split("/")[0], row["method"])}
        for row in rows
    ]
    table2.write(workdir, rows, images, titled, published.table1)
