"""Stage 1: the compression quality ranker.

    python -m cqr_jax.main --config=configs/ranker.py
    python -m cqr_jax.main --config=configs/ranker.py:compact --config.data.name=NAME

Presets: paper (default), compact (20 minutes of a CPU core), quickstart (a minute).
"""

from ml_collections import ConfigDict

from cqr_jax.config import parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the preset named by `text`."""
    preset = parse(text, "configs/ranker.py", preset=PRESETS)["preset"]

    c = ConfigDict()
    c.task = "ranker"
    c.workdir = f"runs/ranker-{preset}"  # checkpoints, logs and weights go here
    c.seed = 0  # of initialisation and data
    c.parallel = "jit"  # jit or pmap: how a step runs on several devices
    c.compute_dtype = "float32"  # or bfloat16; parameters and losses stay float32
    c.grad_accum_steps = 1  # micro-batches per step, computed one after the other
    c.sync_batch_norm = True  # under pmap; jit always sees the whole batch

    c.data = ConfigDict()
    c.data.data_dir = "data"  # root of the records
    c.data.name = "div2k"  # data set; div2k and embedded are made when missing

    c.initial_weights = ""  # to begin with, rather than drawn from the seed
    c.min_quality = 1  # lowest JPEG quality factor (the paper's a)
    c.max_quality = 30  # highest (the paper's b)
    c.levels = 3  # equal ranges of quality factors (the paper's n)
    c.margin = 0.5  # epsilon of eq. 2

    c.model = ConfigDict()
    c.model.name = "ranker"  # of cqr_jax/models
    c.model.width = 64  # channels of the first convolution; others are multiples
    c.model.hidden = 100  # units of the first dense layer

    c.patch = 48  # side of a training crop in pixels, a multiple of 8
    c.batch_size = 16  # pairs a step, over all devices
    c.steps = 300_000  # training steps
    # of the exponential moving average of the weights, 0 for none; the statistics of
    # batch norm stay those of the weights as they are
    c.ema_decay = 0.0

    c.optimizer = ConfigDict()
    c.optimizer.name = "adam"  # adam or muon
    c.optimizer.learning_rate = 1e-4  # at first
    # step_decay, cosine to zero at the last step, or stable_decay: constant, then
    # linear to zero
    c.optimizer.schedule = "step_decay"
    c.optimizer.halve_every = 100_000  # steps, for the schedule step_decay
    c.optimizer.decay_steps = 0  # last ones, in which the rate of stable_decay falls
    c.optimizer.warmup_steps = 0  # of linear warm-up
    c.optimizer.clip_norm = 0.0  # global norm to which gradients are clipped; 0: none

    c.validation = ConfigDict()
    c.validation.patch = 96  # side of a validation crop in pixels, a multiple of 8
    c.validation.examples = 1024  # pairs
    c.validation.batch_size = 64  # pairs at a time

    c.log_every = 100  # steps between lines of the log
    c.validate_every = 5000  # steps between validations, each followed by a checkpoint
    c.keep = 2  # latest checkpoints kept beside the best

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
