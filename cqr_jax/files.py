"""Writing files so that nothing half-written looks whole."""

import contextlib
import os
import pathlib

from cqr_jax.errors import UserError


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes `content` under a temporary name in the same folder, then renames it.

    Makes the folder if need be; replaces what is there. Where that fails, or Ctrl-C
    comes, nothing is left.

    Raises:
      UserError: it can't be written there.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = content.encode() if isinstance(content, str) else content
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to(path: str | os.PathLike):
    """Around writing to a file or a folder: a failure becomes a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"can't be written to {path}: {error.strerror or error}"
        ) from None
