"""Checks before a training starts.

They do not import TensorFlow, which takes seconds. A mistake is therefore reported at
once.
"""

import pathlib

import jax
import ml_collections
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cqr_jax import losses, models, weights
from cqr_jax.config import split_list
from cqr_jax.errors import UserError
from cqr_jax.models.init import shapes
from cqr_jax.training import distributed


def check_start(
    config: ml_collections.ConfigDict, kind: str, where: str = "config"
) -> weights.Weights | None:
    """Checks the model, the batch sizes and the weights that a stage starts from.

    Checks the same of the ranker that will be trained before the deblocker.

    Args:
      config: config of the stage.
      kind: 'ranker' or 'deblocker'.
      where: prefix of the config's fields on the command line, for error messages.

    Returns:
      The initial weights; None if the config names none.

    Raises:
      UserError: if there is no such model, if a batch does not divide evenly into
        devices and micro-batches, if `data.gray_crops` does not divide evenly among
        processes, if weights that the config names can't be read or belong to another
        model, or if `initial_layers` don't fit or have no weights to come from.
    """
    try:
        model = models.create(config.model, kind)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None
    except TypeError as error:
        raise UserError(f"{where}.model: {error}") from None
    if kind == "deblocker" and type(model) is not models.Deblocker:
        _check_odd_sides(model, where)
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
    elif guided:
        check_start(config.ranker, "ranker", f"{where}.ranker")
    some = split_list(config.get("initial_layers", ""))
    if not config.initial_weights:
        if some:
            raise UserError(
                f"{where}.initial_layers={config.initial_layers}: needs "
                f"{where}.initial_weights, the file to take them from"
            )
        return None
    if not some:
        fields = config.model.to_dict()
        return weights.load(config.initial_weights, kind, fields, f"{where}.model")
    held = weights.load(config.initial_weights, kind)
    ours, theirs = (getattr(x, "feature_scale", 1) for x in (model, held.model))
    if ours != theirs:
        raise UserError(
            f"{where}.initial_layers={config.initial_layers}: the layers of "
            f"{config.initial_weights} have feature_scale={theirs}, but "
            f"{where}.model.feature_scale={ours}"
        )
    initial_params(config, shapes(model, 64)["params"], held.variables["params"])
    return held


def _check_odd_sides(model: nn.Module, where: str) -> None:
    """Raises a UserError if a network does not take images of any height and width.

    The images of an evaluation can have odd sides.
    """
    shape = (1, 45, 51, models.channels(model))
    params = {"params": shapes(model, 64)["params"]}
    try:
        image = jax.ShapeDtypeStruct(shape, np.float32)
        found = jax.eval_shape(model.apply, params, image).shape
    except Exception as error:  # a network can raise any
        reason = (str(error) or type(error).__name__).splitlines()[0]
        found = f"an error ({reason})"
    if found != shape:
        raise UserError(
            f"{where}.model.name: {type(model).__name__} maps an image of 45x51 pixels "
            f"to {found}; pad inside, and crop at the end, so that all sizes work"
        )


def initial_params(
    config: ml_collections.ConfigDict, fresh: dict, initial: dict
) -> dict:
    """Returns the parameters that a stage starts from.

    Args:
      config: config of the stage.
      fresh: randomly initialised parameters of the config's model.
      initial: parameters of the initial weights.

    Returns:
      The initial parameters. With `config.initial_layers`, only those whose names have
      one of its prefixes, and fresh parameters for the others.

    Raises:
      UserError: if no parameter has one of the prefixes, or if the config's model lacks
        a parameter or has it with another shape.
    """
    starts = split_list(config.get("initial_layers", ""))
    if not starts:
        return initial
    ours, theirs = (flatten_dict(x, sep="/") for x in (fresh, initial))
    for start in starts:
        names = [name for name in theirs if name.startswith(start)]
        if not names:
            raise UserError(
                f"config.initial_layers: no layer of {config.initial_weights} begins "
                f"with {start}; it has {', '.join(sorted(initial))}"
            )
        for name in names:
            if name not in ours or np.shape(ours[name]) != np.shape(theirs[name]):
                raise UserError(
                    f"config.initial_layers: {name} of {config.initial_weights} does "
                    f"not fit the config's model; leave {start} out"
                )
            ours[name] = theirs[name]
    return unflatten_dict(ours, sep="/")


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
    fields = config.ranker.model.to_dict()
    return weights.load(path, "ranker", fields, "config.ranker.model")
