"""Groups of fields that the configs of both training stages share.

c.data = common.data()  # a group
c.update(common.execution())  # fields at the top level
"""

from ml_collections import ConfigDict


def execution() -> ConfigDict:
    """Returns the fields for how a training step is executed."""
    c = ConfigDict()
    c.parallel = "jit"  # parallelization over several devices: jit or pmap
    # float32 or bfloat16; parameters and losses are always float32
    c.compute_dtype = "float32"
    c.grad_accum_steps = 1  # micro-batches per step, computed in sequence
    return c


def data() -> ConfigDict:
    """Returns the fields that name the training records."""
    c = ConfigDict()
    c.data_dir = "data"  # folder of the records
    c.name = "div2k"  # data set; div2k and embedded are made if missing
    return c


def optimizer() -> ConfigDict:
    """Returns the fields of the optimizer and its learning rate."""
    c = ConfigDict()
    c.name = "adam"  # adam or muon
    c.learning_rate = 1e-4  # peak learning rate, after the warm-up
    # step_decay; cosine: falls to zero at the last step; stable_decay: constant, then
    # falls linearly to zero
    c.schedule = "step_decay"
    c.halve_every = 100_000  # steps between halvings, for step_decay
    c.decay_steps = 0  # final steps in which the rate falls, for stable_decay
    c.warmup_steps = 0  # steps of linear warm-up
    c.clip_norm = 0.0  # global norm of gradient clipping; 0: none
    return c


def intervals() -> ConfigDict:
    """Returns the fields for logging, validating and keeping checkpoints."""
    c = ConfigDict()
    c.log_every = 100  # steps between log lines
    c.validate_every = 5000  # steps between validations, each followed by a checkpoint
    c.keep = 2  # latest checkpoints to keep, in addition to the best
    return c
