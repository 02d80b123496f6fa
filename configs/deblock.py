"""Stage 2: the deblocker, guided by the frozen ranker. Runs stage 1 first if needed.

    python -m cqr_jax.main --config=configs/deblock.py
    python -m cqr_jax.main --config=configs/deblock.py:quickstart
    python -m cqr_jax.main --config=configs/deblock.py:compact,ablation=dc \
        --config.data.name=NAME

Presets: paper (default), compact (about 15 hours on two CPU cores), quickstart (a
minute, on photographs that are included in scikit-image), colour (the network of
cqr-restore).
`ablation` is a variant of Table 1: cqr (no ranker), dc (no dilation), lq (no quality
loss) or lf (no feature matching loss). configs/ablation.py trains all of them.
"""

from ml_collections import ConfigDict

from configs import common, ranker
from configs import eval as evaluation
from cqr_jax.config import ABLATIONS, ablate, parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the preset and the ablation named by `text`."""
    file = "configs/deblock.py"
    options = parse(text, file, preset=PRESETS, ablation=("none", *ABLATIONS[:-1]))
    preset, ablation = options["preset"], options["ablation"]

    c = ConfigDict()
    c.task = "deblock"
    suffix = "" if ablation == "none" else f"-without-{ablation}"
    c.workdir = f"runs/deblock-{preset}{suffix}"  # checkpoints, logs, weights, panels
    c.seed = 0  # seed of initialisation and training data, in both stages
    c.update(common.execution())
    c.remat = False  # recompute activations in the backward pass to save memory

    c.data = common.data()
    c.data.gray_name = ""  # only for colour: data set of additional gray photographs
    c.data.gray_crops = 4  # crops per step that are drawn from gray_name

    c.initial_weights = ""  # weights file to start from; empty: random initialisation
    # prefixes of the layers to take from it, such as head,level0; empty: all layers,
    # and the models must be equal
    c.initial_layers = ""
    c.ranker_weights = ""  # frozen ranker; empty: stage 1's, trained if missing
    c.feature_layers = ()  # feature maps of the ranker in L_F; empty: all
    c.loss = ConfigDict()  # eq. 6; no ranker is used if the weights of its terms are 0
    c.loss.alpha = 0.01  # weight of the quality loss L_Q
    c.loss.beta = 0.9  # weight of the feature matching loss L_F
    c.loss.pixel = "mae"  # mae (L_MAE, eq. 3), or log_mse for a higher PSNR
    # ladder: the JPEGs of the records; blind, colour: JPEGs made during training
    c.degradation = "ladder"
    c.qualities = (10, 20, 30)  # JPEG quality factors of the ladder to train on
    c.qualities_per_crop = 0  # quality factors drawn for each crop; 0: all of them
    c.blind = ConfigDict()  # distribution of the blind degradation
    c.blind.qualities = (5, 95)  # lowest and highest quality factor
    c.blind.double = 0.25  # probability of an earlier compression on another grid
    c.blind.shifted = 0.5  # probability that the grid starts at a random pixel
    c.colour = ConfigDict()  # distribution of the colour degradation
    c.colour.qualities = (5, 100)  # lowest and highest quality factor
    c.colour.low = 0.7  # probability of QF up to 50; uniform below and above 50
    c.colour.gray = 0.05  # probability of a gray JPEG
    c.colour.subsampled = (0.75, 0.1)  # probability of 4:2:0 and 4:2:2; else 4:4:4
    c.colour.other_tables = 0.25  # probability of tables that are not libjpeg's
    c.colour.double = 0.2  # probability of an earlier compression
    c.colour.shifted = 0.2  # probability that the grid starts at a random pixel
    # probability that the network does not receive the compression; on shifted grids:
    # that it does
    c.colour.unknown = 0.15

    c.model = ConfigDict()
    c.model.name = "deblocker"  # model in cqr_jax/models
    c.model.width = 64  # channels
    c.model.local_blocks = 8  # dilated local blocks between the two non-local blocks
    c.model.residual_blocks = 2  # residual blocks in each trunk, mask and tail
    c.model.dilations = (1, 2, 4)  # dilations of the multi-dilation stage
    c.model.scale = 1  # the body runs at 1/scale of the resolution
    c.model.key_pool = 1  # side of the squares over which attention's keys are averaged
    c.model.channels = 1  # 1: Y, as in the paper; 3: Y, Cb and Cr together
    # channels of the levels below the first, each at half the resolution of the last
    c.model.deeper_widths = ()
    c.model.outer_blocks = 1  # local blocks on each side of each upper level
    c.model.outer_masks = False  # mask branches in the blocks of the upper levels
    c.model.masks = True  # mask branches in the blocks of the lowest level
    c.model.mask_shifts = False  # mask branches also compute a term to add
    c.model.negative_slope = 0.0  # slope of the ReLUs below zero
    c.model.feature_scale = 1.0  # factor of the network's input and of its features
    # how the network receives the compression: none, planes or modulation
    c.model.conditioning = "none"
    c.model.embedding = 64  # size of the embedding that the modulation is computed from

    c.patch = 48  # side of a training crop in pixels, a multiple of 8
    c.batch_size = 16  # clean crops per step, over all devices
    c.steps = 400_000  # training steps
    c.guided_steps = 0  # final steps with the losses of the ranker; 0: all steps
    c.ema_decay = 0.0  # decay of the exponential moving average of the weights; 0: none

    c.optimizer = common.optimizer()

    c.validation = ConfigDict()
    c.validation.patch = 96  # side of a validation crop in pixels, a multiple of 8
    c.validation.examples = 128  # number of clean crops
    c.validation.batch_size = 8  # clean crops per batch

    c.update(common.intervals())

    # stage 1, as in configs/ranker.py
    c.ranker = ranker.get_config("compact" if preset == "colour" else preset)
    del c.ranker.task
    for field in ("seed", "parallel", "compute_dtype", "grad_accum_steps"):
        c.ranker[field] = c.get_oneway_ref(field)
    for field in ("data_dir", "name"):
        c.ranker.data[field] = c.data.get_oneway_ref(field)

    c.evaluation = evaluation.get_config()  # evaluation after training
    for field in ("task", "workdir", "weights", "restored"):  # set by this config
        del c.evaluation[field]
    c.evaluation.sets = ""  # as in configs/eval.py; empty: no evaluation

    if preset in ("compact", "colour"):
        c.model.width = 48
        c.model.deeper_widths = (96, 144)
        c.model.outer_blocks = 2
        c.model.local_blocks = 2
        c.model.residual_blocks = 0
        c.model.scale = 2
        # benchmarks/results/colour_choices.md and compact_choices.md
        c.model.masks = False
        c.model.negative_slope = 0.1
        c.model.feature_scale = 16.0
        c.loss.pixel = "log_mse"
        c.qualities_per_crop = 1
        c.patch = 96
        c.ema_decay = 0.999
        c.optimizer.name = "muon"
        c.optimizer.warmup_steps = 200
        c.optimizer.clip_norm = 0.1  # the norm is usually 0.02
    if preset == "compact":
        c.loss.alpha = 5e-5  # benchmarks/results/loss_weights.md
        c.loss.beta = 5e-4
        c.steps = 36_000
        c.guided_steps = 5400
        c.optimizer.learning_rate = 1e-3
        c.optimizer.schedule = "stable_decay"
        c.optimizer.decay_steps = 12_000
        c.validation.examples = 96
        c.validation.batch_size = 6
        c.validate_every = 2000
    elif preset == "colour":
        c.data.name = "colour-photographs"
        c.degradation = "colour"
        c.loss.alpha = 0.0
        c.loss.beta = 0.0
        c.model.channels = 3
        c.model.conditioning = "modulation"
        c.steps = 3000
        c.optimizer.learning_rate = 2e-3
        c.optimizer.schedule = "cosine"
        c.validation.examples = 92
        c.validation.batch_size = 4
        c.validate_every = 1000
    elif preset == "quickstart":
        c.data.name = "embedded"
        # with the paper's weights, so short a training ends below plain JPEG
        c.loss.alpha = 1e-4
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
