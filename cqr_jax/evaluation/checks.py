"""Checks of the fields of evaluation configs."""

from ml_collections import ConfigDict

from cqr_jax.config import check_levels, check_qualities, one_of
from cqr_jax.data.compression import SUBSAMPLINGS
from cqr_jax.errors import UserError


def check_tables(config: ConfigDict) -> None:
    """Checks the presets table2 and ablation of `configs/eval.py`.

    Raises:
      UserError: if a field is out of its range; names the first one and its range.
    """
    check_qualities(config, "config")


def check_colour(config: ConfigDict) -> None:
    """Checks the preset colour of `configs/eval.py`.

    Raises:
      UserError: if a field is out of its range; names the first one and its range.
    """
    check_qualities(config, "config")
    one_of(config, "config", "subsampling", tuple(SUBSAMPLINGS))


def check_ranker(config: ConfigDict) -> None:
    """Checks the preset ranker of `configs/eval.py`.

    Raises:
      UserError: if a field is out of its range; names the first one and its range.
    """
    check_levels(config, "config", 1, 100)
    if config.side and (config.side < 32 or config.side % 8):
        raise UserError(
            f"config.side={config.side}: must be 0 or a multiple of 8, at least 32"
        )
