"""Compares ways to restore colour JPEGs: luma alone, or luma and chroma.

    python -m benchmarks.colour --images=data/eval/live1 \\
        --weights=cqr_jax/weights/compact-blind.safetensors

Takes a network of Y. Prints a report in Markdown. It contains the PSNR over red, green
and blue of colour JPEGs, of the JPEGs with restored luma, and of the JPEGs with
restored luma and chroma. Chroma is restored at the resolution of the image, or at the
resolution of a 4:2:0 JPEG's chroma. The report also contains the change of the mean
colour.
"""

import argparse
import io
import pathlib

import numpy as np
from PIL import Image

from benchmarks import machine
from cqr_jax import tables, weights
from cqr_jax.data.jpeg import list_images
from cqr_jax.evaluation import metrics
from cqr_jax.progress import over
from cqr_jax.restoring import colour, jax_network, pictures, tiles
from cqr_jax.restoring.picture import Picture

_QUALITIES = (10, 20, 30, 40)
_SAMPLINGS = {"4:2:0": 2, "4:4:4": 0}  # Pillow's values of `subsampling`
_WAYS = ("JPEG", "luma", "chroma whole", "chroma halved")


def _restored(run, picture: Picture) -> dict[str, np.ndarray]:
    """Returns way -> pixels."""
    luma, *chroma = colour.planes(picture)
    whole = [colour.Plane(x.values) for x in chroma]
    halved = [colour.Plane(x.values, (2, 2)) for x in chroma]
    planes = [luma, *whole, *halved]
    samples = [colour.reduce(x) for x in planes]
    done = tiles.restore(run, samples, batch=4)
    values = [
        colour.change(plane, before, after)
        for plane, before, after in zip(planes, samples, done, strict=True)
    ]
    ways = {
        "luma": [values[0], *(x.values for x in chroma)],
        "chroma whole": values[:3],
        "chroma halved": [values[0], *values[3:]],
    }
    pixels = {
        name: colour.with_planes(picture, x, np.uint8).pixels
        for name, x in ways.items()
    }
    return {"JPEG": picture.pixels, **pixels}


def _psnr(clean: np.ndarray, image: np.ndarray) -> float:
    difference = clean.astype(np.float64) - image
    return metrics.psnr_of_mse(float(np.mean(np.square(difference))))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.colour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", required=True, help="a folder of clean images")
    parser.add_argument("--weights", required=True, help="weights of a network of Y")
    args = parser.parse_args()
    run = jax_network.JaxNetwork(weights.load(args.weights, "deblocker"))
    paths = list_images(args.images)
    cases = [(name, q) for name in _SAMPLINGS for q in _QUALITIES]
    found: dict[tuple, list] = {case: [] for case in cases}

    def measure(path):
        with Image.open(path) as image:
            clean = image.convert("RGB")
        for name, quality in cases:
            buffer = io.BytesIO()
            clean.save(buffer, "JPEG", quality=quality, subsampling=_SAMPLINGS[name])
            picture = pictures.decode(buffer.getvalue())
            ways = _restored(run, picture)
            moved = [
                np.abs(x.mean((0, 1)) - picture.pixels.mean((0, 1))).max()
                for x in ways.values()
            ]
            psnr = [_psnr(np.asarray(clean), x) for x in ways.values()]
            found[name, quality].append((psnr, moved))

    for _ in over(map(measure, paths), len(paths), "restoring", "image"):
        pass
    lines = [["JPEG", "QF", *_WAYS, "largest change of the mean colour"]]
    for (name, quality), measured in found.items():
        psnr, moved = (np.array(x) for x in zip(*measured, strict=True))
        lines.append(
            [
                name,
                str(quality),
                *(f"{x:.2f}" for x in psnr.mean(0)),
                f"{moved[:, 2:].max():.2f}",
            ]
        )
    print("# Ways to restore colour\n")
    print(f"`{machine.command()}`\n")
    print(f"{machine.describe()}\n")
    print(
        f"PSNR in dB over red, green and blue, averaged over {len(paths)} images, "
        f"with the weights {pathlib.Path(args.weights).name}. `luma` restores luma "
        "alone. `chroma whole` also restores chroma at the resolution of the image, "
        "and `chroma halved` at half of it. The last column is the largest change of "
        "an image's mean red, green or blue when chroma is restored, in levels of 0 to "
        "255.\n"
    )
    print(tables.markdown(lines))


if __name__ == "__main__":
    main()
