"""Table 1: trains the five variants of the deblocker over several seeds; the table.

    python -m cqr_jax.main --config=configs/ablation.py:compact --config.data.name=NAME
    python -m cqr_jax.main --config=configs/ablation.py:quickstart

Presets and fields are those of configs/deblock.py. All runs have the same budget, data
and ranker. Runs that are there are taken as they are; one that was stopped goes on.
"""

from ml_collections import ConfigDict

from configs import deblock
from configs import eval as evaluation
from cqr_jax.config import ABLATIONS, parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the ablation at the scale named by `text`."""
    preset = parse(text, "configs/ablation.py", preset=deblock.PRESETS)["preset"]

    c = deblock.get_config(preset)  # of every run, and of the ranker they share
    c.task = "ablation"
    c.workdir = f"runs/ablation-{preset}"  # VARIANT/seedN of every run, and the tables
    c.variants = ",".join(ABLATIONS)  # what the runs go without
    c.seeds = (0, 1)  # of each variant; config.seed is the ranker's alone
    c.evaluation = evaluation.get_config("ablation")
    for field in ("task", "workdir"):  # this config gives them
        del c.evaluation[field]
    if preset == "quickstart":
        c.evaluation.sets = "embedded"
    return c
