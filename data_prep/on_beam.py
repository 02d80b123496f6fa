"""Preparation of records, of both kinds, on Apache Beam.

The records and the shards are the same as those of a run on one machine. Needs
`apache_beam` (the extra `beam`), on the workers too.
"""

import bisect
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from etils import epath
from tensorflow_datasets.core import shuffle, writer
from tensorflow_datasets.core.utils import shard_utils

from cqr_jax.errors import UserError
from data_prep import ladder


def options(flags: str) -> beam.options.pipeline_options.PipelineOptions:
    """Parses Beam's options from text such as 'runner=DirectRunner,project=mine'.

    The syntax is that of TFDS's command line.

    Raises:
      UserError: if the runner is unknown or not installed.
    """
    known = beam.options.pipeline_options
    parsed = known.PipelineOptions([f"--{flag}" for flag in flags.split(",")])
    runner = parsed.view_as(known.StandardOptions).runner
    try:
        beam.runners.create_runner(runner or known.StandardOptions.DEFAULT_RUNNER)
    except (ValueError, ImportError) as error:
        raise UserError(f"runner {runner}: {error}") from None
    return parsed


class Examples(beam.PTransform):
    """Transform to a PCollection of the (key, example) of every sub-image.

    One worker lists the images, so that a long list takes no space in the graph of the
    pipeline. All workers share the work on the images.
    """

    def __init__(self, jobs: Callable[[], Iterator[tuple]], report: epath.Path):
        """Prepares the transform.

        Args:
          jobs: yields the arguments of `ladder.examples`. It is called on a worker.
          report: file for the numbers that `read_report` reads.
        """
        super().__init__()
        self._jobs = jobs
        self._report = report

    def expand(self, pipeline):
        jobs, report = self._jobs, self._report

        def write_report(used: int, skipped: dict[str, str]) -> None:
            report.write_text(json.dumps({"used": used, "skipped": skipped}))

        results = (
            pipeline
            | beam.Create([None])
            | "List" >> beam.FlatMap(lambda _: jobs())
            | beam.Reshuffle()
            | "Compress" >> beam.Map(ladder.examples_or_reason)
        )
        skipped = results | "Skipped" >> beam.FlatMap(
            lambda result: [(result[0], result[2])] if result[2] else []
        )
        _ = (
            results
            | "Used" >> beam.Filter(lambda result: not result[2])
            | beam.combiners.Count.Globally()
            | "Report" >> beam.Map(write_report, beam.pvalue.AsDict(skipped))
        )
        return results | "Key" >> beam.FlatMap(
            lambda result: [(ladder.key(example), example) for example in result[1]]
        )


def read_report(report: epath.Path) -> tuple[int, dict[str, str]]:
    """Returns the number of images used, and the reason for each skipped image.

    Deletes the file.
    """
    content = json.loads(report.read_text())
    report.unlink()
    return content["used"], content["skipped"]


@contextlib.contextmanager
def even_shards() -> Iterator[None]:
    """Makes TFDS write with `EvenBeamWriter` in the context.

    It replaces TFDS's class, because TFDS has no argument for the writer.
    """
    before = writer.BeamWriter
    writer.BeamWriter = EvenBeamWriter
    try:
        yield
    finally:
        writer.BeamWriter = before


class EvenBeamWriter(writer.BeamWriter):
    """Divides the records into the same shards as TFDS does on one machine.

    TFDS sorts records by hashed key in both cases. On one machine, each of n shards
    gets 1/n of the records. TFDS's writer on Beam does not know the rank of a record,
    so it gives each shard 1/n of the range of hashes instead. This writer counts the
    keys to find the ranks.
    """

    def write_from_pcollection(self, examples_pcollection):
        """Returns the transform that writes the (key, example) PCollection."""
        serialized = examples_pcollection | "Serialize" >> beam.Map(
            self._serialize_example
        )
        size = (
            serialized
            | "Size" >> beam.Map(lambda keyed: len(keyed[1]))
            | beam.CombineGlobally(sum)
        )
        number = beam.pvalue.AsSingleton(
            serialized
            | beam.combiners.Count.Globally()
            | "Number" >> beam.Map(self._shards, beam.pvalue.AsSingleton(size))
        )
        buckets = (
            serialized
            | beam.Keys()
            | "Bucket" >> beam.Map(lambda key: (_bucket(key), key))
        )
        counts = buckets | beam.combiners.Count.PerKey()
        firsts = (
            buckets
            | beam.GroupByKey()
            | "First" >> beam.FlatMap(_first_keys, beam.pvalue.AsDict(counts), number)
            | "Firsts" >> beam.combiners.ToList()
            | "Sort" >> beam.Map(sorted)
        )
        return (
            serialized
            | "Assign" >> beam.Map(_with_shard, beam.pvalue.AsSingleton(firsts))
            | "Shards" >> beam.GroupByKey()
            | "Write" >> beam.Map(self._write_shard, number)
            | "Infos" >> beam.combiners.ToList()
            | "Store" >> beam.ParDo(self._store_split_info)
        )

    def _shards(self, examples: int, size: int) -> int:
        return self._shard_config.get_number_shards(size, examples)

    def _write_shard(self, shard: tuple[int, Iterable], number: int) -> Any:
        return self._write_final_shard(shard, range(number))


def _bucket(key: int) -> int:
    """Returns the bucket of a key.

    Buckets are in the order of the keys. Each holds about a thousandth of them.
    """
    return shuffle.get_bucket_number(key, shuffle.BUCKETS_NUMBER)


def _first_keys(
    bucket: tuple[int, Iterable[int]], counts: dict[int, int], number: int
) -> list[int]:
    """Returns the keys of a bucket that begin a shard, but not the first shard's."""
    keys = sorted(bucket[1])
    rank = sum(count for other, count in counts.items() if other < bucket[0])
    ends = shard_utils.get_shard_boundaries(sum(counts.values()), number)
    return [keys[end - rank] for end in ends if rank <= end < rank + len(keys)]


def _with_shard(keyed: tuple[int, bytes], firsts: list[int]) -> tuple[int, tuple]:
    return bisect.bisect_right(firsts, keyed[0]), keyed
