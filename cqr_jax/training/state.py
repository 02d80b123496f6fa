"""The state of training, its initialisation, and the optimizer."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib
from flax import linen as nn

from cqr_jax.models.init import init

# Typical root mean square of Adam's updates, relative to the learning rate.
_ADAM_RMS = 0.2


@flax.struct.dataclass
class TrainState:
    """The state that a training step updates and that a checkpoint holds.

    Attributes:
      step: number of steps done, int32 scalar.
      params: parameters of the model.
      batch_stats: running statistics of BatchNorm; empty if the model has none.
      opt_state: state of the optimizer.
      ema_params: exponential moving average of `params`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any

    def variables(self) -> dict:
        """Returns Flax variables with the averaged weights."""
        return {"params": self.ema_params, "batch_stats": self.batch_stats}


def create(
    model: nn.Module, patch: int, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Returns the initial state of `model`.

    Args:
      model: model that takes (batch, patch, patch, channels) images.
      patch: side of the images in pixels.
      optimizer: optimizer of the training.
      seed: seed of the initial weights.
    """
    variables = init(model, patch, seed)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
    )


def update(
    state: TrainState,
    grads: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """Returns the state after one optimizer step.

    The moving average decays by min(`ema_decay`, (1 + step) / (10 + step)), so that it
    soon forgets the initial weights. A decay of 0 keeps it equal to the weights.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
    return TrainState(step, params, batch_stats, opt_state, ema_params)


def learning_rate(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up, then one of three schedules.

    'step_decay' (the paper's) halves the rate every `halve_every` steps. 'cosine' falls
    to zero at the last step. 'stable_decay' is constant, then falls linearly to zero
    over the last `decay_steps`. Such a run can be prolonged, because its weights before
    the decay do not depend on the number of steps.

    Args:
      config: the `optimizer` fields of a training config.
      steps: number of training steps.
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
    """Returns Adam or Muon with the schedule of `learning_rate`.

    If `clip_norm` is set, the gradients are first clipped by their global norm. Muon
    (Jordan 2024) updates kernels with their orthogonalized momentum, scaled so that
    Adam's learning rates fit (Liu et al. 2025). It updates other parameters like NAdam.

    Args:
      config: the `optimizer` fields of a training config.
      steps: number of training steps.
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
    """Returns how Muon reshapes each kernel to a matrix; None for other parameters.

    The shorter of a kernel's two channel axes becomes one side of the matrix, and all
    other axes become the other side. This keeps one side short: the cost of
    orthogonalization grows with the square of the shorter side.
    """

    def matrix(path, leaf):
        if path[-1].key != "kernel":
            return None
        side = leaf.ndim - (1 if leaf.shape[-1] <= leaf.shape[-2] else 2)
        rest = tuple(axis for axis in range(leaf.ndim) if axis != side)
        return optax.contrib.MuonDimensionNumbers(rest, side)

    return jax.tree_util.tree_map_with_path(matrix, params)
