"""The networks."""

from flax import linen as nn


def channels(model: nn.Module) -> int:
    """Channels of the images that a model takes; the ranker's are of Y alone."""
    return getattr(model, "channels", 1)
