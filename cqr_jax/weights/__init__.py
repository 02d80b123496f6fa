"""Weights as single safetensors files, with the model and its provenance in the header.

Reading and writing them needs neither TensorFlow nor Orbax. The package includes
`compact.safetensors` and other weights in this folder; README.md here describes them.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from cqr_jax import files
from cqr_jax.errors import UserError

SHIPPED = pathlib.Path(__file__).parent  # folder of the weights in the package
DEBLOCKER = SHIPPED / "colour.safetensors"  # the network of `cqr-restore`


class Weights(NamedTuple):
    """A model with its variables.

    Attributes:
      model: the Flax module.
      variables: variables of the model, as NumPy arrays.
      fields: config fields of the module.
      provenance: how the weights were made, as given to `save`.
    """

    model: Any
    variables: dict
    fields: dict
    provenance: dict


class Header(NamedTuple):
    """What a weights file tells of its model.

    Attributes:
      kind: 'ranker' or 'deblocker'.
      fields: config fields of the module.
      provenance: how the weights were made.
    """

    kind: str
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

    Raises:
      UserError: if the file can't be written.
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


def load(
    path: str | os.PathLike,
    kind: str,
    fields: dict | None = None,
    where: str = "config.model",
) -> Weights:
    """Reads weights and checks that they fit their model.

    Args:
      path: path of the file.
      kind: 'ranker' or 'deblocker'.
      fields: config fields that the model must have; None for any.
      where: the group of these fields in the config, for error messages.

    Raises:
      UserError: if there is no such file, if it doesn't hold weights of this kind, if
        the fields differ, or if arrays are missing, extra or of a wrong shape.
    """
    # Imported here because `cqr-restore` often needs `header` alone.
    from cqr_jax import models
    from cqr_jax.models.init import shapes

    found = header(path, kind).fields
    _, _, provenance, arrays = read(path)
    if (name := found.get("name", kind)) not in models.MODELS:
        raise UserError(
            f"{path}: holds the network {name!r}, which is unknown here; add it to "
            "cqr_jax/models, or name other weights"
        )
    try:
        model = models.create(found, kind)
    except TypeError as error:
        raise UserError(
            f"{path}: has model fields of another version of cqr_jax ({error})"
        ) from None
    made_with = all_fields(found, kind)
    asked = {"name": kind} | fields if fields else {}
    differing = {
        name: (made_with.get(name), value)
        for name, value in asked.items()
        if json.loads(json.dumps(value)) != made_with.get(name)
    }
    if "name" in differing:  # other fields depend on it
        differing = {"name": differing["name"]}
    if differing:
        theirs, ours = (
            ", ".join(f"{name}={pair[i]}" for name, pair in differing.items())
            for i in (0, 1)
        )
        raise UserError(
            f"{path}: holds a {kind} with {theirs}, but {where} has {ours}; change "
            "these fields, or name other weights"
        )
    _check(path, arrays, _flatten(shapes(model, 64)))
    variables = {"batch_stats": {}, **nested(arrays)}
    return Weights(model, variables, found, provenance)


def all_fields(fields: dict, kind: str) -> dict:
    """Returns the fields as JSON values, with defaults for those that are missing.

    Args:
      fields: config fields of a module. An older file lacks some.
      kind: 'ranker' or 'deblocker'.
    """
    from cqr_jax import models

    named = {"name": kind} | fields
    return json.loads(json.dumps(models.defaults(named["name"]) | named))


def header(path: str | os.PathLike, kind: str) -> Header:
    """Reads what a weights file tells of its model, without the arrays.

    Args:
      path: path of the file.
      kind: 'ranker' or 'deblocker'.

    Raises:
      UserError: if there is no such file, or it doesn't hold weights of this kind.
    """
    with _opened(path) as file:
        found = _header(file)
    if found.kind != kind:
        raise UserError(
            f"{path}: holds a {found.kind}, not a {kind}; name weights of a {kind}"
        )
    return found


def read(path: str | os.PathLike) -> tuple[str, dict, dict, dict[str, np.ndarray]]:
    """Reads a weights file of any model.

    Returns:
      The kind, fields and provenance as given to `save`, and the arrays by the names of
      the variables, such as 'params/head/kernel'. Arrays are float32, even if the file
      stores half precision.

    Raises:
      UserError: if there is no such file, or it isn't a weights file.
    """
    with _opened(path) as file:
        arrays = {
            name: file.get_tensor(name).astype(np.float32)
            for name in file.keys()  # noqa: SIM118
        }
        return *_header(file), arrays


def digest(variables: Any) -> str:
    """Returns a SHA-256 of the names, shapes, dtypes and values of variables."""
    found = hashlib.sha256()
    for name, x in sorted(_flatten(variables).items()):
        found.update(f"{name} {x.shape} {x.dtype}\n".encode())
        found.update(x.tobytes())
    return found.hexdigest()


def nested(arrays: dict[str, np.ndarray]) -> dict:
    """Returns the Flax variables of the arrays that `read` returns.

    `flax.traverse_util.unflatten_dict` does the same, but importing Flax takes long.
    """
    variables: dict = {}
    for path, array in arrays.items():
        *modules, name = path.split("/")
        parent = variables
        for module in modules:
            parent = parent.setdefault(module, {})
        parent[name] = array
    return variables


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """Opens a weights file; reports one that can't be read in one line."""
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such weights file; those of the package are in {SHIPPED}"
        )
    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a weights file of cqr_jax ({error})") from None


def _header(file: Any) -> Header:
    held = file.metadata() or {}
    fields, provenance = (json.loads(held[x]) for x in ("fields", "provenance"))
    return Header(held["kind"], fields, provenance)


def _flatten(variables: Any) -> dict:
    import jax
    from flax.traverse_util import flatten_dict

    flat = flatten_dict(dict(variables), sep="/")
    return {
        # safetensors writes the wrong values of an array that is not contiguous.
        name: x if isinstance(x, jax.ShapeDtypeStruct) else np.asarray(x, order="C")
        for name, x in flat.items()
    }


def _check(path, found: dict, expected: dict) -> None:
    shapes = {name: x.shape for name, x in found.items()}
    wanted = {name: x.shape for name, x in expected.items()}
    missing = [f"missing {x}" for x in sorted(wanted.keys() - shapes.keys())]
    extra = [f"extra {x}" for x in sorted(shapes.keys() - wanted.keys())]
    wrong = [
        f"{name} of shape {shapes[name]} instead of {wanted[name]}"
        for name in sorted(shapes.keys() & wanted.keys())
        if shapes[name] != wanted[name]
    ]
    problems = [
        x[0] + (f" (and {len(x) - 1} more)" if len(x) > 1 else "")
        for x in (missing, extra, wrong)
        if x
    ]
    if problems:
        raise UserError(
            f"{path}: doesn't fit its model: {'; '.join(problems)}; the file is "
            "damaged or of another version of cqr_jax"
        )
