"""Prepares clean images as TFRecords of sub-images with their JPEGs at QF 1 to 30.

    python -m data_prep.build --source=FOLDER --data_dir=data
    python -m data_prep.build --source=div2k
    python -m data_prep.build --source=embedded

The records are written to DATA_DIR/qf_ladder/NAME. With --kind=colour they hold RGB
without JPEGs, for configs/deblock.py:colour, and are written to DATA_DIR/colour/NAME.
Images that can't be used are skipped and listed with the reasons. The records are made
on this machine. With --beam_pipeline_options=runner=RUNNER,..., Apache Beam makes them
on many machines (docs/scaling.md).
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
from typing import Any

from cqr_jax import files
from cqr_jax.data import kinds, tensorflow_setup
from cqr_jax.errors import UserError, extra, one_line_errors

with extra("train"):
    from absl import logging

    from data_prep import sources

SIDE = 256
MIN_SIDE = 128


def build(
    source: str,
    data_dir: str,
    name: str = "",
    *,
    kind: str = kinds.LADDER,
    validation_fraction: float = sources.VALIDATION_FRACTION,
    side: int = SIDE,
    min_side: int = MIN_SIDE,
    processes: int = 0,
    overwrite: bool = False,
    beam_pipeline_options: str = "",
) -> str:
    """Makes the records of `source` unless they exist; returns their name.

    If another process on this machine is making them, this waits for it.

    Args:
      source: 'div2k', 'embedded', or a folder of images.
      data_dir: root of the records.
      name: name of the data set; by default that of the source or the folder.
      kind: kind of the records, one of `kinds.KINDS`.
      validation_fraction: fraction of a folder's images to hold out for validation.
      side: longest side of a sub-image in pixels, a multiple of 8.
      min_side: shortest side in pixels, a multiple of 8 and at most half of `side`.
        Smaller images are skipped.
      processes: number of worker processes; 0 for one per core.
      overwrite: whether to replace existing records.
      beam_pipeline_options: comma-separated options NAME=VALUE of Apache Beam
        (docs/scaling.md). If empty, the records are made on this machine without Beam.

    Raises:
      UserError: if the source, the name, a number or Beam can't be used, if a split has
        no usable image, or if incomplete records or records of another source have the
        same name.
    """
    _check_numbers(side, min_side, validation_fraction, processes)
    found = sources.find(source, name, validation_fraction)

    from cqr_jax.data import records
    from data_prep.qf_ladder import BUILDERS

    directory = records.directory(data_dir, found.name, kind)

    def complete() -> bool:
        return records.exists(data_dir, found.name, kind) and not overwrite

    def make() -> None:
        if directory.exists() and not overwrite:
            raise UserError(
                f"{directory}: holds incomplete records; remove it, or pass --overwrite"
            )
        beam_options, even_shards = _beam(beam_pipeline_options)
        found.fetch()
        for leftover in directory.parent.glob("incomplete.*"):
            leftover.rmtree()
        on_beam = beam_options is not None
        new = (found, data_dir, side, min_side, processes, on_beam)
        with even_shards(), _quiet_absl():
            _write(BUILDERS[kind](*new), directory, beam_options)
        if unread := found.unread():
            print(
                f"skipped {len(unread)} images in formats that are not read here, such "
                f"as {unread[0]}; convert them to PNG",
                file=sys.stderr,
            )

    if not complete():
        with _lock(directory.parent):
            # A bucket has no lock, and another build may be replacing the records.
            if overwrite or "://" not in os.fspath(directory):
                with files.writing_to(directory):
                    _restore(directory, records.exists(data_dir, found.name, kind))
            if not complete():  # another process may have made them meanwhile
                make()
                return found.name

    metadata = records.open_builder(data_dir, found.name, kind).info.metadata
    wanted = {
        "origin": found.origin,
        "counts": found.counts,
        "side": side,
        "min_side": min_side,
    }
    for key, value in wanted.items():
        if metadata.get(key, value) != value:
            raise UserError(
                f"{directory}: holds records with {key} {metadata[key]}, not {value}; "
                "choose another --name, or pass --overwrite"
            )
    print(f"{directory}: already exists")
    return found.name


def _check_numbers(
    side: int, min_side: int, validation_fraction: float, processes: int
) -> None:
    """Raises a UserError for an argument of `build` that is out of its range."""
    if side % 8 or min_side % 8 or not 8 <= min_side <= side // 2:
        raise UserError(
            f"side={side} and min_side={min_side}: both must be multiples of 8, and "
            "min_side at most half of side"
        )
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation_fraction={validation_fraction}: not in (0, 1)")
    if processes < 0:
        raise UserError(f"processes={processes}: is negative")


def _lock(folder) -> contextlib.AbstractContextManager:
    """Locks a folder of records until the context is closed, unless it is a bucket."""
    if "://" in os.fspath(folder):
        return contextlib.nullcontext()
    return files.lock(
        pathlib.Path(folder) / ".lock",
        lambda: print(
            f"{folder}: waiting for the process that makes these records",
            file=sys.stderr,
        ),
    )


def _write(builder, directory, beam_options) -> None:
    """Writes the records of a builder to their folder, and prints a summary."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # the builder shows its own, with an ETA
    with (
        tempfile.TemporaryDirectory() as downloads,  # required by TFDS, stays empty
        contextlib.redirect_stdout(None),  # hides TFDS's messages on 'downloading'
    ):
        try:
            with files.writing_to(directory), _replacing(directory):
                builder.download_and_prepare(
                    download_dir=downloads,
                    download_config=tfds.download.DownloadConfig(
                        beam_options=beam_options, try_download_gcs=False
                    ),
                )
        finally:
            for image, reason in sorted(builder.skipped.items()):
                print(f"skipped {image}: {reason}", file=sys.stderr)
    for split, info in builder.info.splits.items():
        print(f"{split}: {builder.used[split]} images, {info.num_examples} sub-images")
    size = builder.info.dataset_size / 2**20
    print(f"{directory}: {size:.0f} MiB, {len(builder.skipped)} images skipped")


def _aside(directory: Any) -> Any:
    return directory.with_name(f"{directory.name}.replaced")


def _restore(directory, complete: bool) -> None:
    """Moves records back that a build with --overwrite moved aside before it died.

    Args:
      directory: folder of the records.
      complete: whether it holds the complete new records. Then the old ones are
        removed.
    """
    aside = _aside(directory)
    if not aside.exists():
        return
    if complete:
        aside.rmtree()
        return
    if directory.exists():
        directory.rmtree()
    aside.rename(directory)


@contextlib.contextmanager
def _replacing(directory):
    """Moves a folder aside while its replacement is made; restores it on failure."""
    aside = _aside(directory)
    if directory.exists():
        directory.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists() and not directory.exists():
            aside.rename(directory)
        raise
    if aside.exists():
        aside.rmtree()


def _beam(flags: str):
    """Returns Beam's options and the context in which TFDS runs on Beam.

    Without flags, the options are None and the context does nothing.

    Raises:
      UserError: if Beam is not installed, or there is no such runner.
    """
    if not flags:
        return None, contextlib.nullcontext
    try:
        from data_prep import on_beam
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error}: --beam_pipeline_options needs the extra 'beam'; install it in a "
            "separate environment: pip install -e '.[beam]'"
        ) from None
    return on_beam.options(flags), on_beam.even_shards


@contextlib.contextmanager
def _quiet_absl():
    """Silences TFDS's warning that a config is not among the listed ones."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", required=True, help="div2k, embedded, or a folder of images"
    )
    parser.add_argument("--data_dir", default="data", help="root of the records")
    parser.add_argument(
        "--name", default="", help="name of the records (default: the folder's)"
    )
    parser.add_argument(
        "--kind",
        choices=kinds.KINDS,
        default=kinds.LADDER,
        help="kind of the records: qf_ladder (Y with its JPEGs, as in the paper) or "
        "colour (RGB, whose JPEGs are made during training) (%(default)s)",
    )
    parser.add_argument(
        "--validation_fraction",
        type=float,
        default=sources.VALIDATION_FRACTION,
        help="fraction of a folder's images to hold out (%(default)s)",
    )
    parser.add_argument(
        "--side",
        type=int,
        default=SIDE,
        help="longest side of a sub-image in pixels (%(default)s)",
    )
    parser.add_argument(
        "--min_side",
        type=int,
        default=MIN_SIDE,
        help="skip images with a shorter side (%(default)s)",
    )
    parser.add_argument(
        "--processes", type=int, default=0, help="worker processes (one per core)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing records"
    )
    parser.add_argument(
        "--beam_pipeline_options",
        default="",
        help="use Apache Beam, with these options: runner=DirectRunner,...",
    )
    tensorflow_setup.quiet()
    with one_line_errors():
        build(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
