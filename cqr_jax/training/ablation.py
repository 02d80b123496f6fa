"""The ablation study: trains the variants of Table 1 with several seeds."""

import logging
import pathlib

import ml_collections

from cqr_jax import losses, weights
from cqr_jax.config import ablate, split_list
from cqr_jax.training import loop, stages
from cqr_jax.training.start import check_start, load_ranker

_log = logging.getLogger(__name__)


def train_variants(config: ml_collections.ConfigDict) -> None:
    """Trains the missing runs of `config.variants` x `config.seeds`.

    All runs share one ranker, so that the spread over seeds is due to the deblocker
    alone. The runs of the first seed come first, so that all variants can be compared
    early.

    Args:
      config: config of `configs/ablation.py`.
    """
    resolved = config.copy_and_resolve_references()
    cases = [(v, seed) for seed in config.seeds for v in split_list(config.variants)]
    runs = [_run(resolved, variant, seed) for variant, seed in cases]
    for run in runs:
        check_start(run, "deblocker")
    if resolved.ranker_weights:
        load_ranker(resolved, resolved.ranker_weights)
    guided = [run for run in runs if losses.needs_ranker(run.loss)]
    trained = pathlib.Path(resolved.ranker.workdir, weights.file_name("ranker"))
    for run in guided:
        run.ranker_weights = resolved.ranker_weights or str(trained)
    for run in runs:
        loop.check_workdir(run)
    if guided and not resolved.ranker_weights:
        stages.deblock_stage(runs[0], None)  # its records can be missing or too small
        path = loop.train_ranker(resolved.ranker, "config.ranker")
        for run in guided:
            run.ranker_weights = str(path)
    for i, ((variant, seed), run) in enumerate(zip(cases, runs, strict=True), 1):
        _log.info("run %d of %d: ablation=%s, seed %d", i, len(runs), variant, seed)
        loop.train_deblocker(run)


def _run(
    config: ml_collections.ConfigDict, variant: str, seed: int
) -> ml_collections.ConfigDict:
    """Returns the config of one training, without the ranker's weights."""
    run = ml_collections.ConfigDict(config.to_dict())
    del run["variants"], run["seeds"]
    run.task = "deblock"
    run.seed = seed
    run.workdir = str(pathlib.Path(config.workdir, variant, f"seed{seed}"))
    run.ranker_weights = ""
    run.evaluation.sets = ""
    ablate(run, variant)
    return run
