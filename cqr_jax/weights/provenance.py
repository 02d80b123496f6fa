"""How weights were made: the commit of the code and the trainings, oldest first."""

import pathlib
import subprocess

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """Returns the Git commit of this package's checkout.

    The suffix '+changes' means that tracked files had other contents. The result is
    None if the package is not in a checkout of its own, or if there is no Git.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top) != _ROOT:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return f"{_git('rev-parse', 'HEAD')}{'+changes' if changes else ''}"


def trainings(provenance: dict) -> list[dict]:
    """Returns the provenance of each training, oldest first, without `earlier`.

    The list `earlier`, if there is one, has the provenance of the trainings before the
    last one, oldest first.
    """
    last = {name: x for name, x in provenance.items() if name != "earlier"}
    return [*provenance.get("earlier", []), last]


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if found.returncode else found.stdout.strip()
