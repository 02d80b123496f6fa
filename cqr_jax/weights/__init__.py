"""Weights as single safetensors files, with the model and its provenance in the header.

Reading and writing them needs neither TensorFlow nor Orbax. The package includes
`compact.safetensors` and other weights in this folder; README.md here describes them.
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

SHIPPED = pathlib.Path(__file__).parent  # folder of the weights in the package


class Weights(NamedTuple):
    """A model with its variables.

    Attributes:
      model: the Flax module.
      variables: variables of the model, as NumPy arrays.
      fields: config fields of the module.
      provenance: how the weights were made, as given to `save`.
    """

    model: nn.Module
    variables: dict
    fields: dict
    provenance: dict


def save(
    path: str | os.PathLike, kind: str, fields: dict, variables: Any, provenance: dict
) -> None:
    """Writes weights to a file, which has a temporary name until it is complete.

    Args:
      path: path of the file.
      kind: 'ranker' or 'deblocker'.
      fields: config fields of the module.
      variables: Flax variables.
      provenance: JSON values that describe how the weights were made.
    """
    header = {
        "kind": kind,
        "fields": json.dumps(fields),
        "provenance": json.dumps(provenance),
    }
    data = safetensors.numpy.save(_flatten(variables), header)
    files.write(pathlib.Path(path), data)


def file_name(kind: str) -> str:
    """Returns the file name of the weights in the workdir of a finished stage.

    Args:
      kind: 'ranker' or 'deblocker'.
    """
    return f"{kind}.safetensors"


def load(path: str | os.PathLike, kind: str, fields: dict | None = None) -> Weights:
    """Reads weights and checks that they fit their model.

    Args:
      path: path of the file.
      kind: 'ranker' or 'deblocker'.
      fields: config fields that the model must have; None for any.

    Raises:
      UserError: if there is no such file, if it doesn't hold weights of this kind, if
        the fields differ, or if arrays are missing, extra or of a wrong shape.
    """
    held, found, provenance, arrays = read(path)
    if held != kind:
        raise UserError(f"{path}: holds a {held}, not a {kind}")
    # Fields that an older file lacks have their defaults.
    try:
        model = models.create(found, kind)
    except TypeError as error:
        raise UserError(
            f"{path}: has model fields of another version of cqr_jax ({error})"
        ) from None
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
    """Reads a weights file of any model.

    Returns:
      The kind, fields and provenance as given to `save`, and the arrays by the names of
      the variables, such as 'params/head/kernel'. Arrays are float32, even if the file
      stores half precision.

    Raises:
      UserError: if there is no such file, or it isn't a weights file.
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
