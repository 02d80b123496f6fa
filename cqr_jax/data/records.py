"""Definition of records: clean sub-images, with JPEGs if the kind is ladder.

The writer (`data_prep`) and the reader (`cqr_jax.data.pipeline`) share this definition.
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cqr_jax.data.kinds import LADDER, QUALITIES
from cqr_jax.errors import UserError

VERSION = "1.0.0"


def features(kind: str = LADDER) -> tfds.features.FeaturesDict:
    """Returns the features of a record.

    The features are:

    - name: name of the image.
    - top, left: position of the sub-image in the image, multiples of 8.
    - height, width: size of the sub-image, multiples of 8.
    - clean: PNG bytes, uint8: Y in ladder records, RGB or gray in colour records.
    - jpegs: only in ladder records: bytes of the single-channel JPEG at each of
      `QUALITIES`, in order.
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
    """Returns the folder of the records of data set `name`; `data_dir` may be gs://."""
    return epath.Path(data_dir) / kind / name / VERSION


def exists(data_dir: str, name: str, kind: str = LADDER) -> bool:
    """Returns whether complete records of `name` exist."""
    return (directory(data_dir, name, kind) / "dataset_info.json").exists()


def digest(data_dir: str, name: str, kind: str = LADDER) -> str:
    """Returns the SHA-256 of existing records, hexadecimal.

    Records that `data_prep.build` makes from the same images with the same options and
    the same versions of the packages have the same bytes.
    """
    found = hashlib.sha256()
    for path in sorted(directory(data_dir, name, kind).glob("*.tfrecord*")):
        with path.open("rb") as file:
            while part := file.read(2**24):
                found.update(part)
    return found.hexdigest()


def fingerprint(data_dir: str, name: str, kind: str = LADDER) -> str:
    """Returns the SHA-256 of the description of existing records, hexadecimal.

    The description holds the number and the size of the records. Unlike `digest`, this
    does not read the records themselves.
    """
    path = directory(data_dir, name, kind) / "dataset_info.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_builder(
    data_dir: str, name: str, kind: str = LADDER
) -> tfds.core.DatasetBuilder:
    """Returns the read-only TFDS builder of existing records.

    Its `info.metadata` holds the source and `min_side`, the shortest side of any
    sub-image in pixels.

    Raises:
      UserError: if there are no such records.
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
