"""Removes the artifacts of JPEG compression from image files.

    cqr-restore photo.jpg                      writes photo.restored.png beside it
    cqr-restore photo.jpg -o better.png
    cqr-restore holidays/ more/*.jpg -o out/   keeps the subfolders of holidays/
    cqr-restore --quality-only holidays/       prints scores and quality factors
    cat photo.jpg | cqr-restore - -o - > better.png

Reads JPEGs, and other files that were JPEGs before: PNG, WebP, TIFF and BMP, and GIF,
AVIF, HEIC and JPEG XL, which become PNGs. Keeps alpha, EXIF, colour profile, XMP, IPTC,
comments and resolution where the output format can hold them. Reports each file that
can't be restored with the reason, goes on with the others, and exits with code 1.
"""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable

from cqr_jax.errors import UserError, one_line_errors
from cqr_jax.formats import FORMATS, format_of
from cqr_jax.restoring import targets

# Options that --quality-only takes.
_MEASURING = {"json", "report", "engine", "salvage", "max_megapixels", "suffix"}


def parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="cqr-restore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, folders (with their subfolders), globs, or - for standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="output folder; for one input also a file, or - for standard output "
        "(default: NAME.restored.png beside each input)",
    )
    add_restoring_options(parser)
    parser.add_argument(
        "--suffix",
        type=name_part,
        metavar="TEXT",
        help="added to the name of each output, before its extension (default: "
        ".restored in the input's own folder, nothing elsewhere)",
    )
    parser.add_argument(
        "--keep-extension",
        action="store_true",
        help="keep the input's extension before the output's: photo.jpg.png",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        help="bits per channel of the output, 16 in PNG and TIFF only (default: the "
        "input's)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over flips and turns: slightly better, 8 times as slow",
    )
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="restore the part that is there of truncated JPEGs and PNGs",
    )
    parser.add_argument(
        "--skip-above",
        type=between(0, 100, int),
        metavar="QF",
        help="leave JPEGs alone whose quality factor is above QF",
    )
    parser.add_argument(
        "--copy-skipped",
        action="store_true",
        help="copy files that --skip-above leaves alone to the output folder",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that exist"
    )
    parser.add_argument(
        "--preserve",
        action="store_true",
        help="give outputs the permissions, times and owner of their inputs",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="continue with new images in the input folders until Ctrl-C",
    )
    parser.add_argument(
        "--quality-only",
        action="store_true",
        help="restore nothing; print the ranker's score and the quality factor (from a "
        "JPEG's tables, else found from the pixels or estimated)",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="serve a page to try it, and print its address (needs the extra demo)",
    )
    parser.add_argument(
        "--port",
        type=between(0, 65535, int),
        default=0,
        help="port of the page (default: a free one)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of a table or summary"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write the outcome of each file as JSON"
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "jax", "openvino"),
        default="auto",
        help="what runs the network: openvino on CPUs, jax on accelerators (default: "
        "the faster one that is there)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=between(0, 1_000_000, float),
        default=200.0,
        help="refuse larger images (default: %(default)g); restoring takes 50 MB per "
        "megapixel",
    )
    return parser


def add_restoring_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command that `restoring.on_beam` has too."""
    parser.add_argument(
        "-f",
        "--format",
        type=image_format,
        metavar="{" + ",".join(FORMATS) + "}",
        help="output format, also jpg or tif (default: the input's, but PNG for "
        "JPEGs, standard input and standard output)",
    )
    parser.add_argument(
        "--quality",
        type=between(1, 100, int),
        default=95,
        help="quality of JPEG outputs, 1 to 100 (default: %(default)s)",
    )
    parser.add_argument(
        "--strength",
        type=between(0, 1, float),
        default=1.0,
        help="share of the change to make, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--quality-factor",
        type=between(1, 100, int),
        metavar="N",
        help="quality factor to tell the network instead of the file's, 1 to 100; a "
        "lower one removes more; implies --no-projection",
    )
    parser.add_argument(
        "--no-projection",
        dest="projection",
        action="store_false",
        help="do not keep the result within the quantisation intervals of a JPEG file",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="use this deblocker instead of the shipped one",
    )
    parser.add_argument(
        "--tile",
        type=tile_side,
        metavar="SIDE",
        help="longest side of a tile in pixels, a multiple of 8 from 64 on; smaller "
        "tiles need less memory (default: 320 in OpenVINO, 192 in JAX)",
    )


def between(low: float, high: float, kind: type) -> Callable[[str], float]:
    """Returns a converter for argparse: a number of a kind from low to high."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not {low} to {high}")
        return value

    return convert


def image_format(text: str) -> str:
    """Converts for argparse: a format of `FORMATS`, by its name or a suffix."""
    name = text.lower()
    found = name if name in FORMATS else format_of(f"x.{name}")
    if found is None:
        known = ", ".join(FORMATS)
        raise argparse.ArgumentTypeError(f"'{text}' is none of {known}")
    return found


def name_part(text: str) -> str:
    """Converts for argparse: text that may stand in the name of a file."""
    if not text or any(x in text for x in ("/", "\\", "\0")):
        raise argparse.ArgumentTypeError(f"'{text}' can't stand in a file's name")
    return text


def tile_side(text: str) -> int:
    """Converts for argparse: the side of a tile in pixels."""
    if not text.isdecimal() or int(text) % 8 or int(text) < 64:
        raise argparse.ArgumentTypeError(f"'{text}' is not a multiple of 8 from 64 on")
    return int(text)


def main() -> None:
    """Runs the command `cqr-restore`."""
    usage = parser()
    args = usage.parse_args()
    if mistake := _mistake(args, usage.parse_args([])):
        usage.error(mistake)
    if sys.stderr is None:  # it is closed
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    for stream in filter(
        None, (sys.stdout, sys.stderr)
    ):  # names of files may be in any encoding
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # A reader of a pipe that has closed it would otherwise cause a traceback. But a
    # browser that closes a connection must not end the page's server.
    if hasattr(signal, "SIGPIPE") and not args.demo:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with one_line_errors():
        if args.output == "-" and (len(args.inputs) > 1 or args.json):
            raise UserError(
                "-o - writes one image to standard output; name one input, no --json"
            )
        _set_up_jax()
        failed = _run(args)
    sys.exit(1 if failed else 0)


def _mistake(args: argparse.Namespace, defaults: argparse.Namespace) -> str:
    """Returns what is wrong with a combination of options, or '' if nothing is."""
    given = {name for name, x in vars(args).items() if x != getattr(defaults, name)}
    to_folder = args.output is None or targets.names_folder(args.output)
    named = args.output is not None and not to_folder
    copies = args.skip_above is not None and args.output and to_folder
    folders = all(map(os.path.isdir, args.inputs))
    renamed = args.suffix is not None or args.keep_extension
    rules = [
        (
            not args.inputs and not args.demo,
            "name files or folders to restore, or use --demo",
        ),
        (
            args.demo and args.inputs,
            "--demo takes no files: drop them on its page",
        ),
        (
            args.demo and given - {"demo", "weights", "port"},
            "--demo takes no other options than --weights and --port",
        ),
        (args.port and not args.demo, "--port needs --demo"),
        (args.output == "", "-o: is empty; name a file, a folder or -"),
        (
            args.quality_only and given - {"quality_only", "inputs"} - _MEASURING,
            "--quality-only restores nothing, so it takes no other options than "
            "--json, --report, --engine, --salvage, --max-megapixels and --suffix",
        ),
        (
            named and renamed,
            "--suffix and --keep-extension name files in a folder, but -o names a "
            "single file",
        ),
        (args.watch and not folders, "--watch takes folders only"),
        (
            args.watch and named,
            "--watch restores into folders: -o names one, or is left out",
        ),
        (
            args.copy_skipped and ("-" in args.inputs or not copies),
            "--copy-skipped needs --skip-above, -o FOLDER and named files",
        ),
        (
            args.output == "-" and args.skip_above is not None,
            "--skip-above could write nothing to -o -; name a file",
        ),
    ]
    return next((words for broken, words in rules if broken), "")


def _run(args: argparse.Namespace) -> int:
    """Runs what the flags ask for; returns how many files failed."""
    if args.demo:
        from cqr_jax.restoring import demo

        demo.serve(args.weights, args.port)
        return 0
    from PIL import Image

    from cqr_jax.restoring import file_loop

    Image.MAX_IMAGE_PIXELS = None  # --max-megapixels is the limit
    # Warnings of libraries name no file. Those that matter become notes of a picture.
    for library in ("PIL", "tifffile", "imagecodecs", "pillow_heif", "pillow_jxl"):
        warnings.filterwarnings("ignore", module=rf"{library}\b")
        logging.getLogger(library).addHandler(logging.NullHandler())
    return file_loop.measure(args) if args.quality_only else file_loop.restore(args)


def _set_up_jax() -> None:
    """Makes JAX use each CPU core as a device, and cache compiled code.

    JAX reads these variables when it is imported. Often it is not.
    """
    from cqr_jax.restoring import network

    for name, value in {
        # XLA of jaxlib 0.10.1 logs an error for each program that it loads from the
        # cache, even on the machine that compiled it.
        "TF_CPP_MIN_LOG_LEVEL": 3,
        "JAX_NUM_CPU_DEVICES": network.cores(),
        "JAX_COMPILATION_CACHE_DIR": network.cache_folder(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
    }.items():
        os.environ.setdefault(name, str(value))


if __name__ == "__main__":
    main()
