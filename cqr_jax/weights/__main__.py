"""Tells what a weights file is, or makes another of it: to ship, or to train deeper.

    python -m cqr_jax.weights runs/a/deblocker.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --ship=a.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --deepen=deeper.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors \
        --interpolate=mixed.safetensors --other=runs/b/deblocker.safetensors \
        --share=0.75

The first prints its model, parameters and provenance as JSON. The second rounds the
parameters to half precision, which halves the file, and leaves the folders of the
machine that trained it out of the provenance. The third gives a deblocker one more
local block, which changes nothing until it is trained on. The fourth goes three
quarters of the way from a's weights to b's, which were trained on from a's: it keeps
most of what b learned and loses less of what a had; what it is worth is to be measured.
"""

import argparse
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.errors import UserError, one_line_errors

_FOLDERS = ("workdir", "data_dir", "set_dir")
# Paths, with commas between them, of which the last names alone are kept.
_PATHS = ("initial_weights", "ranker_weights", "sets")


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


def deepen(path: str, output: str) -> None:
    """Writes the deblocker of `path` with one more local block, as the same function.

    The block is initialised from seed 0, and its mask with zeros, so that it multiplies
    its input by 1.5 (residual branches end with zeros, and the mask is 0.5 everywhere);
    the convolution after it is divided by that (Chen et al. 2016, Net2Net).

    Raises:
      UserError: `path` doesn't hold a deblocker, or one with `residual_blocks`.
    """
    held = weights.load(path, "deblocker")
    if held.model.residual_blocks:
        raise UserError(
            f"{path}: only deblockers without residual blocks can be deepened"
        )
    last = held.model.local_blocks
    fields = {**held.fields, "local_blocks": last + 1}
    model = held.model.clone(local_blocks=last + 1)
    fresh = model.init(jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32))
    block = flax.traverse_util.flatten_dict(fresh["params"][f"local{last}"])
    block["mask", "mask", "kernel"] *= 0
    params = dict(held.variables["params"])
    params[f"local{last}"] = flax.traverse_util.unflatten_dict(block)
    params["body"] = {**params["body"], "kernel": params["body"]["kernel"] / 1.5}
    provenance = {"deepened": held.provenance}
    weights.save(output, "deblocker", fields, {"params": params}, provenance)


def interpolate(path: str, other: str, share: float, output: str) -> None:
    """Writes the weights between those of `path` and of `other`.

    (1 - share) of the first and `share` of the second, which has to be trained on from
    the first: in between the loss is low as well (Wortsman et al. 2022, Robust
    fine-tuning of zero-shot models). The provenance is that of both, and the share.

    Raises:
      UserError: they are of two models, or the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"--share={share}: is 0 to 1")
    kind, fields, provenance, first = weights.read(path)
    other_kind, other_fields, other_provenance, second = weights.read(other)
    if (kind, fields) != (other_kind, other_fields):
        raise UserError(
            f"{path} and {other} are of two models; only one's can be mixed"
        )
    mixed = {name: (1 - share) * x + share * second[name] for name, x in first.items()}
    both = {"mixed": [provenance, other_provenance], "share": share}
    weights.save(output, kind, fields, mixed, both)


def _without_folders(value: Any, field: str = "") -> Any:
    """`value` without the names of folders, at any depth."""
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
    outputs.add_argument("--deepen", metavar="OUTPUT", help="file to write")
    outputs.add_argument("--interpolate", metavar="OUTPUT", help="file to write")
    parser.add_argument("--other", metavar="FILE", help="weights to interpolate with")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the other (%(default)s)"
    )
    args = parser.parse_args()
    with one_line_errors():
        if args.ship:
            ship(args.file, args.ship)
        elif args.deepen:
            deepen(args.file, args.deepen)
        elif args.interpolate:
            if not args.other:
                raise UserError("--interpolate needs --other=FILE")
            interpolate(args.file, args.other, args.share, args.interpolate)
        else:
            print(json.dumps(describe(args.file), indent=2))


if __name__ == "__main__":
    main()
