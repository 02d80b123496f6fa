"""The paper's losses, equations 2 to 6, and one in place of eq. 3; pure functions.

Images are float32 in [0, 1] of shape (batch, height, width, 1); scores are (batch,);
feature maps are dictionaries of (batch, height', width', channels). Every loss is a
mean over the batch, so that its weight does not depend on the batch size; it is float32
also where feature maps are bfloat16.
"""

import jax
import jax.numpy as jnp


def margin_ranking(
    score_i: jax.Array,
    score_j: jax.Array,
    label_i: jax.Array,
    label_j: jax.Array,
    margin: float,
) -> jax.Array:
    """Margin ranking loss L_M (eq. 2), mean over pairs.

    max(0, (s_i - s_j) * eta + epsilon), eta = 1 where b_i < b_j and -1 where b_i > b_j.

    Args:
      score_i, score_j: the ranker's scores, (batch,).
      label_i, label_j: integer quality levels, (batch,), different in each pair.
      margin: epsilon, by which the better image's score should lead.
    """
    _check_same_shape(score_i, score_j, label_i, label_j)
    eta = jnp.sign(label_j - label_i)
    return jnp.mean(jnp.maximum(0.0, (score_i - score_j) * eta + margin))


def mean_absolute_error(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """L_MAE (eq. 3), as a mean over pixels."""
    _check_same_shape(restored, clean)
    return jnp.mean(jnp.abs(restored.astype(jnp.float32) - clean.astype(jnp.float32)))


def log_mean_squared_error(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Logarithm of each image's mean squared error, mean over the batch.

    In place of L_MAE; not the paper's. It is PSNR upside down, and so what the tables
    of the literature average: an image near its original counts for as much as one far
    from it. An MSE of 1e-4 (40 dB) is added, lest flat crops outweigh all others. The
    factor 0.01 makes its gradient about L_MAE's at 35 dB: alpha and beta stay theirs.
    """
    _check_same_shape(restored, clean)
    error = restored.astype(jnp.float32) - clean.astype(jnp.float32)
    mse = jnp.mean(jnp.square(error), axis=(1, 2, 3))
    return 0.01 * jnp.mean(jnp.log(mse + 1e-4))


# What pixels can be compared by: a term's name, and its function.
PIXEL = {"mae": mean_absolute_error, "log_mse": log_mean_squared_error}


def quality(score: jax.Array) -> jax.Array:
    """Quality-related loss L_Q = sigmoid(-CQR(M(x))) (eq. 4), mean over the batch."""
    return jnp.mean(jax.nn.sigmoid(-score))


def feature_matching(
    restored: dict[str, jax.Array], clean: dict[str, jax.Array]
) -> jax.Array:
    """Feature matching loss L_F (eq. 5).

    The mean absolute difference of each feature map, summed over the maps.

    Raises:
      ValueError: the maps' names or shapes differ.
    """
    if restored.keys() != clean.keys():
        raise ValueError(f"feature maps differ: {set(restored) ^ set(clean)}")
    differences = [
        mean_absolute_error(restored[name], clean[name]) for name in restored
    ]
    return jnp.sum(jnp.stack(differences))


def overall(
    terms: dict[str, jax.Array], alpha: float, beta: float, pixel: str = "mae"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L = L_MAE + alpha L_Q + beta L_F (eq. 6), and its terms by name.

    Args:
      terms: `pixel`, and `quality` and `feature` unless their weight is 0.
      alpha: weight of `quality`.
      beta: weight of `feature`.
      pixel: one of `PIXEL`; the paper's is `mae`.

    Returns:
      L, and the terms with L among them as `loss`.
    """
    loss = terms[pixel]
    if alpha:
        loss = loss + alpha * terms["quality"]
    if beta:
        loss = loss + beta * terms["feature"]
    return loss, {"loss": loss, **terms}


def _check_same_shape(first: jax.Array, *others: jax.Array) -> None:
    for other in others:
        if first.shape != other.shape:
            raise ValueError(f"shapes differ: {first.shape} and {other.shape}")
