"""Checks of the fields of `configs/aot.py`."""

from ml_collections import ConfigDict

from cqr_jax.config import at_least, in_range, one_of
from cqr_jax.training.checks import check_deblock


def check_aot(config: ConfigDict) -> None:
    """Checks a config of `configs/aot.py`.

    Raises:
      UserError: if a field is out of its range; names the first one and its range.
    """
    check_deblock(config)
    for owner, where in ((config, "config"), (config.ranker, "config.ranker")):
        one_of(owner, where, "parallel", ("jit",))
    at_least(config, "config", "side", 1)
    in_range(config, "config", "memory", 0, 1e6)
