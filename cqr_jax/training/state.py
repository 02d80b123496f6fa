"""What training carries from step to step, and the optimizer that moves it."""

import math
import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import optax.contrib
from flax import linen as nn

from cqr_jax.models import channels

# Modules whose kernels start at zero: the last of each residual branch, and what
# scales and shifts by the compression.
_ZERO = re.compile(r"tail|out|dilated\d+|modulation")

# Root mean square of Adam's updates, as a part of the learning rate.
_ADAM_RMS = 0.2


@flax.struct.dataclass
class TrainState:
    """All that a step changes, and all that a checkpoint holds.

    Attributes:
      step: number of steps done, int32 scalar.
      params: of the model.
      batch_stats: running statistics of BatchNorm; empty where the model has none.
      opt_state: of the optimizer.
      average: exponential moving average of `params`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any

    def variables(self) -> dict:
        """Flax variables of the averaged weights."""
        return {"params": self.average, "batch_stats": self.batch_stats}


def create(
    model: nn.Module, patch: int, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state of `model`, whose input is (batch, patch, patch, channels)."""
    variables = init(model, patch, seed)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params),
    )


def init(model: nn.Module, patch: int, seed: int) -> dict:
    """Initial variables, drawn with NumPy in a fraction of a second.

    Kernels are normal with variance 1 / fan-in, as `lecun_normal` is, or zero in the
    modules that start at zero; norms begin as the identity. The modules' own
    initialisers say the same (a test compares them), but XLA needs 20 to 40 s on a CPU
    to compile the many small draws of `model.init`.

    Args:
      model: of this package.
      patch: side of the images that it is to work on.
      seed: of the draws.
    """
    image = jax.ShapeDtypeStruct((1, patch, patch, channels(model)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        *_, module, name = (key.key for key in path)
        if name in ("scale", "var"):
            return jnp.ones(leaf.shape)
        if name != "kernel" or _ZERO.fullmatch(module):
            return jnp.zeros(leaf.shape)
        deviation = math.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(deviation * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def update(
    state: TrainState,
    grads: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """The state after one optimizer step.

    The average follows with a decay that grows as (1 + step) / (10 + step) up to
    `ema_decay`, so that it forgets the initial weights soon; 0 keeps it equal to the
    weights.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    average = optax.incremental_update(params, state.average, 1.0 - decay)
    return TrainState(step, params, batch_stats, opt_state, average)


def learning_rate(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by step: warm-up, then one of three schedules.

    'halving' (the paper's), 'cosine' to zero at the last step, or 'stable_decay':
    constant, then linear to zero over the last `decay_steps`. A run of the latter can
    be prolonged: its weights before the decay don't depend on the number of steps.

    Args:
      config: the `optimizer` fields of a training config.
      steps: training steps in all.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, steps - warmup))
    elif config.schedule == "stable_decay":
        decay = min(config.decay_steps, steps - warmup)
        falling = optax.linear_schedule(peak, 0.0, decay)
        constant = optax.constant_schedule(peak)
        main = optax.join_schedules([constant, falling], [steps - warmup - decay])
    else:
        main = optax.exponential_decay(peak, config.halve_every, 0.5, staircase=True)
    if not warmup:
        return main
    ramp = optax.linear_schedule(peak / warmup, peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


def create_optimizer(
    config: ml_collections.ConfigDict, steps: int
) -> optax.GradientTransformation:
    """Adam or Muon with the schedule of `learning_rate`, after clipping if asked for.

    Muon (Jordan 2024) moves kernels by their orthogonalized momentum, scaled so that
    Adam's learning rates suit it (Liu et al. 2025), and all else as NAdam does.

    Args:
      config: the `optimizer` fields of a training config.
      steps: training steps in all.
    """
    schedule = learning_rate(config, steps)
    if config.name == "muon":
        optimizer = optax.contrib.muon(
            schedule,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=_ADAM_RMS,
        )
    else:
        optimizer = optax.adam(schedule)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def _matrices(params: Any) -> Any:
    """How Muon sees each parameter: kernels as matrices, others not at all.

    The shorter of a kernel's two channel axes is the one side of the matrix, all else
    the other: what orthogonalizing costs grows with the square of the shorter side.
    """

    def matrix(path, leaf):
        if path[-1].key != "kernel":
            return None
        side = leaf.ndim - (1 if leaf.shape[-1] <= leaf.shape[-2] else 2)
        rest = tuple(axis for axis in range(leaf.ndim) if axis != side)
        return optax.contrib.MuonDimensionNumbers(rest, side)

    return jax.tree_util.tree_map_with_path(matrix, params)
