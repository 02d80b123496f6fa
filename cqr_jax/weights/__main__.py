"""Describes a weights file, or converts it to another.

    python -m cqr_jax.weights runs/a/deblocker.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --ship=a.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --luma=luma.safetensors

The first command prints the model, the number of parameters and the provenance as JSON.

--ship rounds the parameters to half precision, which halves the size of the file. It
removes the folders of the training machine from the provenance.

--luma converts a colour deblocker to one for Y alone, without conditioning. It computes
what the colour network computes for Y on gray images of unknown compression.
"""

import argparse
import json
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import FEATURES
from cqr_jax.errors import UserError, one_line_errors
from cqr_jax.export.program import deblocker_of
from cqr_jax.models.layers import Rectifier

_FOLDERS = ("workdir", "data_dir", "set_dir")
# Comma-separated paths, of which only the last components are kept.
_PATHS = ("initial_weights", "ranker_weights", "sets", "measured")


def describe(path: str) -> dict:
    """Returns kind, number of parameters, fields and provenance of a weights file."""
    kind, fields, provenance, arrays = weights.read(path)
    params = [x.size for name, x in arrays.items() if name.startswith("params/")]
    return {
        "kind": kind,
        "parameters": sum(params),
        "fields": fields,
        "provenance": provenance,
    }


def ship(path: str, output: str) -> None:
    """Writes the weights of `path` to `output` in the form that the package ships."""
    kind, fields, provenance, arrays = weights.read(path)
    halved = {
        # BatchNorm statistics are few, and may exceed the range of half precision.
        name: x.astype(np.float16) if name.startswith("params/") else x
        for name, x in arrays.items()
    }
    weights.save(output, kind, fields, halved, _without_folders(provenance))


def luma(path: str, output: str) -> None:
    """Converts the colour deblocker of `path` to one for Y alone.

    The head and the tail keep their weights for Y. Modulation by an unknown compression
    is constant, and becomes part of the convolution before it.

    Raises:
      UserError: if `path` doesn't hold a deblocker with three channels, or if it takes
        the compression as planes.
    """
    held = weights.load(path, "deblocker")
    model = deblocker_of(held)
    if model.channels != 3 or model.conditioning == "planes":
        raise UserError(
            f"{path}: only deblockers for colour, with modulation or without "
            "conditioning, can be converted"
        )
    arrays = flax.traverse_util.flatten_dict(held.variables["params"])
    if model.conditioning == "modulation":
        embedding = np.zeros((1, FEATURES), np.float32)  # of an unknown compression
        for layer in ("embedding0", "embedding1"):
            kernel, bias = (arrays.pop((layer, x)) for x in ("kernel", "bias"))
            embedding = embedding @ kernel + bias
            embedding = np.asarray(Rectifier(model.negative_slope)(embedding))
    for *block, layer, name in list(arrays):
        if layer == "modulation" and name == "kernel":
            kernel, bias = (arrays.pop((*block, layer, x)) for x in ("kernel", "bias"))
            scale, shift = np.split((embedding @ kernel + bias)[0], 2)
            kernel, bias = ((*block, "inner", x) for x in ("kernel", "bias"))
            arrays[kernel] = arrays[kernel] * (1 + scale)
            arrays[bias] = arrays[bias] * (1 + scale) + shift
    arrays["head", "kernel"] = arrays["head", "kernel"][:, :, ::3]
    for name in ("kernel", "bias"):
        arrays["tail", name] = arrays["tail", name][..., ::3]
    fields = {**held.fields, "channels": 1, "conditioning": "none"}
    params = flax.traverse_util.unflatten_dict(arrays)
    weights.save(output, "deblocker", fields, {"params": params}, held.provenance)


def _without_folders(value: Any, field: str = "") -> Any:
    """Removes the names of folders from `value`, at any depth."""
    if isinstance(value, list):
        return [_without_folders(x) for x in value]
    if field in _PATHS:
        return ",".join(pathlib.PurePath(x).name for x in value.split(","))
    if not isinstance(value, dict):
        return value
    return {k: _without_folders(v, k) for k, v in value.items() if k not in _FOLDERS}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="weights, a .safetensors file")
    outputs = parser.add_mutually_exclusive_group()
    outputs.add_argument("--ship", metavar="OUTPUT", help="file to write")
    outputs.add_argument("--luma", metavar="OUTPUT", help="file to write")
    args = parser.parse_args()
    with one_line_errors():
        if args.ship:
            ship(args.file, args.ship)
        elif args.luma:
            luma(args.file, args.luma)
        else:
            print(json.dumps(describe(args.file), indent=2))


if __name__ == "__main__":
    main()
