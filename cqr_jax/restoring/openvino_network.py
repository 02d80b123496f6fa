"""Runs the deblocker on CPUs in OpenVINO, which is faster there than XLA.

OpenVINO reads the network as ONNX (`cqr_jax.export.onnx`). It computes in bfloat16 if
the processor has instructions for it, else in float32. The compiled network is cached
on disk, so that later processes don't need ONNX. JAX and Flax are not imported.
"""

import contextlib
import hashlib
import importlib.util
import math
import os
import pathlib
import sys
import threading
import types
from typing import Any

import numpy as np

from cqr_jax import files, weights
from cqr_jax.data.compression import FEATURES
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.errors import UserError
from cqr_jax.restoring import network

# `import openvino` also imports its model converter, and with it a package that sends
# usage data. Neither is needed here, and openvino works without them.
_NOT_IMPORTED = "openvino.tools.ovc"

_CACHED = 8  # number of compiled networks to keep, those that were used last
_LONGEST = 512  # longest side of a tile in pixels that the network is compiled for


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
    finally:
        if blocked:
            del sys.modules[_NOT_IMPORTED]
    return openvino


class OpenvinoNetwork:
    """A `network.Run` that compiles the network once for all usual sides of tiles.

    It is compiled again for each other size of images. The images of a batch are
    restored one by one, several at a time. It may be called from several threads, which
    take turns.

    Attributes:
      channels, conditioned, tile_batch, fixed_batch, multiple, parallel, engine: as in
        `network.Run`.
    """

    fixed_batch = False

    def __init__(self, path: str | os.PathLike, precision: str | None = None):
        """Prepares to compile the deblocker of a file.

        Args:
          path: file of the weights.
          precision: 'f32' or 'bf16'. None for the one that OpenVINO prefers on this
            processor.

        Raises:
          ImportError: if openvino is not installed, or doesn't work on this machine.
          UserError: if there is no such file, or it does not hold a deblocker.
        """
        openvino = import_openvino()
        if importlib.util.find_spec("onnx") is None:
            raise ImportError("the package onnx is missing")
        self._queue_class = openvino.AsyncInferQueue
        self._dimension = openvino.Dimension
        self._core = openvino.Core()
        try:
            precision = (
                precision
                or self._core.get_property(
                    "CPU", "INFERENCE_PRECISION_HINT"
                ).to_string()
            )
            about = [openvino.__version__, *_about_processor(self._core)]
        except RuntimeError as error:
            raise ImportError(f"OpenVINO has no CPU here: {error}") from None
        cores = network.cores()
        self._settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": str(cores),
            "INFERENCE_PRECISION_HINT": precision,
        }
        self.engine = f"OpenVINO ({_NAMES.get(precision, precision)})"
        held = weights.header(path, "deblocker")
        name = held.fields.get("name", "deblocker")
        if name != "deblocker":  # `export.onnx` knows this one alone
            raise ImportError(f"{path} holds the network {name!r}, which it can't run")
        # A file that is older than a field was made with the field's default.
        self.channels: int = held.fields.get("channels", 1)
        self.conditioned: bool = held.fields.get("conditioning", "none") != "none"
        # With other sides, OpenVINO 2026.4 fails where a level has an odd side.
        levels = len(held.fields.get("deeper_widths", ()))
        self.multiple = math.lcm(BLOCK, 2 * held.fields.get("scale", 1) << levels)
        self.parallel = cores
        self.tile_batch = 4 * cores
        self._path = pathlib.Path(path)
        self._key = _digest(
            self._path.read_bytes(), _source_of_graph(), *about, str(self._settings)
        )
        self._onnx: bytes | None = None
        self._queues: dict[tuple[Any, Any], Any] = {}
        self._lock = threading.Lock()

    def __call__(
        self, images: np.ndarray, compression: np.ndarray | None = None
    ) -> np.ndarray:
        """Restores a batch.

        Args:
          images: as in `network.Run`.
          compression: float32, (count, FEATURES), see `cqr_jax.data.compression`; None
            for unknown. A network that is not conditioned ignores it.
        """
        arrays = network.inputs(self, images, compression)
        inputs = dict(zip(("image", "compression"), arrays, strict=False))
        restored = np.empty(inputs["image"].shape, np.float32)

        def take(request, index):
            restored[index] = request.get_output_tensor().data[0]

        with self._lock:
            queue = self._queue(*images.shape[1:3])
            queue.set_callback(take)
            try:
                for i in range(len(images)):
                    queue.start_async({k: x[i : i + 1] for k, x in inputs.items()}, i)
            finally:
                queue.wait_all()
        return restored[..., 0] if images.ndim == 3 else restored

    def _queue(self, height: int, width: int) -> Any:
        """Returns the requests for images of these sides; compiles them first."""
        longest = _LONGEST // self.multiple * self.multiple
        tiles = f"{self.multiple}..{longest}"
        usual = all(x % self.multiple == 0 and x <= longest for x in (height, width))
        sides = (tiles, tiles) if usual else (height, width)
        if sides not in self._queues:
            self._queues[sides] = self._queue_class(self._compile(sides))
        return self._queues[sides]

    def _compile(self, sides: tuple[Any, Any]) -> Any:
        """Returns the compiled network, from the cache if it is there.

        Args:
          sides: height and width, each a number or a range in OpenVINO's notation.
        """
        cached = network.cache_folder() / f"{_digest(self._key, str(sides))}.openvino"
        # A file that can't be read or is damaged is made anew.
        with contextlib.suppress(OSError, RuntimeError):
            data = cached.read_bytes()
            os.utime(cached)
            return self._core.import_model(data, "CPU", self._settings)
        model = self._model()
        shapes = {"image": [1, *map(self._dimension, sides), self.channels]}
        if self.conditioned:
            shapes["compression"] = [1, FEATURES]
        model.reshape(shapes)
        compiled = self._core.compile_model(model, "CPU", self._settings)
        # Without a cache, the next process compiles again.
        with contextlib.suppress(UserError, OSError, RuntimeError):
            files.write(cached, compiled.export_model().getvalue())
            _delete_oldest(cached.parent)
        return compiled

    def _model(self) -> Any:
        """Returns the network as a model of OpenVINO."""
        if self._onnx is not None:
            return self._core.read_model(self._onnx)
        _, fields, _, arrays = weights.read(self._path)
        try:
            params = weights.nested(arrays)["params"]
            return self._export(types.SimpleNamespace(**fields), params)
        except (AttributeError, KeyError, ValueError, RuntimeError):
            # The file lacks a newer field or is damaged. `load` knows the defaults of
            # the fields and says what is wrong with the arrays. It imports Flax.
            held = weights.load(self._path, "deblocker")
            return self._export(held.model, held.variables["params"])

    def _export(self, model: Any, params: dict) -> Any:
        """Exports a network with the attributes of `model`; as `_model`."""
        from cqr_jax.export import onnx

        data = onnx.network_to_onnx(model, params)
        found = self._core.read_model(data)
        self._onnx = data
        return found


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
