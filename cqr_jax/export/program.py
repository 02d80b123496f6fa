"""What the exported programs share: the model, its padding, and the quality table."""

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.models.deblocker import Deblocker

PLATFORMS = ("cpu", "cuda", "tpu")  # for which programs are lowered


def deblocker_of(deblocker: weights.Weights) -> Deblocker:
    assert isinstance(deblocker.model, Deblocker)
    return deblocker.model


def multiple_of(model: Deblocker) -> int:
    """What the sides are filled up to a multiple of, as in `Deblocker.__call__`."""
    return 2 * model.scale * 2 ** len(model.deeper_widths)


def quality_table(model: Deblocker) -> np.ndarray:
    """What the network is told of quality 0 (unknown) to 100, (101, FEATURES)."""
    known = [
        features(libjpeg(quality, gray=model.channels == 1))
        for quality in range(1, 101)
    ]
    return np.stack([features(None), *known])
