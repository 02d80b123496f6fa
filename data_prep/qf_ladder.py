"""The TFDS builder of the QF ladder: clean sub-images with their 30 JPEGs each."""

import multiprocessing
import os
import signal
from collections.abc import Iterator

import tensorflow_datasets as tfds

from cqr_jax import progress
from cqr_jax.data import records
from cqr_jax.errors import UserError
from data_prep import ladder
from data_prep.sources import Source


class QfLadder(tfds.core.GeneratorBasedBuilder):
    """Sub-images on the 8-grid, each with its JPEGs at QF 1 to 30 (paper section 4.1).

    TFDS writes to a temporary folder and renames it when all is there, so that records
    that can be opened are complete. The order of the records depends on their names
    alone, not on the number of processes.
    """

    name = records.BUILDER
    VERSION = tfds.core.Version(records.VERSION)
    pkg_dir_path = None

    def __init__(
        self, source: Source, data_dir: str, side: int, min_side: int, processes: int
    ):
        """Prepares to build the records of `source` under `data_dir`.

        Args:
          source: of clean images.
          data_dir: root of the records.
          side: longest side of a sub-image in pixels, a multiple of 8.
          min_side: shortest side of an image that is used, at most half of `side`.
          processes: workers; 0 for one per core.
        """
        self._source = source
        self._side = side
        self._min_side = min_side
        self._processes = processes or os.cpu_count()
        self.used: dict[str, int] = {}  # images by split
        self.skipped: dict[str, str] = {}  # reason by image
        config = tfds.core.BuilderConfig(name=source.name, version=self.VERSION)
        super().__init__(data_dir=data_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clean Y sub-images with their JPEGs at QF 1 to 30.",
            features=records.features(),
            metadata=tfds.core.MetadataDict(
                origin=self._source.origin, side=self._side, min_side=self._min_side
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            split: self._generate_examples(split)
            for split in self._source.counts  # tfds consumes one after the other
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        jobs = (
            (name, data, records.QUALITIES, self._side, self._min_side)
            for name, data in self._source.images(split)
        )
        self.used[split] = 0
        context = multiprocessing.get_context("spawn")
        ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)  # the parent handles it
        with context.Pool(self._processes, signal.signal, ignore_ctrl_c) as pool:
            results = pool.imap_unordered(ladder.examples_or_reason, jobs)
            for name, examples, reason in progress.over(
                results, self._source.counts[split], f"{split} images", "image"
            ):
                if reason:
                    self.skipped[name] = reason
                    continue
                self.used[split] += 1
                for example in examples:
                    yield f"{name}:{example['top']}:{example['left']}", example
        if not self.used[split]:
            raise UserError(
                f"no usable image among the {self._source.counts[split]} of the "
                f"{split} split; nothing was written"
            )
        self.info.metadata["used"] = self.used
        self.info.metadata["skipped"] = self.skipped
