"""The pure training and evaluation steps of both stages.

A training step maps (state, ranker_variables, batch) to (state, metrics). An evaluation
step maps (variables, ranker_variables, batch) to sums over the batch, which are added
over batches and divided once. `ranker_variables` are the variables of the frozen ranker
in the deblocker's stage, and empty in the ranker's stage. All other arguments are bound
beforehand with `functools.partial`. `cqr_jax.training.runner` distributes a step over
devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from cqr_jax import losses
from cqr_jax.training import state as train_state
from cqr_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Apply = Callable[..., Any]  # `Module.apply`


def ranker_train_step(
    state: TrainState,
    ranker_variables: Any,
    batch: Batch,
    *,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    margin: float,
    ema_decay: float,
    grad_accum_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one step of stage 1, with the margin ranking loss (eq. 2) on pairs.

    The two branches run as one batch, so that the statistics of BatchNorm cover both.
    With several micro-batches, BatchNorm sees one micro-batch after the other.

    Args:
      state: state of the ranker.
      ranker_variables: unused.
      batch: batch of examples of `pipeline.pairs`.
      apply: `apply` of the ranker.
      optimizer: optimizer of the state.
      margin: margin of the loss.
      ema_decay: decay of the moving average; see `state.update`.
      grad_accum_steps: number of micro-batches per step.
      axis_name: axis of the devices to average over under pmap.

    Returns:
      The next state, and `loss` and `accuracy` of the batch.
    """
    del ranker_variables

    def loss_fn(params, batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        images = jnp.concatenate([batch["image_i"], batch["image_j"]])
        (scores, _), new = apply(
            variables, to_float(images), train=True, mutable=["batch_stats"]
        )
        score_i, score_j = jnp.split(scores, 2)
        loss = losses.margin_ranking(
            score_i, score_j, batch["label_i"], batch["label_j"], margin
        )
        metrics = {"loss": loss, "accuracy": _ordered(score_i, score_j, batch).mean()}
        return loss, (metrics, new["batch_stats"])

    found = _accumulate(loss_fn, state, batch, grad_accum_steps)
    grads, metrics, batch_stats = _mean(found, axis_name)
    return train_state.update(state, grads, batch_stats, optimizer, ema_decay), metrics


def ranker_eval_step(
    variables: dict,
    ranker_variables: Any,
    batch: Batch,
    *,
    apply: Apply,
    margin: float,
    axis_name: str | None = None,
) -> Metrics:
    """Returns the sums of `loss`, `correct` and `count` over a masked batch of pairs.

    A pair is correct if its scores are in the order of its labels.
    """
    del ranker_variables
    score_i, _ = apply(variables, to_float(batch["image_i"]))
    score_j, _ = apply(variables, to_float(batch["image_j"]))
    per_pair = jax.vmap(losses.margin_ranking, (0, 0, 0, 0, None))(
        score_i, score_j, batch["label_i"], batch["label_j"], margin
    )
    mask = batch["mask"]
    sums = {
        "loss": jnp.sum(per_pair * mask),
        "correct": jnp.sum(_ordered(score_i, score_j, batch) * mask),
        "count": jnp.sum(mask),
    }
    return _sum(sums, axis_name)


def deblock_train_step(
    state: TrainState,
    ranker_variables: Any,
    batch: Batch,
    *,
    apply: Apply,
    rank: Apply | None,
    optimizer: optax.GradientTransformation,
    loss_weights: Mapping[str, float],
    ema_decay: float,
    grad_accum_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one step of stage 2, with the overall loss (eq. 6).

    Args:
      state: state of the deblocker.
      ranker_variables: variables of the ranker, which get no gradient; empty if no term
        needs the ranker.
      batch: batch of examples of `pipeline.ladders`, `blind` or `colour`.
      apply: `apply` of the deblocker.
      rank: `apply` of the ranker; not called if no term needs the ranker.
      optimizer: optimizer of the state.
      loss_weights: name -> weight of each term; see `losses.overall`.
      ema_decay: decay of the moving average; see `state.update`.
      grad_accum_steps: number of micro-batches per step.
      axis_name: axis of the devices to average over under pmap.

    Returns:
      The next state, and `loss` and its terms by name.
    """
    ranker_variables = jax.lax.stop_gradient(ranker_variables)

    def frozen_rank(image):
        assert rank is not None, "the loss needs a ranker"
        return rank(ranker_variables, image)

    def loss_fn(params, batch_stats, batch):
        clean, *compressed = _clean_and_compressed(batch)
        restored = apply({"params": params}, *compressed)
        comparison = losses.Comparison(restored, clean, frozen_rank)
        loss, metrics = losses.overall(comparison, loss_weights)
        return loss, (metrics, batch_stats)

    found = _accumulate(loss_fn, state, batch, grad_accum_steps)
    grads, metrics, _ = _mean(found, axis_name)
    state = train_state.update(state, grads, state.batch_stats, optimizer, ema_decay)
    return state, metrics


def deblock_eval_step(
    variables: dict,
    ranker_variables: Any,
    batch: Batch,
    *,
    apply: Apply,
    axis_name: str | None = None,
) -> Metrics:
    """Returns sums over a masked batch: `mse`, `mse_jpeg` and `count`.

    `mse` and `mse_jpeg`, float32 (qualities,), are the sums over the images of the mean
    squared error of each, in levels of 0 to 255: of the restored and of the compressed
    images. Restored images are rounded and clipped as in a saved picture.
    """
    del ranker_variables
    clean, *compressed = _clean_and_compressed(batch)
    restored = apply({"params": variables["params"]}, *compressed)
    shape = batch["compressed"].shape
    restored = to_levels(restored).reshape(shape)
    clean = batch["clean"][:, None].astype(jnp.float32)
    mask = batch["mask"][:, None]

    def mse(image: jax.Array) -> jax.Array:
        return jnp.sum(
            jnp.mean(jnp.square(image - clean), axis=(2, 3, 4)) * mask, axis=0
        )

    sums = {
        "mse": mse(restored),
        "mse_jpeg": mse(batch["compressed"].astype(jnp.float32)),
        "count": jnp.sum(mask),
    }
    return _sum(sums, axis_name)


def to_float(image: jax.typing.ArrayLike) -> jax.Array:
    """Converts uint8 to float32 in [0, 1]."""
    return jnp.asarray(image, jnp.float32) / 255


def to_levels(image: jax.Array) -> jax.Array:
    """Converts [0, 1] to levels of 0 to 255, clipped and rounded, as floats."""
    return jnp.round(jnp.clip(image, 0, 1) * 255)


def _clean_and_compressed(batch: Batch) -> tuple[jax.Array, ...]:
    """Returns clean and compressed images, and the compression if the batch has it.

    The images are in [0, 1], with shapes (batch, ...) and (batch * qualities, ...). The
    compression has shape (batch * qualities, FEATURES).
    """

    def each(name: str) -> jax.Array:
        return batch[name].reshape(-1, *batch[name].shape[2:])

    condition = (each("compression"),) if "compression" in batch else ()
    return to_float(batch["clean"]), to_float(each("compressed")), *condition


def _ordered(score_i: jax.Array, score_j: jax.Array, batch: Batch) -> jax.Array:
    """Returns 1 for each pair whose scores are in the order of its labels, else 0."""
    better = jnp.sign(batch["label_i"] - batch["label_j"])
    return ((score_i - score_j) * better > 0).astype(jnp.float32)


def _accumulate(
    loss_fn: Callable, state: TrainState, batch: Batch, grad_accum_steps: int
) -> tuple[Any, Metrics, Any]:
    """Accumulates gradients over micro-batches.

    Only the activations of one micro-batch are in memory at a time.

    Args:
      loss_fn: (params, batch_stats, micro-batch) -> (loss, (metrics, batch_stats)).
      state: state with the parameters to differentiate by.
      batch: batch of a size divisible by `grad_accum_steps`.
      grad_accum_steps: number of micro-batches.

    Returns:
      The mean gradients, the mean metrics, and the statistics of BatchNorm after the
      last micro-batch.
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if grad_accum_steps == 1:
        grads, (metrics, batch_stats) = gradient(state.params, state.batch_stats, batch)
        return grads, metrics, batch_stats

    def divide(x):
        # A micro-batch takes every n-th example, so that it stays sharded.
        shape = (-1, grad_accum_steps, *x.shape[1:])
        return jnp.moveaxis(x.reshape(shape), 1, 0)

    def add(carry, micro_batch):
        total, batch_stats = carry
        grads, (metrics, batch_stats) = gradient(state.params, batch_stats, micro_batch)
        return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (total, batch_stats), metrics = jax.lax.scan(
        add, (zeros, state.batch_stats), jax.tree.map(divide, batch)
    )
    grads = jax.tree.map(lambda x: x / grad_accum_steps, total)
    return grads, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics), batch_stats


def _mean(tree, axis_name: str | None):
    """Returns the mean over devices. Uses one exchange: exchanges are slow on CPUs."""
    if not axis_name:
        return tree
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, axis_name))


def _sum(tree, axis_name: str | None):
    return jax.lax.psum(tree, axis_name) if axis_name else tree
