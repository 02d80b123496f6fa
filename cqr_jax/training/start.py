"""Checks before a training starts.

They do not import TensorFlow, which takes seconds. A mistake is therefore reported at
once.
"""

import pathlib

import jax
import ml_collections

from cqr_jax import losses, models, weights
from cqr_jax.errors import UserError
from cqr_jax.training import distributed


def check_start(
    config: ml_collections.ConfigDict, kind: str, where: str = "config"
) -> weights.Weights | None:
    """Checks the model, the batch sizes and the weights that a stage starts from.

    Args:
      config: config of the stage.
      kind: 'ranker' or 'deblocker'.
      where: prefix of the config's fields on the command line, for error messages.

    Returns:
      The initial weights; None if the config names none. They may lack the shifts of
      mask branches, which start at zero.

    Raises:
      UserError: if there is no such model, if a batch does not divide evenly into
        devices and micro-batches, or if weights that the config names can't be read or
        belong to another model.
    """
    try:
        models.create(config.model, kind)
    except TypeError as error:
        raise UserError(f"{where}.model: {error}") from None
    batch, validated = config.batch_size, config.validation.batch_size
    distributed.check_batch(batch, f"{where}.batch_size", config.grad_accum_steps)
    distributed.check_batch(validated, f"{where}.validation.batch_size")
    if config.data.get("gray_name") and config.data.gray_crops % jax.process_count():
        raise UserError(
            f"{where}.data.gray_crops={config.data.gray_crops}: must be a multiple of "
            f"the number of processes, {jax.process_count()}"
        )
    guided = kind == "deblocker" and losses.needs_ranker(config.loss)
    if guided and config.ranker_weights:
        load_ranker(config, config.ranker_weights)
    if not config.initial_weights:
        return None
    fields = config.model.to_dict()
    if fields.get("mask_shifts"):
        held = weights.header(config.initial_weights, kind).fields
        fields["mask_shifts"] = held.get("mask_shifts", False)
    return weights.load(config.initial_weights, kind, fields)


def load_ranker(
    config: ml_collections.ConfigDict, path: str | pathlib.Path
) -> weights.Weights:
    """Loads the ranker that guides a deblocker.

    Args:
      config: config of the deblocker.
      path: file of the ranker's weights.

    Raises:
      UserError: if there is no such file, or it does not hold the config's ranker.
    """
    return weights.load(path, "ranker", config.ranker.model.to_dict())
