"""Conversion from RGB to the planes that networks take, and back, in JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cqr_jax.data import ycbcr


def to_ycbcr(rgb: jax.Array) -> jax.Array:
    """Converts RGB in [0, 1], (..., 3), to Y, Cb and Cr of JFIF, each in [0, 1]."""
    return _times(rgb, ycbcr.FROM_RGB) + jnp.asarray(ycbcr.ZERO)


def to_rgb(planes: jax.Array) -> jax.Array:
    """Inverts `to_ycbcr`, without clipping."""
    return _times(planes - jnp.asarray(ycbcr.ZERO), ycbcr.TO_RGB)


def luma(rgb: jax.Array) -> jax.Array:
    """Converts RGB in [0, 1], (..., 3), to the Y that the ranker takes, (..., 1).

    Computes `cqr_jax.data.jpeg.luma` without rounding. Values are in 16/255 to 235/255.
    """
    return _times(rgb, ycbcr.STUDIO_LUMA[None] / 255) + 16 / 255


def on_rgb(apply: Callable) -> Callable:
    """Wraps a deblocker's `apply` to take RGB in place of Y, Cb and Cr."""

    def applied(variables, rgb, *condition):
        return to_rgb(apply(variables, to_ycbcr(rgb), *condition))

    return applied


def on_luma(rank: Callable) -> Callable:
    """Wraps a ranker's `apply` to take RGB in place of Y."""
    return lambda variables, rgb: rank(variables, luma(rgb))


def _times(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    by = jnp.asarray(matrix.T, jnp.float32)
    return jnp.dot(x, by, precision=jax.lax.Precision.HIGHEST)
