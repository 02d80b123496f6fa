"""Removes the artifacts of JPEG compression from image files.

    cqr-restore photo.jpg                      writes photo.restored.png beside it
    cqr-restore photo.jpg -o better.png
    cqr-restore holidays/ more/*.jpg -o out/   with the folders within holidays/
    cqr-restore --quality-only holidays/       how good are they?
    cat photo.jpg | cqr-restore - -o - > better.png

JPEGs, and what was a JPEG once: PNG, WebP, TIFF, BMP; GIF, AVIF, HEIC and JPEG XL
become PNGs. Gray, RGB, CMYK, palettes; alpha, EXIF, colour profile, XMP, IPTC, comments
and resolution are kept where the format has them. Files that can't be restored
are named with the reason, the others go on, and the exit code is 1.
"""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable

from cqr_jax.errors import UserError, one_line_errors
from cqr_jax.formats import FORMATS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="cqr-restore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, folders (with all within), globs, or - for standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a folder; for one file also a file's name, or - for standard output "
        "(default: NAME.restored.png beside each file)",
    )
    parser.add_argument(
        "-f",
        "--format",
        choices=list(FORMATS),
        help="of the output (default: the input's, but PNG for JPEGs and standard "
        "input)",
    )
    parser.add_argument(
        "--quality",
        type=between(1, 100, int),
        default=95,
        help="of JPEGs that are written, 1 to 100 (%(default)s)",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        help="a channel of the output, 16 in PNG and TIFF (default: the input's)",
    )
    parser.add_argument(
        "--strength",
        type=between(0, 1, float),
        default=1.0,
        help="how much of the change to make, 0 to 1 (%(default)s)",
    )
    parser.add_argument(
        "--quality-factor",
        type=between(1, 100, int),
        metavar="N",
        help="what the network is told in place of the file's tables, 1 to 100; a "
        "lower one removes more; nothing is projected then",
    )
    parser.add_argument(
        "--no-projection",
        dest="projection",
        action="store_false",
        help="don't keep the result within the quantisation intervals that a JPEG "
        "file stores",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="take the mean over flips and turns: a little better, 8 times as slow",
    )
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="restore what is there of JPEGs and PNGs that are cut",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that are there"
    )
    parser.add_argument(
        "--quality-only",
        action="store_true",
        help="restore nothing; print the ranker's score and the quality factor, from "
        "a JPEG's tables or else estimated",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="show a page on this machine to try it on (needs the extra demo)",
    )
    parser.add_argument(
        "--port",
        type=between(0, 65535, int),
        default=0,
        help="of the page (default: one that is free)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON in place of a table or summary"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write what became of each file, JSON"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="another deblocker than the one shipped"
    )
    parser.add_argument(
        "--tile",
        type=tile_side,
        metavar="SIDE",
        help="side of a tile in pixels, a multiple of 8 from 64 on (default: 192)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=between(0, 1_000_000, float),
        default=200.0,
        help="larger images are refused (%(default)g); one takes 50 MB a megapixel",
    )
    return parser


def between(low: float, high: float, kind: type) -> Callable[[str], float]:
    """For argparse: a number of a kind from low to high."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not {low} to {high}")
        return value

    return convert


def tile_side(text: str) -> int:
    """For argparse: the side of a tile in pixels."""
    if not text.isdecimal() or int(text) % 8 or int(text) < 64:
        raise argparse.ArgumentTypeError(f"'{text}' is not a multiple of 8 from 64 on")
    return int(text)


def main() -> None:
    """The command `cqr-restore`."""
    args = parser().parse_args()
    if not args.inputs and not args.demo:
        parser().error("name files or folders to restore, or --demo")
    if args.inputs and args.demo:
        parser().error("--demo takes no files: they are dropped on its page")
    if args.quality_only and args.output:
        parser().error("--quality-only writes no image: -o has no meaning")
    for stream in filter(
        None, (sys.stdout, sys.stderr)
    ):  # names of files may be in any encoding
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # What a reader of a pipe that has gone would otherwise cause is a traceback.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with one_line_errors():
        if args.output == "-" and (len(args.inputs) > 1 or args.json):
            raise UserError(
                "-o - writes one image to standard output; name one input, no --json"
            )
        _use_all_cores()
        failed = _run(args)
    sys.exit(1 if failed else 0)


def _run(args: argparse.Namespace) -> int:
    """Does what the flags say; returns how many files failed."""
    if args.demo:
        from cqr_jax.restoring import demo

        demo.serve(args.weights, args.port)
        return 0
    from PIL import Image

    from cqr_jax.restoring import batch  # JAX, after the flags

    Image.MAX_IMAGE_PIXELS = None  # --max-megapixels is the limit
    # Their warnings name no file; what matters of them becomes a note of a picture.
    for library in ("PIL", "tifffile", "imagecodecs", "pillow_heif", "pillow_jxl"):
        warnings.filterwarnings("ignore", module=rf"{library}\b")
        logging.getLogger(library).addHandler(logging.NullHandler())
    return batch.measure(args) if args.quality_only else batch.restore(args)


def _use_all_cores() -> None:
    """A device for each core, if JAX has but the CPU; and compiled code kept."""
    # XLA 0.10.1 logs an error for each program that it takes from the cache, although
    # the machine is the one that compiled it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for name, value in (
        ("jax_num_cpu_devices", cores),
        ("jax_compilation_cache_dir", f"{cache}/cqr_jax"),
        ("jax_persistent_cache_min_compile_time_secs", 0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, value)


if __name__ == "__main__":
    main()
