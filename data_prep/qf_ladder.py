"""TFDS builders of the QF ladder and of clean sub-images in colour."""

import functools
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer

from cqr_jax import progress
from cqr_jax.data import kinds, records
from cqr_jax.errors import UserError
from cqr_jax.prefetch import cancelling, prefetch
from cqr_jax.restoring import network
from data_prep import ladder
from data_prep.sources import Source
from data_prep.workers import Workers


class QfLadder(tfds.core.GeneratorBasedBuilder):
    """Builder of sub-images with their JPEGs at QF 1 to 30 (paper section 4.1).

    Sub-images are on the 8x8 grid. TFDS writes to a temporary folder and renames it at
    the end, so that records that can be opened are complete. The bytes of the files
    depend only on the images and their names. They don't depend on the number of
    processes, or on whether Beam makes them.
    """

    name = kinds.LADDER
    VERSION = tfds.core.Version(records.VERSION)
    pkg_dir_path = None
    _description = "Clean Y sub-images with their JPEGs at QF 1 to 30."

    def __init__(
        self,
        source: Source,
        data_dir: str,
        side: int,
        min_side: int,
        processes: int,
        on_beam: bool = False,
    ):
        """Prepares to build the records of `source` under `data_dir`.

        Args:
          source: source of clean images.
          data_dir: root of the records.
          side: longest side of a sub-image in pixels, a multiple of 8.
          min_side: shortest allowed side of an image, at most half of `side`.
          processes: number of worker processes; 0 for one per core.
          on_beam: whether to use Apache Beam instead, with TFDS's
            `DownloadConfig.beam_options`.
        """
        self._source = source
        self._side = side
        self._min_side = min_side
        self._processes = processes or network.cores()
        self._on_beam = on_beam
        self.used: dict[str, int] = {}  # images by split
        self.skipped: dict[str, str] = {}  # reason by image
        config = tfds.core.BuilderConfig(name=source.name, version=self.VERSION)
        super().__init__(data_dir=data_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            features=records.features(self.name),
            metadata=tfds.core.MetadataDict(
                origin=self._source.origin,
                counts=self._source.counts,
                side=self._side,
                min_side=self._min_side,
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        generate = self._beam_examples if self._on_beam else self._generate_examples
        # TFDS consumes the splits one after the other.
        return {split: generate(split) for split in self._source.counts}

    def _jobs(self, split: str):
        """Returns a function that yields the jobs and doesn't refer to this builder."""
        arguments = self.name, self._side, self._min_side
        return functools.partial(_jobs, self._source.images, split, *arguments)

    def _beam_examples(self, split: str):
        """Returns a `beam.PTransform` that does the work of `_generate_examples`."""
        from data_prep import on_beam

        return on_beam.Examples(self._jobs(split), self._beam_report(split))

    def _beam_report(self, split: str):
        return self.data_path / f"{split}.images.json"

    def _process_pipeline_result(self, pipeline_result):
        from data_prep import on_beam

        del pipeline_result
        for split in self._source.counts:
            used, skipped = on_beam.read_report(self._beam_report(split))
            self.used[split] = used
            self.skipped.update(skipped)
            self._tell(split)

    def _example_writer(self):
        return _StableWriter(self.info.file_format)

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        self.used[split] = 0
        # Examples wait in memory until they are written, so few are made ahead.
        depth = 4 * self._processes
        try:
            with cancelling(Workers(self._processes)) as pool:
                results = prefetch(
                    pool, ladder.examples_or_reason, self._jobs(split)(), depth
                )
                for name, examples, reason in progress.over(
                    results, self._source.counts[split], f"{split} images", "image"
                ):
                    if reason:
                        self.skipped[name] = reason
                        continue
                    self.used[split] += 1
                    for example in examples:
                        yield ladder.key(example), example
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for lack of memory; use fewer, "
                "with --processes=N"
            ) from None
        self._tell(split)

    def _tell(self, split: str) -> None:
        """Stores in the metadata which images of a finished split were used."""
        if not self.used[split]:
            *_, (name, reason) = self.skipped.items()  # the last of this split
            raise UserError(
                f"no usable image among the {self._source.counts[split]} of the "
                f"{split} split (the last is {name}: {reason}); nothing was written; "
                "add images, or change the share with --validation_fraction"
            )
        self.info.metadata["used"] = self.used
        self.info.metadata["skipped"] = dict(sorted(self.skipped.items()))


class Colour(QfLadder):
    """Builder of sub-images in RGB, or gray for gray images, without JPEGs.

    Sub-images are on the 8x8 grid.
    """

    name = kinds.COLOUR
    _description = "Clean sub-images in RGB or gray."


BUILDERS = {builder.name: builder for builder in (QfLadder, Colour)}


class _StableWriter(writer.ExampleWriter):
    """Writes the fields of a record in a fixed order.

    TFDS leaves the order to protobuf, for which it differs between processes.
    """

    def write(self, path, examples):
        return super().write(path, ((key, _stable(data)) for key, data in examples))


def _stable(data: bytes) -> bytes:
    return tf.train.Example.FromString(data).SerializeToString(deterministic=True)


def _jobs(images, split, *arguments) -> Iterator[tuple]:
    for name, data in images(split):
        yield name, data, *arguments
