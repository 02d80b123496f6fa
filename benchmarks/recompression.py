"""Measures how often the compression is found from pixels, and what that gains.

    python -m benchmarks.recompression PHOTOGRAPHS

Uses the photographs of the folder that are held out from colour training. Each is
compressed, decoded, and restored as a picture without tables: once without what
`cqr_jax.restoring.recompression` finds, and once with it.
"""

import argparse
import itertools

import numpy as np

from benchmarks import machine
from benchmarks.photographs import held_out_colour
from cqr_jax import progress, tables, weights
from cqr_jax.data import degradations
from cqr_jax.data.compression import SUBSAMPLINGS, features, libjpeg
from cqr_jax.errors import one_line_errors
from cqr_jax.evaluation import colour as evaluate_colour
from cqr_jax.restoring import colour, recompression, restorer
from cqr_jax.restoring.picture import Picture

QUALITIES = (5, 10, 20, 30, 50, 70, 80, 90, 95)
_SHIFT = (3, 5)  # rows and columns cropped away, so that the grid begins elsewhere
_LEGEND = """\
{count} held-out photographs, restored with {weights}. The table gives the share of
pictures whose quality factor and chroma sampling were found exactly, the share of wrong
results, and the mean gain in PSNR (RGB, dB) without and with what was found.
"""


def row(run, photographs: list[np.ndarray], quality: int, name: str) -> list[str]:
    """Returns a row of the table: photographs compressed at a quality factor."""
    given = libjpeg(quality, SUBSAMPLINGS[name])
    exact = wrong = 0
    gains = []
    for clean in photographs:
        picture = Picture(degradations.compress(clean, given))
        found = recompression.find(picture)
        exact += found == given
        wrong += found not in (given, None)
        before = evaluate_colour.psnr(clean, picture.pixels)
        planes = colour.samples(picture)[None]
        gain = []
        for known in (None, found):
            restored = run(planes, features(known)[None])[0]
            values = list(np.moveaxis(restored, -1, 0))
            pixels = colour.with_planes(picture, values, np.uint8).pixels
            gain.append(evaluate_colour.psnr(clean, pixels) - before)
        gains.append(gain)
    shares = [f"{x / len(photographs):.0%}" for x in (exact, wrong)]
    return [name, str(quality), *shares, *(f"{x:+.2f}" for x in np.mean(gains, 0))]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recompression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photographs", help="folder of colour photographs")
    parser.add_argument(
        "--count", type=int, default=0, help="number of photographs (all)"
    )
    args = parser.parse_args()
    with one_line_errors():
        photographs = held_out_colour(args.photographs, args.count)
    run = restorer.load()
    cases = list(itertools.product(SUBSAMPLINGS, QUALITIES))
    rows = progress.over(
        (row(run, photographs, quality, name) for name, quality in cases),
        len(cases),
        "recompression",
        "row",
    )
    head = ["chroma", "QF", "exact", "wrong", "unknown", "found"]
    lines = [head, *rows]
    top, left = _SHIFT
    shifted = [degradations.compress(x, libjpeg(20))[top:, left:] for x in photographs]
    others = [recompression.find(Picture(x)) for x in photographs + shifted]
    false = sum(x is not None for x in others)
    print("# The compression of pictures without tables\n")
    print(f"    {machine.command(PHOTOGRAPHS=args.photographs)}\n")
    print(_LEGEND.format(count=len(photographs), weights=weights.DEBLOCKER.name))
    print(f"{machine.describe()}.\n\n{tables.markdown(lines)}\n")
    print(
        f"Of the {len(photographs)} originals, and of as many JPEGs at QF 20 whose "
        f"grid begins elsewhere, {false} were taken for JPEGs on the grid."
    )


if __name__ == "__main__":
    main()
