"""Table 1: trains the five variants of the deblocker with several seeds.

    python -m cqr_jax.main --config=configs/ablation.py:compact --config.data.name=NAME
    python -m cqr_jax.main --config=configs/ablation.py:quickstart

Further variants restrict L_F to feature maps of one depth (early, middle and late), or
train for one quality factor alone (q10, q20 and q30). Add them to config.variants.

Writes the table after the training. Presets and fields are those of
configs/deblock.py. The preset compact has a small network of the paper's layout and a
short training, so that many runs fit on a CPU. Its alpha is larger, so that L_Q can
have an effect. All runs have the same budget, data and ranker. Completed runs are
reused, and a run that was stopped is continued.
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
        c.loss.pixel = "mae"
        c.model.deeper_widths = ()
        c.model.masks = True
        c.model.negative_slope = 0.0
        c.model.feature_scale = 1.0
        c.guided_steps = 0
        c.patch = 48
        c.optimizer.clip_norm = 0.0
        c.model.width = 24
        c.model.outer_blocks = 1
        c.model.local_blocks = 3
        c.model.key_pool = 8
        c.batch_size = 8
        c.steps = 3000
        c.optimizer.learning_rate = 2e-3
        c.optimizer.schedule = "cosine"
        c.optimizer.decay_steps = 0
        c.validate_every = 1000
    elif preset == "colour":
        c.variants = "dc,none"  # no ranker guides it
    elif preset == "quickstart":
        c.evaluation.sets = "embedded"
    return c
