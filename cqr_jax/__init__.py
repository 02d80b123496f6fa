"""JPEG artifact removal guided by a compression quality ranker, in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`cqr_jax.restore`, imported when it is asked for."""
    if name == "restore":
        from cqr_jax.restoring.memory import restore

        return restore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
