"""Writes the deblocker as a program for other runtimes: ONNX or StableHLO.

    python -m cqr_jax.export deblocker.onnx
    python -m cqr_jax.export deblocker.stablehlo

The file holds the network and its weights, and maps compressed images to restored ones.
The number of images, the height and the width are arbitrary.

|            | ONNX                         | StableHLO                      |
|------------|------------------------------|--------------------------------|
| `image`    | (batch, 3, height, width)    | (batch, height, width, 3)      |
| `quality`  | (1,) or (batch,), optional   | (batch,)                       |
| `restored` | of the image's shape         | of the image's shape           |

All are float32. `image` is RGB in [0, 1]. `restored` is RGB near [0, 1], not clipped.
`quality` is libjpeg's quality factor, 1 to 100, or 0 if it is unknown. The program
rounds it, clips it to 0 to 100, and assumes 4:2:0 chroma subsampling. In ONNX,
`quality` defaults to 0. StableHLO has no optional inputs: pass zeros.

A network for Y (`channels` of 1) takes and returns images of 1 channel instead of 3. A
network without conditioning (`conditioning` of 'none') has no input `quality`.

onnxruntime and other runtimes read ONNX. The metadata of the file describe the inputs
and the output. `--side` fixes the height and the width, for runtimes that need this.

    session = onnxruntime.InferenceSession("deblocker.onnx")
    (restored,) = session.run(None, {"image": image, "quality": quality})

onnxruntime warns that `quality` "will not be treated as constant value". Ignore this:
ONNX marks optional inputs in this way.

jax.export reads StableHLO, for CPU, CUDA and TPU. The file has no metadata; this text
describes it.

    with open("deblocker.stablehlo", "rb") as file:
        exported = jax.export.deserialize(bytearray(file.read()))
    restored = jax.jit(exported.call)(image, quality)

The memory grows with the image. A network with mask branches also holds all its
attention scores at once. Divide large images into tiles.
"""

import argparse
import os
import pathlib

from cqr_jax import files, weights
from cqr_jax.errors import UserError, one_line_errors
from cqr_jax.export import onnx, stablehlo


def write(
    path: str | os.PathLike, deblocker: weights.Weights, side: int | None = None
) -> None:
    """Writes ONNX or StableHLO, depending on the suffix of the path.

    Args:
      path: path of the file.
      deblocker: network to export.
      side: height and width of images in ONNX, a multiple of 8 and at least 16; None
        for any. Must be None for StableHLO, which takes images of any size.

    Raises:
      UserError: if the path has another suffix, or if `side` is not a multiple of 8, is
        below 16, or is given for StableHLO.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in (".onnx", ".stablehlo"):
        raise UserError(f"{path}: must end in .onnx or .stablehlo")
    if side is not None and suffix != ".onnx":
        raise UserError(f"--side={side}: is only for .onnx; leave it out")
    if side is not None and (side % 8 or side < 16):
        raise UserError(f"--side={side}: must be a multiple of 8, at least 16")
    is_stablehlo = suffix == ".stablehlo"
    data = (
        stablehlo.to_stablehlo(deblocker)
        if is_stablehlo
        else onnx.to_onnx(deblocker, side)
    )
    files.write(pathlib.Path(path), data)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUTPUT", help=".onnx or .stablehlo")
    parser.add_argument(
        "--weights", default=weights.DEBLOCKER, help="weights of a deblocker"
    )
    parser.add_argument(
        "--side",
        type=int,
        help="height and width of the images, only in ONNX (default: any)",
    )
    args = parser.parse_args()
    with one_line_errors():
        write(args.output, weights.load(args.weights, "deblocker"), args.side)


if __name__ == "__main__":
    main()
