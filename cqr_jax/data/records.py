"""The one definition of a record: a clean sub-image and its ladder of JPEGs.

Shared by the writer (`data_prep`) and the reader (`cqr_jax.data.pipeline`).
"""

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cqr_jax.errors import UserError

BUILDER = "qf_ladder"
VERSION = "1.0.0"
QUALITIES = tuple(range(1, 31))  # JPEG quality factors of the ladder


def features() -> tfds.features.FeaturesDict:
    """Features of a record.

    name: the image's name. top, left: of the sub-image in it, multiples of 8.
    height, width: of the sub-image, multiples of 8. clean: PNG bytes of Y, uint8.
    jpegs: bytes of its single-channel JPEG at each of `QUALITIES`, in order.
    """
    scalar = tfds.features.Scalar(dtype=np.int32)
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "top": scalar,
            "left": scalar,
            "height": scalar,
            "width": scalar,
            "clean": tfds.features.Tensor(shape=(), dtype=np.str_),
            "jpegs": tfds.features.Tensor(shape=(len(QUALITIES),), dtype=np.str_),
        }
    )


def directory(data_dir: str, name: str) -> epath.Path:
    """Where the records of the data set `name` lie under `data_dir` (gs:// too)."""
    return epath.Path(data_dir) / BUILDER / name / VERSION


def exists(data_dir: str, name: str) -> bool:
    """Whether complete records of `name` are there."""
    return (directory(data_dir, name) / "dataset_info.json").exists()


def open_builder(data_dir: str, name: str) -> tfds.core.DatasetBuilder:
    """The read-only TFDS builder of existing records.

    Its `info.metadata` tells the source and `min_side`, the shortest side of any
    sub-image in pixels.

    Raises:
      UserError: there are none.
    """
    if not exists(data_dir, name):
        raise UserError(
            f"{directory(data_dir, name)}: no records of '{name}'; make them with: "
            f"python -m data_prep.build --source=FOLDER_OF_IMAGES --name={name} "
            f"--data_dir={data_dir}"
        )
    return tfds.builder_from_directory(str(directory(data_dir, name)))
