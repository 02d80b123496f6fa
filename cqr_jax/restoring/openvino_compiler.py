"""Compiles networks for the CPU in OpenVINO, which is faster there than XLA.

OpenVINO reads a network as ONNX. The compiled network is cached on disk, so that later
processes don't need ONNX. JAX and Flax are not imported.
"""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from cqr_jax import files
from cqr_jax.errors import UserError
from cqr_jax.restoring import network

# `import openvino` also imports its model converter, and with it a package that sends
# usage data. Neither is needed here, and openvino works without them.
_NOT_IMPORTED = "openvino.tools.ovc"

_CACHED = 8  # number of compiled networks to keep, those that were used last


def import_openvino() -> Any:
    """Imports openvino without its converter and its telemetry.

    Raises:
      ImportError: if openvino is not installed, or doesn't work on this machine.
    """
    blocked = not {"openvino", _NOT_IMPORTED} & sys.modules.keys()
    if blocked:
        sys.modules[_NOT_IMPORTED] = None  # type: ignore[assignment]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; install openvino") from None
    finally:
        if blocked:
            del sys.modules[_NOT_IMPORTED]
    return openvino


class Compiler:
    """OpenVINO's compiler for this processor, with a cache.

    Attributes:
      openvino: the module.
      core: its object of class `Core`.
      name: the name of the engine, with the precision.
    """

    def __init__(self, precision: str | None = None):
        """Starts OpenVINO.

        Args:
          precision: 'f32' or 'bf16'. None for the one that OpenVINO prefers on this
            processor.

        Raises:
          ImportError: if openvino is not installed, or doesn't work on this machine.
        """
        self.openvino = import_openvino()
        if importlib.util.find_spec("onnx") is None:
            raise ImportError("the package onnx is missing; install it")
        self.core = self.openvino.Core()
        hint = "INFERENCE_PRECISION_HINT"
        try:
            precision = precision or self.core.get_property("CPU", hint).to_string()
            about = [self.openvino.__version__, *_about_processor(self.core)]
        except RuntimeError as error:
            raise ImportError(f"OpenVINO has no CPU here: {error}") from None
        self._settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": str(network.cores()),
            hint: precision,
        }
        self.name = f"OpenVINO ({_NAMES.get(precision, precision)})"
        self._key = [*about, str(self._settings)]

    def compile(
        self, path: pathlib.Path, shapes: dict[str, list], read: Callable[[], Any]
    ) -> Any:
        """Returns the compiled network, from the cache if it is there.

        Args:
          path: file of the weights. The cache is keyed by its content.
          shapes: name -> shape of each input. A range of a side is text, such as
            '16..512'.
          read: returns the network as a model of OpenVINO, if the cache lacks it.
        """
        key = _digest(path.read_bytes(), _source_of_graph(), *self._key, str(shapes))
        cached = network.cache_folder() / f"{key}.openvino"
        # A file that can't be read or is damaged is made anew.
        with contextlib.suppress(OSError, RuntimeError):
            data = cached.read_bytes()
            os.utime(cached)
            return self.core.import_model(data, "CPU", self._settings)
        model = read()
        dimension = self.openvino.Dimension
        model.reshape({k: [dimension(x) for x in v] for k, v in shapes.items()})
        compiled = self.core.compile_model(model, "CPU", self._settings)
        # Without a cache, the next process compiles again.
        with contextlib.suppress(UserError, OSError, RuntimeError):
            files.write(cached, compiled.export_model().getvalue())
            _delete_oldest(cached.parent)
        return compiled


_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def _delete_oldest(folder: pathlib.Path) -> None:
    """Deletes all compiled networks but the `_CACHED` that were used last."""
    found = sorted(folder.glob("*.openvino"), key=lambda path: path.stat().st_mtime)
    for path in found[:-_CACHED]:
        path.unlink(missing_ok=True)


def _about_processor(core) -> list[str]:
    """Returns the properties of the processor that a compiled network depends on."""
    names = "FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES"
    return [str(core.get_property("CPU", name)) for name in names]


def _source_of_graph() -> bytes:
    """Returns the source of the module that writes the graph, which changes with it."""
    path = pathlib.Path(__file__).parent.parent / "export" / "onnx.py"
    return path.read_bytes()


def _digest(*parts: bytes | str) -> str:
    found = hashlib.blake2b(digest_size=32)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "big") + data)
    return found.hexdigest()
