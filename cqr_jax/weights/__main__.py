r"""Describes a weights file, or converts it to another.

    python -m cqr_jax.weights runs/a/deblocker.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --ship=a.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --luma=luma.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors --deepen=deeper.safetensors
    python -m cqr_jax.weights runs/a/deblocker.safetensors \
        --interpolate=mixed.safetensors --other=runs/b/deblocker.safetensors \
        --share=0.75

The first command prints the model, the number of parameters and the provenance as JSON.

--ship rounds the parameters to half precision, which halves the size of the file. It
removes the folders of the training machine from the provenance, and lists the trainings
before the last one, oldest first.

--luma converts a colour deblocker to one for Y alone, without conditioning. It computes
what the colour network computes for Y on gray images of unknown compression.

--deepen adds a local block to a deblocker. The block changes nothing until it is
trained.

--interpolate computes weights between those of two files, here at three quarters of the
way from a to b. The training of b must have started from a. The result keeps most of
what b learned and loses less of what a had. Measure it before you use it.
"""

import argparse
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import FEATURES
from cqr_jax.errors import UserError, one_line_errors
from cqr_jax.export.program import deblocker_of
from cqr_jax.models.layers import Rectifier
from cqr_jax.weights.provenance import flat

_FOLDERS = ("workdir", "data_dir", "set_dir")
# Comma-separated paths, of which only the last components are kept.
_PATHS = ("initial_weights", "ranker_weights", "sets")


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
    weights.save(output, kind, fields, halved, _without_folders(flat(provenance)))


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


def deepen(path: str, output: str) -> None:
    """Adds a local block to the deblocker of `path` without changing its function.

    The block is initialised from seed 0, and its mask with zeros. It then multiplies
    its input by 1.5, because residual branches end with zeros and the mask is 0.5
    everywhere. The kernel of the convolution after it is divided by 1.5 to compensate
    (Chen et al. 2016, Net2Net).

    Raises:
      UserError: if `path` doesn't hold a deblocker, or the deblocker has
        `residual_blocks` or no masks.
    """
    held = weights.load(path, "deblocker")
    model = deblocker_of(held)
    if model.residual_blocks or not model.masks:
        raise UserError(
            f"{path}: only deblockers with masks and without residual blocks can be "
            "deepened"
        )
    last = model.local_blocks
    fields = {**held.fields, "local_blocks": last + 1}
    deeper = model.clone(local_blocks=last + 1)
    fresh = deeper.init(jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32))
    block = flax.traverse_util.flatten_dict(fresh["params"][f"local{last}"])
    block["mask", "mask", "kernel"] *= 0
    params = dict(held.variables["params"])
    params[f"local{last}"] = flax.traverse_util.unflatten_dict(block)
    params["body"] = {**params["body"], "kernel": params["body"]["kernel"] / 1.5}
    provenance = {"deepened": held.provenance}
    weights.save(output, "deblocker", fields, {"params": params}, provenance)


def interpolate(path: str, other: str, share: float, output: str) -> None:
    """Interpolates between the weights of `path` and of `other`.

    Writes (1 - share) * first + share * second. The training of the second must have
    started from the first: the loss is then also low between them (Wortsman et al.
    2022, Robust fine-tuning of zero-shot models). The new file holds the provenance of
    both and the share.

    Raises:
      UserError: if the weights are of different models, or the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"--share={share}: must be in [0, 1]")
    kind, fields, provenance, first = weights.read(path)
    other_kind, other_fields, other_provenance, second = weights.read(other)
    ours = (kind, weights.all_fields(fields, kind))
    if ours != (other_kind, weights.all_fields(other_fields, other_kind)):
        raise UserError(
            f"{path} and {other} hold different models; only weights of the same model "
            "can be interpolated"
        )
    mixed = {name: (1 - share) * x + share * second[name] for name, x in first.items()}
    both = {"mixed": [provenance, other_provenance], "share": share}
    weights.save(output, kind, fields, mixed, both)


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
    outputs.add_argument("--deepen", metavar="OUTPUT", help="file to write")
    outputs.add_argument("--interpolate", metavar="OUTPUT", help="file to write")
    parser.add_argument("--other", metavar="FILE", help="weights to interpolate with")
    parser.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="share of the other weights, 0 to 1 (%(default)s)",
    )
    args = parser.parse_args()
    with one_line_errors():
        if args.ship:
            ship(args.file, args.ship)
        elif args.luma:
            luma(args.file, args.luma)
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
