"""Export of the deblocker to StableHLO.

`python -m cqr_jax.export --help` describes the file.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from cqr_jax import weights
from cqr_jax.export.program import PLATFORMS, deblocker_of, multiple_of, quality_table
from cqr_jax.models import colour


def to_stablehlo(deblocker: weights.Weights) -> bytes:
    """Returns the network as a serialized `jax.export.Exported`.

    The program takes `image` and `quality`; `python -m cqr_jax.export --help` gives the
    shapes. If attention averages its keys over squares, an image smaller than one
    square is first padded to it by repeating its last pixels. The model itself does not
    do this.
    """
    model = deblocker_of(deblocker)
    params = {"params": deblocker.variables["params"]}
    apply: Callable = model.apply
    if model.channels == 3:
        apply = colour.on_rgb(apply)
    table = quality_table(model)
    multiple = multiple_of(model)
    # The lowest level has two pixels for each `multiple` pixels of the image.
    least = -(-model.key_pool // 2)

    def up_to(size: Any) -> jax.Array:
        """Returns indices up to the padded size that repeat the last one of `size`."""
        count = jax.core.max_dim((size + multiple - 1) // multiple, least)
        return jnp.minimum(jnp.arange(count * multiple), size - 1)

    def restore(image, *quality):
        _, height, width, _ = image.shape
        # Pads as the model does, but to sides that are a multiple of a symbol, which
        # shape polymorphism can reason about.
        filled = image[:, up_to(height)][:, :, up_to(width)]
        condition = []
        if quality:
            row = jnp.clip(jnp.round(quality[0]), 0, len(table) - 1).astype(jnp.int32)
            condition = [jnp.asarray(table)[row]]
        restored = apply(params, filled, *condition)
        return restored[:, jnp.arange(height)][:, :, jnp.arange(width)]

    shape = jax.export.symbolic_shape(f"batch, height, width, {model.channels}")
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    if model.conditioning != "none":
        inputs.append(jax.ShapeDtypeStruct(shape[:1], jnp.float32))
    exported = jax.export.export(jax.jit(restore), platforms=PLATFORMS)(*inputs)
    return bytes(exported.serialize())
