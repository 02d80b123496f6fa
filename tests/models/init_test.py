"""Tests that a seed gives the same initial variables in all versions."""

import hashlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from cqr_jax.errors import UserError
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.init import init
from cqr_jax.models.ranker import Ranker

# Start of the SHA-256 of the variables for seed 3 -> model. The hashes are from a
# version that recognised zero-initialised layers by their names, except those of models
# with several levels.
MODELS = {
    "2371e7e5bb83298b": Ranker(width=4),
    "c59d46299e1e2b22": Deblocker(
        width=8, local_blocks=2, residual_blocks=1, scale=2, key_pool=4
    ),
    "aed5e8e8a5147629": Deblocker(
        width=6,
        local_blocks=1,
        residual_blocks=0,
        scale=2,
        channels=3,
        deeper_widths=(8,),
        outer_masks=True,
        conditioning="modulation",
        embedding=8,
    ),
    "bbc78a982c17cbf3": Deblocker(
        width=6,
        local_blocks=1,
        residual_blocks=1,
        channels=3,
        deeper_widths=(8, 4),
        masks=False,
        conditioning="planes",
    ),
}


def _digest(variables) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    digest = hashlib.sha256()
    for path, x in sorted((jax.tree_util.keystr(path), x) for path, x in leaves):
        digest.update(path.encode())
        digest.update(np.asarray(x).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("expected", MODELS)
def test_seed_gives_the_same_variables_as_in_earlier_versions(expected):
    assert _digest(init(MODELS[expected], 48, 3)).startswith(expected)


def test_rematerialisation_does_not_change_the_variables():
    fields = {"width": 6, "local_blocks": 1, "residual_blocks": 0}
    plain, remat = (init(Deblocker(**fields, remat=x), 32, 0) for x in (False, True))
    jax.tree.map(np.testing.assert_array_equal, plain, remat)


class _OtherLeaf(nn.Module):
    channels: int = 1

    @nn.compact
    def __call__(self, x):
        return x * self.param("gain", nn.initializers.ones, ())


class _OtherInitialiser(nn.Module):
    channels: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, kernel_init=nn.initializers.ones, name="layer")(x)


@pytest.mark.parametrize(
    ("model", "leaf"), [(_OtherLeaf(), "gain"), (_OtherInitialiser(), "layer/kernel")]
)
def test_unknown_leaf_or_initialiser_is_an_error(model, leaf):
    with pytest.raises(UserError, match=f"no rule to initialise {leaf}; use"):
        init(model, 32, 0)
