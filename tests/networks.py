"""Small deblockers of random weights, of every kind that the runtimes must compute."""

import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.training import state

SMALL = {"width": 6, "local_blocks": 1, "residual_blocks": 1, "channels": 3}
NETWORKS = {
    "planes": {
        "deeper_widths": (8, 6),
        "outer_masks": True,
        "conditioning": "planes",
    },
    "modulation": {
        "scale": 2,
        "deeper_widths": (8,),
        "masks": False,
        "conditioning": "modulation",
        "embedding": 5,
    },
    "pooled": {
        "scale": 2,
        "mask_shifts": True,
        "negative_slope": 0.1,
        "feature_scale": 16.0,
        "deeper_widths": (8,),
        "key_pool": 4,
        "conditioning": "modulation",
        "embedding": 5,
    },
    "unconditioned": {"scale": 2, "key_pool": 3},
}


def drawn(tail=0.2, **fields):
    """A deblocker of random weights; those of the tail are scaled, to tame it."""
    model = Deblocker(**fields)
    params = state.init(model, 48, 0)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params
    )
    params["tail"] = jax.tree.map(lambda x: tail * x, params["tail"])
    return weights.Weights(model, {"params": params}, fields, {})
