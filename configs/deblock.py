"""Stage 2: the deblocker, guided by the frozen ranker; stage 1 first where needed.

    python -m cqr_jax.main --config=configs/deblock.py
    python -m cqr_jax.main --config=configs/deblock.py:quickstart
    python -m cqr_jax.main --config=configs/deblock.py:compact,ablation=dc \
        --config.data.name=NAME

Presets: paper (default), compact (a CPU trains it in hours), quickstart (minutes, on
photographs that come with scikit-image). `ablation` is a variant of Table 1: cqr (no
ranker), dc (no dilation), lq (no quality loss), lf (no feature matching loss);
configs/ablation.py trains them all.
"""

from ml_collections import ConfigDict

from configs import eval as evaluation
from configs import ranker
from cqr_jax.config import ABLATIONS, ablate, parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the preset and the ablation named by `text`."""
    file = "configs/deblock.py"
    options = parse(text, file, preset=PRESETS, ablation=("none", *ABLATIONS))
    preset, ablation = options["preset"], options["ablation"]

    c = ConfigDict()
    c.task = "deblock"
    suffix = "" if ablation == "none" else f"-without-{ablation}"
    c.workdir = f"runs/deblock-{preset}{suffix}"  # checkpoints, logs, weights, panels
    c.seed = 0  # of initialisation and data, in both stages
    c.parallel = "jit"  # jit or pmap: how a step runs on several devices
    c.compute_dtype = "float32"  # or bfloat16; parameters and losses stay float32
    c.grad_accum_steps = 1  # micro-batches per step, computed one after the other
    c.remat = False  # recompute activations in the backward pass, to save memory

    c.data = ConfigDict()
    c.data.data_dir = "data"  # root of the records
    c.data.name = "div2k"  # data set; div2k and embedded are made when missing
    c.data.gray_name = ""  # colour alone: gray photographs, to train luma beside
    c.data.gray_crops = 4  # of a step's crops, those from gray_name if it is given

    c.initial_weights = ""  # to begin with, rather than drawn from the seed
    c.ranker_weights = ""  # frozen ranker; empty: that of stage 1, trained if missing
    c.loss = ConfigDict()  # eq. 6; without alpha and beta no ranker is used
    c.loss.alpha = 0.01  # weight of the quality loss L_Q
    c.loss.beta = 0.9  # weight of the feature matching loss L_F
    c.loss.pixel = "mae"  # mae (L_MAE), or log_mse, by which PSNR gains
    # ladder: JPEGs of the records; blind and colour: made on the way
    c.degradation = "ladder"
    c.qualities = (10, 20, 30)  # JPEG quality factors of the ladder to train on
    c.qualities_per_crop = 0  # how many of them each crop gets, drawn anew; 0: all
    c.blind = ConfigDict()  # what a blind degradation is drawn from
    c.blind.qualities = (5, 95)  # lowest and highest quality factor
    c.blind.double = 0.25  # probability that it was a JPEG before, on another grid
    c.blind.shifted = 0.5  # probability that blocks begin anywhere, not at the corner
    c.colour = ConfigDict()  # what a colour degradation is drawn from
    c.colour.qualities = (5, 100)  # lowest and highest quality factor
    c.colour.low = 0.7  # probability of one up to 50; uniform below, and above
    c.colour.gray = 0.1  # probability of a gray JPEG
    c.colour.subsampled = (0.65, 0.15)  # probability of 4:2:0 and 4:2:2; else 4:4:4
    c.colour.other_tables = 0.25  # probability of tables that are not libjpeg's
    c.colour.double = 0.2  # probability that it was a JPEG before
    c.colour.shifted = 0.2  # probability that blocks begin anywhere, not at the corner
    c.colour.unknown = 0.15  # probability that the network isn't told the compression

    c.model = ConfigDict()
    c.model.name = "deblocker"  # of cqr_jax/models
    c.model.width = 64  # channels
    c.model.local_blocks = 8  # dilated local blocks between the two non-local ones
    c.model.residual_blocks = 2  # in each of a block's trunk, mask and tail
    c.model.dilations = (1, 2, 4)  # of the multi-dilation stage
    c.model.scale = 1  # the body works at 1/scale of the resolution
    c.model.key_pool = 1  # attention averages its keys over squares of this side
    c.model.channels = 1  # 1: Y, the paper's; 3: Y, Cb and Cr together
    c.model.deeper_widths = ()  # channels at a half, a quarter, ... of the resolution
    c.model.outer_blocks = 1  # local blocks of all levels but the lowest, either side
    c.model.outer_masks = False  # whether they have mask branches
    c.model.masks = True  # whether the blocks of the lowest level have them
    c.model.conditioning = "none"  # telling the compression: none, planes, modulation
    c.model.embedding = 64  # features that the modulation is a function of

    c.patch = 48  # side of a training crop in pixels, a multiple of 8
    c.batch_size = 16  # clean crops a step, over all devices
    c.steps = 400_000  # training steps
    c.ema_decay = 0.0  # of the exponential moving average of the weights; 0 for none

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
    c.validation.examples = 128  # clean crops
    c.validation.batch_size = 8  # clean crops at a time

    c.log_every = 100  # steps between lines of the log
    c.validate_every = 5000  # steps between validations, each followed by a checkpoint
    c.keep = 2  # latest checkpoints kept beside the best

    # stage 1, as in configs/ranker.py
    c.ranker = ranker.get_config("compact" if preset == "colour" else preset)
    del c.ranker.task
    for field in ("seed", "parallel", "compute_dtype", "grad_accum_steps"):
        c.ranker[field] = c.get_oneway_ref(field)
    for field in ("data_dir", "name"):
        c.ranker.data[field] = c.data.get_oneway_ref(field)

    c.evaluation = evaluation.get_config()  # of the weights, when trained
    for field in ("task", "workdir", "weights", "restored"):  # this config gives them
        del c.evaluation[field]
    c.evaluation.sets = ""  # as in configs/eval.py; none: no evaluation

    if preset == "compact":
        c.loss.alpha = 5e-5  # benchmarks/results/loss_weights.md
        c.loss.beta = 5e-4
        c.model.width = 32
        c.model.local_blocks = 3
        c.model.residual_blocks = 0
        c.model.scale = 2
        c.model.key_pool = 8
        c.batch_size = 18
        c.qualities_per_crop = 1
        c.steps = 20_000
        c.ema_decay = 0.999
        c.optimizer.name = "muon"
        c.optimizer.learning_rate = 2e-3
        c.optimizer.schedule = "cosine"
        c.optimizer.warmup_steps = 200
        c.validation.examples = 96
        c.validation.batch_size = 6
        c.validate_every = 1000
    elif preset == "colour":
        c.data.name = "colour-photographs"
        c.degradation = "colour"
        c.qualities_per_crop = 1
        c.loss.alpha = 0.0
        c.loss.beta = 0.0
        c.loss.pixel = "log_mse"
        c.model.channels = 3
        c.model.conditioning = "modulation"
        c.model.width = 32
        c.model.deeper_widths = (64, 96)
        c.model.outer_masks = True
        c.model.local_blocks = 2
        c.model.residual_blocks = 0
        c.model.scale = 2
        c.patch = 96
        c.steps = 50_000
        c.ema_decay = 0.9995
        c.optimizer.name = "muon"
        c.optimizer.learning_rate = 2e-3
        c.optimizer.schedule = "stable_decay"
        c.optimizer.decay_steps = 10_000
        c.optimizer.warmup_steps = 200
        # The norm is usually 0.02. In a run without clipping, one of 6.6 at step 3,763
        # moved the biases so far that PSNR fell by 0.5 dB for a thousand steps.
        c.optimizer.clip_norm = 0.1
        c.validation.examples = 92
        c.validation.batch_size = 4
        c.validate_every = 1000
    elif preset == "quickstart":
        c.data.name = "embedded"
        c.loss.alpha = 1e-4  # the paper's weights need longer training to pay
        c.loss.beta = 1e-3
        c.model.width = 16
        c.model.local_blocks = 1
        c.model.residual_blocks = 0
        c.model.scale = 2
        c.model.key_pool = 4
        c.batch_size = 2
        c.steps = 800
        c.ema_decay = 0.98
        c.optimizer.learning_rate = 4e-3
        c.optimizer.schedule = "cosine"
        c.optimizer.warmup_steps = 20
        c.validation.examples = 32
        c.validate_every = 400
        c.evaluation.sets = "embedded"
        c.evaluation.panels = True

    ablate(c, ablation)
    return c


PRESETS = ("paper", "compact", "quickstart", "colour")
