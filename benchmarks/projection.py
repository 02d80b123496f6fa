"""Measures the gain from projection, and the loss on files that were compressed twice.

    python -m benchmarks.projection PHOTOGRAPHS --weights=A.safetensors --limits=FILE

Uses the photographs of the folder that are held out from colour training. Each is
compressed once. It is also compressed twice, first at a lower quality, on the same grid
or with a crop in between. Each file is restored without projection and with it.

The share of luma coefficients that the network moves by more than 0.75 steps from the
stored ones distinguishes the two kinds of files. A file is projected if its share is at
most a limit. The limit of each quality is the one with the highest mean PSNR over both
kinds. --limits writes the limits to a file.
"""

import argparse
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.photographs import held_out_colour
from cqr_jax import files, progress, tables, weights
from cqr_jax.data import degradations
from cqr_jax.data.compression import libjpeg
from cqr_jax.errors import UserError, one_line_errors
from cqr_jax.evaluation import colour as evaluate_colour
from cqr_jax.restoring import colour, pictures, projection, restorer

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 100)
_HEAD = [
    *("QF", "limit", "once", "projected", "decided"),
    *("twice", "projected", "decided", "once, not projected", "twice, projected"),
]
_LEGEND = """\
{count} held-out photographs with 4:2:0 chroma, restored with {weights}. The table gives
the gain over the file's PSNR (RGB, dB) of files that were compressed once and of files
that were compressed twice. The three columns of each are: without projection, with
projection, and as a limit decides. A file is projected if the share of its luma
coefficients that the network moves by more than 0.75 steps is at most the limit. The
last two columns are the errors of this decision. The decision about the files of a
photograph is made with the limit of the other photographs.
"""
_FIRST = (10, 20, 30, 50, 75, 90)  # qualities of the first of two compressions
_SIDE = 256  # side of a tile, which covers the whole photograph
_HARM = 0.05  # dB; a larger loss against the JPEG is not acceptable
_CROP = (3, 5)  # rows and columns cropped away between two compressions


class Case(NamedTuple):
    """A restored file.

    Attributes:
      photograph: index of the photograph.
      quality: quality factor of the last compression.
      before: quality factor of the first of two compressions; 0 if there was only one.
      share: share of luma coefficients outside their intervals, without projection.
      psnr: PSNR over RGB in dB of the file, of the file restored without projection,
        and of the file restored with projection.
    """

    photograph: int
    quality: int
    before: int
    share: float
    psnr: tuple[float, float, float]


def cases(run, photographs: list[np.ndarray]) -> Iterator[Case]:
    """Yields files compressed once, twice, and twice with a crop in between."""
    for i, clean in enumerate(photographs):
        for quality in QUALITIES:
            yield case(run, i, clean, clean, quality, 0)
            for before in _FIRST:
                if before < quality:
                    once = degradations.compress(clean, libjpeg(before))
                    yield case(run, i, clean, once, quality, before)
                    top, left = _CROP
                    cut, original = once[top:, left:], clean[top:, left:]
                    yield case(run, i, original, cut, quality, before)


def case(
    run,
    photograph: int,
    clean: np.ndarray,
    image: np.ndarray,
    quality: int,
    before: int,
) -> Case:
    """Returns the measurements of one file: `image` compressed at `quality`."""
    data = degradations.encode(image, libjpeg(quality))
    picture = pictures.decode(data, stored=True)
    assert picture.stored is not None
    # Projection comes before rounding to 8 bits.
    (restored,) = restorer.restore_pictures(
        run, [picture], side=_SIDE, dtype=np.uint16, projecting=False
    )
    values = [plane.values for plane in colour.planes(restored)]
    share = projection.share_outside(values[0], picture.stored[0])
    plain = colour.with_planes(restored, values, np.uint8)
    projected = map(projection.project, values, picture.stored)
    within = colour.with_planes(restored, list(projected), np.uint8)
    psnr = [evaluate_colour.psnr(clean, x.pixels) for x in (picture, plain, within)]
    return Case(photograph, quality, before, share, (psnr[0], psnr[1], psnr[2]))


def best_limit(found: list[Case]) -> float:
    """Returns the limit of the share with the highest mean PSNR of these files.

    The files that were compressed once have the same total weight as those that were
    compressed twice. The limit is at least so high that every file that was compressed
    once is projected if it would lose more than `_HARM` without projection.
    """
    shares = np.array([x.share for x in found])
    twice = np.array([x.before > 0 for x in found])
    gained = np.array([x.psnr[2] - x.psnr[1] for x in found])
    gained /= np.where(twice, max(1, twice.sum()), (~twice).sum())
    order = np.argsort(shares)
    gains = np.concatenate([[0], np.cumsum(gained[order])])
    harmed = np.array([x.psnr[1] - x.psnr[0] < -_HARM for x in found])
    must = np.flatnonzero((harmed & ~twice & (gained > 0))[order])
    least = int(must[-1]) + 1 if len(must) else 0
    count = least + int(np.argmax(gains[least:]))  # number of projected files
    ends = np.concatenate([[0], shares[order], [1]])
    return float((ends[count] + ends[count + 1]) / 2)


def row(quality: int, found: list[Case]) -> list[str]:
    """Returns a row of the table."""
    limits = {
        i: best_limit([x for x in found if x.photograph != i])
        for i in {x.photograph for x in found}
    }
    once = [x for x in found if not x.before]
    twice = [x for x in found if x.before]

    def mean(kind, i):
        return np.mean([x.psnr[i] - x.psnr[0] for x in kind]) if kind else np.nan

    def projects(x):
        return x.share <= limits[x.photograph]

    def decided(kind):
        gains = [x.psnr[1 + projects(x)] - x.psnr[0] for x in kind]
        return np.mean(gains) if kind else np.nan

    missed = 1 - np.mean([projects(x) for x in once])
    taken = np.mean([projects(x) for x in twice]) if twice else np.nan
    gains = [mean(once, 1), mean(once, 2), decided(once)]
    gains += [mean(twice, 1), mean(twice, 2), decided(twice)]
    shown = [f"{x:+.2f}" if np.isfinite(x) else "" for x in gains]
    errors = [f"{x:.1%}" if np.isfinite(x) else "" for x in (missed, taken)]
    return [str(quality), f"{best_limit(found):.4f}", *shown, *errors]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.projection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photographs", help="folder of colour photographs")
    parser.add_argument("--weights", default=str(weights.DEBLOCKER))
    parser.add_argument("--limits", help="a .tsv file to write the limits to")
    parser.add_argument(
        "--count", type=int, default=0, help="number of photographs (all)"
    )
    args = parser.parse_args()
    with one_line_errors():
        _report(args)


def _report(args: argparse.Namespace) -> None:
    if args.limits and (why := files.obstacle(pathlib.Path(args.limits).parent)):
        raise UserError(f"--limits={args.limits}: can't be written: {why}")
    photographs = held_out_colour(args.photographs, args.count, least=2)
    run = restorer.load(args.weights)
    each = 1 + 2 * len(_FIRST)
    count = len(photographs) * sum(
        each - 2 * sum(x >= quality for x in _FIRST) for quality in QUALITIES
    )
    found = list(progress.over(cases(run, photographs), count, "files", "file"))
    lines = [_HEAD]
    by_quality = {q: [x for x in found if x.quality == q] for q in QUALITIES}
    lines += [row(quality, members) for quality, members in by_quality.items()]
    print("# Projection of files compressed once and twice\n")
    print(f"    {machine.command(PHOTOGRAPHS=args.photographs)}\n")
    print(
        _LEGEND.format(count=len(photographs), weights=pathlib.Path(args.weights).name)
    )
    print(f"{machine.describe()}.\n\n{tables.markdown(lines)}")
    if args.limits:
        limits = [f"{q}\t{best_limit(x):.5f}" for q, x in by_quality.items()]
        text = "\n".join(["quality\tlimit", *limits]) + "\n"
        files.write(pathlib.Path(args.limits), text)


if __name__ == "__main__":
    main()
