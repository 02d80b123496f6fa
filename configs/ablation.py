"""Table 1: trains the five variants of the deblocker with several seeds.

    python -m cqr_jax.main --config=configs/ablation.py:compact --config.data.name=NAME
    python -m cqr_jax.main --config=configs/ablation.py:quickstart

Further variants restrict L_F to feature maps of one depth (early, middle and late), or
train for one quality factor alone (q10, q20 and q30). Add them to config.variants.

Writes the table after the training. Presets and fields are those of
configs/deblock.py. The preset compact differs in its smaller network and budget, so
that many runs fit on a CPU, and in its larger alpha, so that L_Q can have an effect.
All runs have the same budget, data and ranker. Completed runs are reused, and a run
that was stopped is continued.
"""

from ml_collections import ConfigDict

from configs import deblock
from configs import eval as evaluation
from cqr_jax.config import ABLATIONS, parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the ablation at the scale named by `text`."""
    preset = parse(text, "configs/ablation.py", preset=deblock.PRESETS)["preset"]

    c = deblock.get_config(preset)  # config of all runs and of their common ranker
    c.task = "ablation"
    c.workdir = f"runs/ablation-{preset}"  # the runs as VARIANT/seedN, and the tables
    c.variants = ",".join(ABLATIONS)  # what the runs leave out or change
    c.seeds = (0, 1, 2)  # of each variant; config.seed is that of the ranker alone
    c.evaluation = evaluation.get_config("ablation")
    for field in ("task", "workdir"):  # set by this config
        del c.evaluation[field]
    if preset == "compact":
        c.loss.alpha = 1e-3  # L_Q and L_F have gradients of the same size at QF 10
        c.model.width = 24
        c.batch_size = 8
        c.steps = 3000
    elif preset == "colour":
        c.variants = "dc,none"  # no ranker guides it
    elif preset == "quickstart":
        c.evaluation.sets = "embedded"
    return c
