"""Initial variables of the networks, drawn with NumPy in a fraction of a second."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.linear import default_kernel_init

from cqr_jax.errors import UserError
from cqr_jax.models import channels
from cqr_jax.models.layers import NORMAL, ZEROS

# Name of a leaf that is not a kernel -> its initial value. Biases are zero, and
# normalization layers start as the identity.
_CONSTANTS = {"bias": 0.0, "mean": 0.0, "scale": 1.0, "var": 1.0}


def init(model: nn.Module, patch: int, seed: int) -> dict:
    """Returns the initial variables of a model.

    Kernels are normal with variance 1 / fan-in, or zero if the layer has
    `kernel_init=layers.ZEROS`. Those of `model.init` have the same variance, but
    `lecun_normal` truncates the normal distribution. Drawing them with NumPy avoids the
    20 to 40 s that XLA needs on a CPU to compile the many small draws of `model.init`.

    Args:
      model: module that takes (batch, patch, patch, channels) images.
      patch: side of the images in pixels.
      seed: seed of the draws.

    Raises:
      UserError: if the model has a leaf or a kernel initialiser that is unknown here.
    """
    expected, initialisers = _traced(model, patch)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        _, *layer, name = (key.key for key in path)  # the first is the collection
        if name in _CONSTANTS:
            return jnp.full(leaf.shape, _CONSTANTS[name], leaf.dtype)
        initialiser = initialisers.get(tuple(layer)) if name == "kernel" else None
        if initialiser is ZEROS:
            return jnp.zeros(leaf.shape)
        if initialiser is NORMAL or initialiser is default_kernel_init:
            deviation = math.prod(leaf.shape[:-1]) ** -0.5
            return jnp.asarray(deviation * rng.standard_normal(leaf.shape, np.float32))
        raise UserError(
            f"{type(model).__name__}: no rule to initialise "
            f"{'/'.join([*layer, name])}; use nn.Conv or nn.Dense, or add a rule to "
            "cqr_jax/models/init.py"
        )

    return jax.tree_util.tree_map_with_path(draw, expected)


def shapes(model: nn.Module, patch: int) -> dict:
    """Returns the shapes and dtypes of the variables that `init` returns.

    Args:
      model: module that takes (batch, patch, patch, channels) images.
      patch: side of the images in pixels.
    """
    return _traced(model, patch)[0]


@functools.lru_cache(maxsize=16)  # tracing a large network takes seconds
def _traced(model: nn.Module, patch: int) -> tuple[dict, dict]:
    """Returns the shapes of the variables, and the kernel initialiser of each layer."""
    image = jax.ShapeDtypeStruct((1, patch, patch, channels(model)), jnp.float32)
    initialisers: dict[tuple[str, ...], Any] = {}

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, nn.Conv | nn.Dense):
            initialisers[context.module.path] = context.module.kernel_init
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        found = jax.eval_shape(model.init, jax.random.key(0), image)
    return found, initialisers
