"""Stage 1: the compression quality ranker.

    python -m cqr_jax.main --config=configs/ranker.py
    python -m cqr_jax.main --config=configs/ranker.py:compact --config.data.name=NAME

Presets: paper (default), compact (17 minutes on two CPU cores), quickstart (a minute).
"""

from ml_collections import ConfigDict

from configs import common
from cqr_jax.config import parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the preset named by `text`."""
    preset = parse(text, "configs/ranker.py", preset=PRESETS)["preset"]

    c = ConfigDict()
    c.task = "ranker"
    c.workdir = f"runs/ranker-{preset}"  # checkpoints, logs and weights
    c.seed = 0  # seed of initialisation and training data
    c.update(common.execution())
    # batch norm statistics over all devices under pmap; jit always uses the whole batch
    c.sync_batch_norm = True

    c.data = common.data()

    c.initial_weights = ""  # weights file to start from; empty: random initialisation
    c.min_quality = 1  # lowest JPEG quality factor (the paper's a)
    c.max_quality = 30  # highest JPEG quality factor (the paper's b)
    c.levels = 3  # equal ranges of quality factors (the paper's n)
    c.margin = 0.5  # epsilon in eq. 2

    c.model = ConfigDict()
    c.model.name = "ranker"  # model in cqr_jax/models
    c.model.width = 64  # channels of the first convolution; the others have multiples
    c.model.hidden = 100  # units of the first dense layer

    c.patch = 48  # side of a training crop in pixels, a multiple of 8
    c.batch_size = 16  # pairs per step, over all devices
    c.steps = 300_000  # training steps
    # decay of the exponential moving average of the weights, which does not include the
    # statistics of batch norm; 0: none
    c.ema_decay = 0.0

    c.optimizer = common.optimizer()

    c.validation = ConfigDict()
    c.validation.patch = 96  # side of a validation crop in pixels, a multiple of 8
    c.validation.examples = 1024  # number of pairs
    c.validation.batch_size = 64  # pairs per batch

    c.update(common.intervals())

    if preset == "compact":
        c.model.width = 16
        c.steps = 6_000
        c.optimizer.name = "muon"
        c.optimizer.learning_rate = 1e-3
        c.optimizer.schedule = "cosine"
        c.optimizer.warmup_steps = 200
        c.validate_every = 1000
    elif preset == "quickstart":
        c.data.name = "embedded"
        c.model.width = 8
        c.steps = 300
        c.optimizer.learning_rate = 1e-3
        c.optimizer.schedule = "cosine"
        c.optimizer.warmup_steps = 20
        c.validation.examples = 256
        c.validate_every = 150
    return c


PRESETS = ("paper", "compact", "quickstart")
