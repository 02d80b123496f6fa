"""Writing files so that nothing half-written looks whole."""

import pathlib


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes `content` under a temporary name in the same folder, then renames it.

    Makes the folder if need be; replaces what is there. Where that fails, or Ctrl-C
    comes, nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
