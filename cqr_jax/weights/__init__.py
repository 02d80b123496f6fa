"""Weights as single files: safetensors whose header tells the model and its origin.

Reading and writing them needs neither TensorFlow nor Orbax. `compact.safetensors` and
its like in this folder come with the package; README.md beside them says what they are.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from cqr_jax import files, models
from cqr_jax.errors import UserError

SHIPPED = pathlib.Path(__file__).parent  # folder of the weights of the package


class Weights(NamedTuple):
    """A model with its variables.

    Attributes:
      model: the Flax module.
      variables: of it, NumPy arrays.
      fields: the module's config fields.
      provenance: how the weights were made, as `save` was told.
    """

    model: nn.Module
    variables: dict
    fields: dict
    provenance: dict


def save(
    path: str | os.PathLike, kind: str, fields: dict, variables: Any, provenance: dict
) -> None:
    """Writes weights, under a temporary name until they are whole.

    Args:
      path: of the file.
      kind: 'ranker' or 'deblocker'.
      fields: the module's config fields.
      variables: Flax variables.
      provenance: JSON values that tell how the weights were made.
    """
    header = {
        "kind": kind,
        "fields": json.dumps(fields),
        "provenance": json.dumps(provenance),
    }
    data = safetensors.numpy.save(_flatten(variables), header)
    files.write(pathlib.Path(path), data)


def file_name(kind: str) -> str:
    """Of the weights in the workdir of a finished stage.

    Args:
      kind: 'ranker' or 'deblocker'.
    """
    return f"{kind}.safetensors"


def load(path: str | os.PathLike, kind: str, fields: dict | None = None) -> Weights:
    """Reads weights and checks them against the model they are for.

    Args:
      path: of the file.
      kind: 'ranker' or 'deblocker'.
      fields: the config fields that the model must have; None for any.

    Raises:
      UserError: no such file, not weights of this kind, other fields than wanted, or
        missing, extra or mis-shaped arrays.
    """
    held, found, provenance, arrays = read(path)
    if held != kind:
        raise UserError(f"{path}: holds a {held}, not a {kind}")
    # A file that is older than a field was made with the field's default.
    try:
        model = models.create(found, kind)
    except TypeError as error:
        raise UserError(f"{path}: fields of another version ({error})") from None
    defaults = {x.name: x.default for x in dataclasses.fields(model)}
    made_with = defaults | {"name": kind} | found
    for name, value in (fields or {}).items():
        ours, theirs = (json.loads(json.dumps(x)) for x in (value, made_with[name]))
        if ours != theirs:
            raise UserError(
                f"{path}: holds a {kind} with {name} {theirs}, but the config asks for "
                f"{value}"
            )
    image = jnp.zeros((1, 64, 64, models.channels(model)))
    expected = jax.eval_shape(model.init, jax.random.key(0), image)
    _check(path, arrays, _flatten(expected))
    variables = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return Weights(model, {"batch_stats": {}, **variables}, found, provenance)


def read(path: str | os.PathLike) -> tuple[str, dict, dict, dict[str, np.ndarray]]:
    """What a weights file holds, whatever model it is for.

    Returns:
      Its kind, fields and provenance as `save` was told, and its arrays by the names of
      the variables, 'params/head/kernel' for one; float32, also where the file rounds
      to half precision.

    Raises:
      UserError: no such file, or not a weights file.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such weights file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            fields = json.loads(header["fields"])
            provenance = json.loads(header["provenance"])
            arrays = {
                name: file.get_tensor(name).astype(np.float32)
                for name in file.keys()  # noqa: SIM118
            }
        return header["kind"], fields, provenance, arrays
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a weights file of cqr_jax ({error})") from None


def _flatten(variables: Any) -> dict:
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    return {
        name: x if isinstance(x, jax.ShapeDtypeStruct) else np.asarray(x)
        for name, x in flat.items()
    }


def _check(path, found: dict, expected: dict) -> None:
    shapes = {name: x.shape for name, x in found.items()}
    wanted = {name: x.shape for name, x in expected.items()}
    problems = [f"missing {name}" for name in sorted(wanted.keys() - shapes.keys())]
    problems += [f"extra {name}" for name in sorted(shapes.keys() - wanted.keys())]
    problems += [
        f"{name} of shape {shapes[name]} instead of {wanted[name]}"
        for name in sorted(shapes.keys() & wanted.keys())
        if shapes[name] != wanted[name]
    ]
    if problems:
        raise UserError(f"{path}: doesn't fit its model: {'; '.join(problems)}")
