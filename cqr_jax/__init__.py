"""JPEG artifact removal guided by a compression quality ranker, in JAX and Flax.

The public API is `restore` and the exceptions that it raises, `UserError` and
`ImageError`. They are imported when they are first used, so that importing `cqr_jax`
imports neither JAX nor NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqr_jax.data.jpeg import ImageError as ImageError
    from cqr_jax.errors import UserError as UserError
    from cqr_jax.restoring.api import restore as restore

__version__ = "0.1.0"

_MODULES = {
    "ImageError": "cqr_jax.data.jpeg",
    "UserError": "cqr_jax.errors",
    "restore": "cqr_jax.restoring.api",
}


def __getattr__(name: str) -> Any:
    """Imports a name of the public API when it is first used."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
