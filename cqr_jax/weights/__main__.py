"""Tells what a weights file is, or makes the compact file that is shipped.

    python -m cqr_jax.weights runs/a/deblocker.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --ship=a.safetensors

The first prints its model, parameters and provenance as JSON. The second rounds the
parameters to half precision, which halves the file, and leaves the folders of the
machine that trained it out of the provenance.
"""

import argparse
import json
from typing import Any

import numpy as np

from cqr_jax import weights
from cqr_jax.errors import one_line_errors

_FOLDERS = ("workdir", "data_dir", "set_dir")


def describe(path: str) -> dict:
    """Kind, number of parameters, model and provenance of a weights file."""
    kind, fields, provenance, arrays = weights.read(path)
    params = [x.size for name, x in arrays.items() if name.startswith("params/")]
    return {
        "kind": kind,
        "parameters": sum(params),
        "fields": fields,
        "provenance": provenance,
    }


def ship(path: str, output: str) -> None:
    """Writes the weights of `path` to `output` as the package ships them."""
    kind, fields, provenance, arrays = weights.read(path)
    halved = {
        # The statistics of BatchNorm are few, and may leave half precision's range.
        name: x.astype(np.float16) if name.startswith("params/") else x
        for name, x in arrays.items()
    }
    weights.save(output, kind, fields, halved, _without_folders(provenance))


def _without_folders(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without_folders(v) for k, v in value.items() if k not in _FOLDERS}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="weights, a .safetensors file")
    parser.add_argument("--ship", metavar="OUTPUT", help="file to write")
    args = parser.parse_args()
    with one_line_errors():
        if args.ship:
            ship(args.file, args.ship)
        else:
            print(json.dumps(describe(args.file), indent=2))


if __name__ == "__main__":
    main()
