"""Writes files in one step, so that no incomplete file has its final name."""

import contextlib
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import IO

from cqr_jax.errors import UserError


def write(
    path: pathlib.Path,
    content: str | bytes,
    replace: bool = True,
    attributes_of: pathlib.Path | None = None,
) -> None:
    """Writes `content` to a new file, then moves the file to its place in one step.

    The new file has a short random name in the target's folder, so that two writers
    never share it and a long name of the target still fits. If writing fails or is
    interrupted, the new file is removed and the target stays as it was. The content is
    on the disk before the move, so that a loss of power leaves the old or the new file.

    The new file gets the permissions of the file that it replaces. If `path` is a
    symbolic link, the file that it points to is replaced, and the link stays.

    A target that is no regular file, such as a pipe or /dev/null, gets the content
    itself.

    Args:
      path: the target. Its folder is made if it does not exist.
      content: text, which is encoded as UTF-8, or bytes.
      replace: whether a file that already exists may be replaced.
      attributes_of: file whose permissions, times and, if the system allows it, owner
        are copied to the target.

    Raises:
      FileExistsError: if the target exists, and `replace` is false.
      UserError: if the target can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    moved = True
    with writing_to(path):
        if replace and path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = pathlib.Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{secrets.token_hex(6)}.partial")
        try:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # before the move, for a loss of power
            if attributes_of is not None:
                _copy_attributes(attributes_of, partial)
            elif replace and target.exists():
                os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
            if replace:
                partial.replace(target)
            else:
                moved = _move_to_new(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    if not moved:
        raise FileExistsError(f"{path} exists")


def _copy_attributes(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies owner, permissions and times; the owner only if the system allows it."""
    found = source.stat()
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(target, found.st_uid, found.st_gid)
    shutil.copystat(source, target)


def _move_to_new(partial: pathlib.Path, target: pathlib.Path) -> bool:
    """Moves a file to a name that does not exist; returns False if the name exists."""
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    except (OSError, AttributeError, NotImplementedError):  # no hard links here
        try:
            with open(target, "xb"):  # claims the name
                pass
        except FileExistsError:
            return False
        try:
            partial.replace(target)
        except OSError:
            target.unlink()
            raise
    return True


def obstacle(folder: pathlib.Path) -> str:
    """Returns what prevents new files in `folder`, or '' if nothing does.

    Args:
      folder: folder that does not have to exist.
    """
    existing = next(x for x in (folder, *folder.parents) if os.path.exists(x))
    if not os.path.isdir(existing):
        return f"{existing} is a file, not a folder"
    if not os.access(existing, os.W_OK):
        return f"no permission for {existing}"
    return ""


@contextlib.contextmanager
def writing_to(path: str | os.PathLike) -> Iterator[None]:
    """Turns an `OSError` of writing to a file or folder into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"can't be written to {path}: {error.strerror or error}"
        ) from None


@contextlib.contextmanager
def lock(path: pathlib.Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Locks a file in the context. If another process holds the lock, waits for it.

    The file is made if it does not exist, and so is its folder. It is removed when the
    context ends, and so are the folders that were made for it if they are empty. On
    systems and file systems without locks, the file is not locked.

    Args:
      path: the file.
      on_wait: called before waiting. It may raise an error instead.

    Raises:
      UserError: if the file can't be written.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        while True:
            with writing_to(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("w"))
            _wait_for_lock(file, on_wait)
            # The process that held the lock may have removed the file meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _wait_for_lock(file: IO[str], on_wait: Callable[[], None]) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
