r"""Restores millions of image files on Apache Beam.

    python -m cqr_jax.restoring.on_beam --input='gs://BUCKET/photos/**' \
        --output=gs://BUCKET/restored --runner=DataflowRunner ...

It reads and writes through Beam's file systems. The folder of --input before the first
wildcard is replaced by --output; the rest of each path is kept. Existing outputs are
skipped, so that running the command again finishes a pipeline that was stopped. Files
that can't be restored are listed with the reasons in OUTPUT/failures-*.jsonl. Other
flags are passed to Beam.

This needs the extra `beam`, on the workers too.
"""

import argparse
import contextlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from cqr_jax import formats
from cqr_jax.data.jpeg import ImageError
from cqr_jax.errors import UserError, extra, one_line_errors
from cqr_jax.restoring import (
    network,
    pictures,
    restorer,
    sources,
    targets,
)
from cqr_jax.restoring.command import add_restoring_options
from cqr_jax.restoring.picture import Picture

with extra("beam"):
    import apache_beam as beam
    from apache_beam.io import fileio
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils import shared

_FAILED = "failed"
_BATCH = 16  # maximum number of pictures that share batches of tiles


def target(path: str, root: str, output: str, form: str | None) -> str:
    """Returns the output path of the restored file.

    Args:
      path: path of the input file, which begins with `root`.
      root: prefix that is replaced by `output`.
      output: output folder.
      form: name of a format in `formats.FORMATS`. If None, the output has the format of
        the input, but PNG for JPEGs and for formats that can't be written.
    """
    within = path.removeprefix(root).lstrip("/")
    form = targets.output_format(within, form)
    stem = within.removesuffix(re.search(r"(\.\w+)?$", within)[0])  # type: ignore
    return f"{output.rstrip('/')}/{stem}{formats.FORMATS[form][0]}"


class Restore(beam.PTransform):
    """Transform that restores the files of a PCollection of paths.

    Returns two PCollections: the targets that were written, and the failures as
    (path, reason). If several files have the same target, only the first by path is
    restored.
    """

    def __init__(
        self,
        root: str,
        output: str,
        form: str | None = None,
        strength: float = 1.0,
        weights: str | None = None,
        side: int | None = None,
        quality: int = 95,
        quality_factor: int | None = None,
        projection: bool = True,
    ):
        """Prepares the transform.

        Args:
          root, output, form: as in `target`.
          strength, weights: as in `cqr_jax.restore`.
          side: longest side of a tile in pixels; None for the network's choice.
          quality: quality factor of the JPEGs to write.
          quality_factor, projection: as in `cqr_jax.restore`.
        """
        super().__init__()
        self._targets = root, output, form
        self._options = weights, strength, side, quality, quality_factor, projection

    def expand(self, paths):
        jobs = (
            paths
            | "Target" >> beam.Map(lambda path: (target(path, *self._targets), path))
            | "Same target" >> beam.GroupByKey()
            | "First" >> beam.FlatMap(_first).with_outputs(_FAILED, main="jobs")
        )
        work = beam.ParDo(_Restore(*self._options))
        done = (
            jobs.jobs
            | "Missing" >> beam.Filter(lambda job: not FileSystems.exists(job[1]))
            | beam.BatchElements(1, _BATCH)
            | "Restore" >> work.with_outputs(_FAILED, main="restored")
        )
        failed = (jobs[_FAILED], done[_FAILED]) | "Failed" >> beam.Flatten()
        return done.restored, failed


def _first(group: tuple[str, Iterable[str]]) -> Iterator[Any]:
    """Yields (path, target) of the first path, and the others as tagged failures."""
    goal, paths = group
    first, *others = sorted(paths)
    yield first, goal
    for path in others:
        reason = f"{first} has the same output {goal}; restore them separately"
        yield beam.pvalue.TaggedOutput(_FAILED, (path, reason))


class _Restore(beam.DoFn):
    """Restores batches of (path, target) and yields the targets that were written."""

    def __init__(
        self,
        weights: str | None,
        strength: float,
        side: int | None,
        quality: int,
        quality_factor: int | None,
        projection: bool,
    ):
        self._weights, self._quality = weights, quality
        self._projecting = projection and quality_factor is None
        # Arguments of `restorer.restore_pictures`; None keeps the dtype of the pixels.
        self._options = strength, side, None, quality_factor, self._projecting
        self._shared = shared.Shared()

    def setup(self):
        """Loads the weights, once for all threads of a worker's process."""
        Image.MAX_IMAGE_PIXELS = None  # `pictures.decode` has its own limit
        weights = self._weights
        self._run = self._shared.acquire(lambda: _Network(restorer.load(weights)))

    def process(self, batch: list[tuple[str, str]]) -> Iterator[Any]:
        """Yields targets, and failures as tagged (path, reason)."""
        jobs, failures = [], []

        def decoded() -> Iterator[Picture]:
            for path, goal in batch:
                try:
                    with FileSystems.open(
                        path, compression_type=CompressionTypes.UNCOMPRESSED
                    ) as file:
                        picture = pictures.decode(file.read(), stored=self._projecting)
                except (ImageError, OSError) as error:
                    failures.append((path, _reason(error)))
                else:
                    jobs.append((path, goal))
                    yield picture

        restored = restorer.restore_pictures(self._run.run, decoded(), *self._options)
        for i, picture in enumerate(restored):
            path, goal = jobs[i]
            try:
                form = formats.format_of(goal)
                assert form is not None, goal
                _write(goal, pictures.encode(picture, form, self._quality))
            except (ImageError, OSError) as error:
                failures.append((path, _reason(error)))
            else:
                yield goal
        for failure in failures:
            yield beam.pvalue.TaggedOutput(_FAILED, failure)


class _Network:
    """Holder of the network, because shared objects must support weak references."""

    def __init__(self, run: network.Run):
        self.run = run


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _write(path: str, data: bytes) -> None:
    """Writes a file under a temporary name, then renames it."""
    folder, name = path.rsplit("/", 1)
    if not FileSystems.exists(folder):
        # Another worker may create it first. Any other error is raised below.
        with contextlib.suppress(OSError):
            FileSystems.mkdirs(folder)
    partial = f"{folder}/.{name}.{uuid.uuid4().hex}.partial"
    try:
        with FileSystems.create(
            partial, compression_type=CompressionTypes.UNCOMPRESSED
        ) as file:
            file.write(data)
        FileSystems.rename([partial], [path])
    except BaseException:
        with contextlib.suppress(OSError):  # it was not created
            FileSystems.delete([partial])
        raise


def run(args: argparse.Namespace, flags: Iterable[str]) -> None:
    """Runs the pipeline and prints the numbers of restored and failed files.

    Raises:
      UserError: if no file matches the pattern, if Beam has no such runner or file
        system, if the weights can't be read, or if they don't take --quality-factor.
    """
    # Checked here rather than on every worker.
    if args.weights or args.quality_factor is not None:
        restorer.check_quality_factor(restorer.load(args.weights), args.quality_factor)
    root, output = sources.fixed_part(args.input), args.output.rstrip("/") + "/"
    try:
        if not FileSystems.match([args.input], [1])[0].metadata_list:
            raise UserError(f"--input={args.input}: matches no file")
        pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
        lists = FileSystems.match([f"{output}failures-*.jsonl"])[0].metadata_list
        if lists:  # from an earlier run
            FileSystems.delete([found.path for found in lists])
    except (ValueError, OSError) as error:  # Beam's file system errors are OSErrors
        raise UserError(str(error)) from None

    def is_input(path: str) -> bool:
        earlier = path.startswith(output) and not root.startswith(output)
        return formats.is_read(path) and not earlier

    restored, failed = (
        pipeline
        | fileio.MatchFiles(args.input)
        | "Path" >> beam.Map(lambda found: found.path)
        | "Images" >> beam.Filter(is_input)
        | Restore(
            root,
            args.output,
            args.format,
            args.strength,
            args.weights,
            args.tile,
            args.quality,
            args.quality_factor,
            args.projection,
        )
    )
    counter = beam.metrics.Metrics.counter
    successes, failures = counter("restore", "restored"), counter("restore", "failed")
    _ = restored | "Count" >> beam.Map(lambda _: successes.inc())
    _ = (
        failed
        | "Count failures" >> beam.Map(lambda x: (failures.inc(), x)[1])
        | beam.Map(lambda x: json.dumps({"input": x[0], "reason": x[1]}))
        | beam.io.WriteToText(f"{output}failures", ".jsonl", skip_if_empty=True)
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = {
        x.key.metric.name: x.committed
        for x in result.metrics().query()["counters"]
        if x.key.metric.namespace == "restore"
    }
    print(f"{counters.get('restored', 0)} restored, {counters.get('failed', 0)} failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.restoring.on_beam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", required=True, help="pattern of the input paths, such as 'photos/**'"
    )
    parser.add_argument("--output", required=True, help="output folder")
    add_restoring_options(parser)
    args, flags = parser.parse_known_args()
    with one_line_errors():
        run(args, flags)


if __name__ == "__main__":
    main()
