"""Losses of the paper (eq. 2 to 6), and an alternative to eq. 3, as pure functions.

Images are float32 in [0, 1] of shape (batch, height, width, channels). Scores are
(batch,). Feature maps are dictionaries of (batch, height', width', channels). Every
loss is a mean over the batch, so that its weight does not depend on the batch size.
Losses are float32 even if feature maps are bfloat16.
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
    """Computes the margin ranking loss L_M (eq. 2), mean over pairs.

    The loss of a pair is max(0, (s_i - s_j) * eta + epsilon), where eta is 1 if
    b_i < b_j and -1 if b_i > b_j.

    Args:
      score_i, score_j: scores of the ranker, (batch,).
      label_i, label_j: integer quality levels b, (batch,), different in each pair.
      margin: epsilon, by which the score of the better image should be higher.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_same_shape(score_i, score_j, label_i, label_j)
    eta = jnp.sign(label_j - label_i)
    return jnp.mean(jnp.maximum(0.0, (score_i - score_j) * eta + margin))


def mean_absolute_error(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Computes L_MAE (eq. 3), as a mean over pixels.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_same_shape(restored, clean)
    return jnp.mean(jnp.abs(restored.astype(jnp.float32) - clean.astype(jnp.float32)))


def log_mean_squared_error(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Computes the logarithm of each image's mean squared error, mean over the batch.

    This is an alternative to L_MAE that is not in the paper. Up to sign and scale it is
    PSNR, which the tables of the literature average: an image near its original counts
    as much as one far from it. An MSE of 1e-4 (40 dB) is added so that flat crops don't
    dominate. The factor 0.01 makes the gradient about as large as that of L_MAE at 35
    dB, so that alpha and beta keep their values.

    Raises:
      ValueError: if the shapes differ.
    """
    _check_same_shape(restored, clean)
    error = restored.astype(jnp.float32) - clean.astype(jnp.float32)
    mse = jnp.mean(jnp.square(error), axis=(1, 2, 3))
    return 0.01 * jnp.mean(jnp.log(mse + 1e-4))


def quality(score: jax.Array) -> jax.Array:
    """Computes the quality-related loss L_Q = sigmoid(-CQR(M(x))) (eq. 4).

    The loss is a mean over the batch.
    """
    return jnp.mean(jax.nn.sigmoid(-score))


def feature_matching(
    restored: dict[str, jax.Array], clean: dict[str, jax.Array]
) -> jax.Array:
    """Computes the feature matching loss L_F (eq. 5).

    The loss is the mean absolute difference of each feature map, summed over the maps.

    Raises:
      ValueError: if the names or shapes of the maps differ.
    """
    if restored.keys() != clean.keys():
        raise ValueError(f"feature maps differ: {set(restored) ^ set(clean)}")
    differences = [
        mean_absolute_error(restored[name], clean[name]) for name in restored
    ]
    return jnp.sum(jnp.stack(differences))


class Comparison:
    """Restored images and their originals, with the outputs of the ranker on both.

    The ranker runs only for the attributes that are read.

    Attributes:
      restored: float32 in [0, 1], (batch * qualities, height, width, channels). The
        qualities of one image are adjacent.
      clean: original of each restored image, with the same shape.
    """

    def __init__(self, restored: jax.Array, clean: jax.Array, rank: Rank):
        """Pairs restored images with their originals.

        Args:
          restored: as in the attribute.
          clean: float32 in [0, 1], (batch, height, width, channels).
          rank: frozen ranker: images -> scores and feature maps.
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
        """Feature maps of the originals. The ranker runs on each original once."""
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
        weight of the term with its name.
    """
    others = {k: v for k, v in fields.items() if k not in ("pixel", "alpha", "beta")}
    found = {"quality": fields["alpha"], "feature": fields["beta"], **others}
    return {fields["pixel"]: 1.0} | {k: v for k, v in found.items() if v}


def needs_ranker(fields: Mapping[str, Any]) -> bool:
    """Returns whether the loss needs the ranker; `fields` is `config.loss`."""
    return bool(weights(fields).keys() & RANKED.keys())


def overall(
    comparison: Comparison, weights: Mapping[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the overall loss (eq. 6) and its terms.

    Args:
      comparison: images and outputs of the ranker from which to compute the terms.
      weights: name -> weight of each term of `PIXEL` or `RANKED`. The paper's are
        {'mae': 1, 'quality': alpha, 'feature': beta}. Other terms are not computed.

    Returns:
      The loss, and the terms by name, including the loss as `loss`.
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
    """Returns the weighted sum of terms, and the terms including the sum as `loss`."""
    loss = sum(weight * terms[name] for name, weight in weights.items())
    return jnp.asarray(loss), {"loss": jnp.asarray(loss), **terms}


def _check_same_shape(first: jax.Array, *others: jax.Array) -> None:
    for other in others:
        if first.shape != other.shape:
            raise ValueError(f"shapes differ: {first.shape} and {other.shape}")
