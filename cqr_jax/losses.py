"""The paper's losses, equations 2 to 6, and one in place of eq. 3; pure functions.

Images are float32 in [0, 1] of shape (batch, height, width, 1); scores are (batch,);
feature maps are dictionaries of (batch, height', width', channels). Every loss is a
mean over the batch, so that its weight does not depend on the batch size; it is float32
also where feature maps are bfloat16.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Images (batch, height, width, channels) to scores and feature maps.
Rank = Callable[[jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


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


class Comparison:
    """Restored images, their originals, and what the ranker says of both.

    The ranker is called only for the attributes that are read.

    Attributes:
      restored: float32 in [0, 1], (batch * qualities, height, width, channels), with
        the qualities of one image next to each other.
      clean: the original of each restored image, of the same shape.
    """

    def __init__(self, restored: jax.Array, clean: jax.Array, rank: Rank):
        """Pairs restored images with their originals.

        Args:
          restored: as the attribute.
          clean: float32 in [0, 1], (batch, height, width, channels).
          rank: the frozen ranker: images -> scores and feature maps.
        """
        self.restored = restored
        self._originals, self._rank = clean, rank
        self.clean = self._for_each_quality(clean)

    def _for_each_quality(self, x: jax.Array) -> jax.Array:
        return jnp.repeat(x, len(self.restored) // len(self._originals), axis=0)

    @functools.cached_property
    def _ranked(self) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self._rank(self.restored)

    @property
    def score(self) -> jax.Array:
        """Scores of the restored images, (batch * qualities,)."""
        return self._ranked[0]

    @property
    def features(self) -> dict[str, jax.Array]:
        """Feature maps of the restored images."""
        return self._ranked[1]

    @functools.cached_property
    def clean_features(self) -> dict[str, jax.Array]:
        """Feature maps of the originals; the ranker sees each original once."""
        _, features = self._rank(self._originals)
        return jax.tree.map(self._for_each_quality, features)


# Terms of the deblocker's loss that compare pixels: name -> function of the restored
# images and their originals.
PIXEL: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mae": mean_absolute_error,
    "log_mse": log_mean_squared_error,
}

# Terms that need the ranker: name -> function of a `Comparison`.
RANKED: dict[str, Callable[[Comparison], jax.Array]] = {
    "quality": lambda x: quality(x.score),
    "feature": lambda x: feature_matching(x.features, x.clean_features),
}


def weights(fields: Mapping[str, Any]) -> dict[str, float]:
    """Returns the weight of each term of the deblocker's loss, without zeros.

    Args:
      fields: `config.loss`. `pixel` names the term of weight 1, and `alpha` and `beta`
        are the weights of `quality` and `feature` (eq. 6). Any other field is the
        weight of the term of its name.
    """
    others = {k: v for k, v in fields.items() if k not in ("pixel", "alpha", "beta")}
    found = {"quality": fields["alpha"], "feature": fields["beta"], **others}
    return {fields["pixel"]: 1.0} | {k: v for k, v in found.items() if v}


def needs_ranker(fields: Mapping[str, Any]) -> bool:
    """Returns whether a term of the loss needs the ranker; fields: `config.loss`."""
    return bool(weights(fields).keys() & RANKED.keys())


def overall(
    comparison: Comparison, weights: Mapping[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the overall loss (eq. 6) and its terms.

    Args:
      comparison: images and ranks to compute the terms of.
      weights: name -> weight of each term of `PIXEL` or `RANKED`; the paper's are
        {'mae': 1, 'quality': alpha, 'feature': beta}. Other terms are not computed.

    Returns:
      The loss, and the terms by name with the loss among them as `loss`.
    """
    terms = {
        name: RANKED[name](comparison)
        if name in RANKED
        else PIXEL[name](comparison.restored, comparison.clean)
        for name in weights
    }
    return weighted(terms, weights)


def weighted(
    terms: dict[str, jax.Array], weights: Mapping[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the weighted sum of terms, and the terms with the sum as `loss`."""
    loss = sum(weight * terms[name] for name, weight in weights.items())
    return jnp.asarray(loss), {"loss": jnp.asarray(loss), **terms}


def _check_same_shape(first: jax.Array, *others: jax.Array) -> None:
    for other in others:
        if first.shape != other.shape:
            raise ValueError(f"shapes differ: {first.shape} and {other.shape}")
