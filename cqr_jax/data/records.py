"""The one definition of records: clean sub-images, of the kind ladder with JPEGs.

Shared by the writer (`data_prep`) and the reader (`cqr_jax.data.pipeline`).
"""

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cqr_jax.data.kinds import LADDER, QUALITIES
from cqr_jax.errors import UserError

VERSION = "1.0.0"


def features(kind: str = LADDER) -> tfds.features.FeaturesDict:
    """Features of a record.

    name: the image's name. top, left: of the sub-image in it, multiples of 8.
    height, width: of the sub-image, multiples of 8. clean: PNG bytes, uint8, of Y in
    the ladder, of RGB or gray in colour records. jpegs, in the ladder alone: bytes of
    the single-channel JPEG at each of `QUALITIES`, in order.
    """
    scalar = tfds.features.Scalar(dtype=np.int32)
    fields = {
        "name": tfds.features.Text(),
        "top": scalar,
        "left": scalar,
        "height": scalar,
        "width": scalar,
        "clean": tfds.features.Tensor(shape=(), dtype=np.str_),
    }
    if kind == LADDER:
        count = (len(QUALITIES),)
        fields["jpegs"] = tfds.features.Tensor(shape=count, dtype=np.str_)
    return tfds.features.FeaturesDict(fields)


def directory(data_dir: str, name: str, kind: str = LADDER) -> epath.Path:
    """Where the records of the data set `name` lie under `data_dir` (gs:// too)."""
    return epath.Path(data_dir) / kind / name / VERSION


def exists(data_dir: str, name: str, kind: str = LADDER) -> bool:
    """Whether complete records of `name` are there."""
    return (directory(data_dir, name, kind) / "dataset_info.json").exists()


def open_builder(
    data_dir: str, name: str, kind: str = LADDER
) -> tfds.core.DatasetBuilder:
    """The read-only TFDS builder of existing records.

    Its `info.metadata` tells the source and `min_side`, the shortest side of any
    sub-image in pixels.

    Raises:
      UserError: there are none.
    """
    where = directory(data_dir, name, kind)
    if not exists(data_dir, name, kind):
        flag = "" if kind == LADDER else f" --kind={kind}"
        raise UserError(
            f"{where}: no records of '{name}'; make them with: "
            f"python -m data_prep.build --source=FOLDER_OF_IMAGES --name={name} "
            f"--data_dir={data_dir}{flag}"
        )
    return tfds.builder_from_directory(str(where))
