"""Parts shared by the exported programs: model, padding and quality table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.errors import UserError

if TYPE_CHECKING:  # `cqr-restore` uses this module without Flax, for speed
    from cqr_jax.models.deblocker import Deblocker

PLATFORMS = ("cpu", "cuda", "tpu")  # platforms for which programs are lowered


def deblocker_of(deblocker: weights.Weights) -> Deblocker:
    """Returns the model of a deblocker.

    Raises:
      UserError: if it is not this package's `Deblocker`, which alone can be exported.
    """
    from cqr_jax.models.deblocker import Deblocker

    if not isinstance(deblocker.model, Deblocker):
        raise UserError(
            f"the weights hold the network {deblocker.fields['name']!r}: only the "
            "package's own network, 'deblocker', is supported here"
        )
    return deblocker.model


def multiple_of(model: Deblocker) -> int:
    """Returns the number to a multiple of which `Deblocker.__call__` pads the sides."""
    return 2 * model.scale * 2 ** len(model.deeper_widths)


def quality_table(model: Deblocker) -> np.ndarray:
    """Returns the compression features of quality 0 (unknown) to 100.

    Their shape is (101, FEATURES).
    """
    known = [
        features(libjpeg(quality, gray=model.channels == 1))
        for quality in range(1, 101)
    ]
    return np.stack([features(None), *known])
