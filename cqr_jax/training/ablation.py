"""The ablation study: trains the variants of Table 1 with several seeds; the table."""

import logging
import pathlib

import jax
import ml_collections

from cqr_jax import weights
from cqr_jax.config import ABLATIONS, ablate, words
from cqr_jax.errors import UserError
from cqr_jax.evaluation import published, table2
from cqr_jax.training import loop

_log = logging.getLogger(__name__)

# Columns of Table 1.
_TITLES = {
    "cqr": "w/o CQR",
    "dc": "w/o DC",
    "lq": "w/o L_Q",
    "lf": "w/o L_F",
    "nothing": "ours",
}


def train_variants(config: ml_collections.ConfigDict) -> None:
    """Trains what is missing of `config.variants` x `config.seeds`; prints Table 1.

    All runs share one ranker, so that the spread over the seeds is the deblocker's. The
    first seed of every variant comes first: a table can be had from the start.

    Args:
      config: as `configs/ablation.py` makes it.
    """
    resolved = config.copy_and_resolve_references()
    cases = [(v, seed) for seed in config.seeds for v in words(config.variants)]
    runs = [_run(resolved, variant, seed) for variant, seed in cases]
    for run in runs:
        loop.check_start(run, "deblocker")
    guided = [run for run in runs if run.loss.alpha or run.loss.beta]
    if guided and not resolved.ranker_weights:
        path = loop.train_ranker(resolved.ranker, "config.ranker")
        resolved.ranker_weights = str(path)
    for run in guided:
        run.ranker_weights = resolved.ranker_weights
    for i, ((variant, seed), run) in enumerate(zip(cases, runs, strict=True), 1):
        _log.info("run %d of %d: without %s, seed %d", i, len(runs), variant, seed)
        loop.train_deblocker(run)
    if config.evaluation.sets and jax.process_index() == 0:
        table1(config.evaluation, config.workdir)


def _run(
    config: ml_collections.ConfigDict, variant: str, seed: int
) -> ml_collections.ConfigDict:
    """The config of one training, but for the ranker's weights."""
    run = ml_collections.ConfigDict(config.to_dict())
    del run["variants"], run["seeds"]
    run.task = "deblock"
    run.seed = seed
    run.workdir = str(pathlib.Path(config.workdir, variant, f"seed{seed}"))
    run.ranker_weights = ""
    run.evaluation.sets = ""
    ablate(run, variant)
    return run


def table1(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Evaluates all finished runs of an ablation; prints and writes Table 1.

    Args:
      config: as the preset ablation of `configs/eval.py`, but for workdir.
      workdir: of the runs; gets the tables.

    Raises:
      UserError: no finished run is there, or as `table2.measure`.
    """
    file = weights.file_name("deblocker")
    methods = {
        f"{variant}/{path.parent.name}": str(path)
        for variant in ABLATIONS
        for path in sorted(pathlib.Path(workdir, variant).glob(f"seed*/{file}"))
    }
    if not methods:
        raise UserError(
            f"{workdir}: holds no finished run; train them with "
            "--config=configs/ablation.py, or name their folder with config.workdir"
        )
    rows, images = table2.measure(config, workdir, methods, {})
    titled = [
        {**row, "method": _TITLES.get(row["method"].split("/")[0], row["method"])}
        for row in rows
    ]
    table2.write(workdir, rows, images, titled, published.table1)
