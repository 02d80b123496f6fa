"""Runs the deblocker on CPUs in OpenVINO."""

import math
import os
import pathlib
import threading
import types
from typing import Any

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import FEATURES
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.restoring import network
from cqr_jax.restoring.openvino_compiler import Compiler

# Defaults of the fields that older files of weights lack.
LATER_FIELDS = {"mask_shifts": False, "negative_slope": 0.0, "feature_scale": 1.0}
_LONGEST = 512  # longest side of a tile in pixels that the network is compiled for


class OpenvinoNetwork:
    """A `network.Run` that compiles the network once for all usual sides of tiles.

    It is compiled again for each other size of images. The images of a batch are
    restored one by one, several at a time. It may be called from several threads, which
    take turns.

    Attributes:
      channels, conditioned, tile_batch, fixed_batch, multiple, parallel, engine,
        engine_name: as in `network.Run`.
    """

    engine = "openvino"
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
        self._compiler = Compiler(precision)
        self.engine_name = self._compiler.name
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
        self.parallel = network.cores()
        self.tile_batch = 4 * self.parallel
        self._path = pathlib.Path(path)
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
            if not usual:  # keep one size of large images, not all
                self._queues = {k: x for k, x in self._queues.items() if k[0] == tiles}
            shapes: dict[str, list] = {"image": [1, *sides, self.channels]}
            if self.conditioned:
                shapes["compression"] = [1, FEATURES]
            compiled = self._compiler.compile(self._path, shapes, self._model)
            self._queues[sides] = self._compiler.openvino.AsyncInferQueue(compiled)
        return self._queues[sides]

    def _model(self) -> Any:
        """Returns the network as a model of OpenVINO."""
        if self._onnx is not None:
            return self._compiler.core.read_model(self._onnx)
        _, fields, _, arrays = weights.read(self._path)
        try:
            params = weights.nested(arrays)["params"]
            return self._export(types.SimpleNamespace(**LATER_FIELDS | fields), params)
        except (AttributeError, KeyError, ValueError, RuntimeError):
            # The file lacks a newer field or is damaged. `load` knows the defaults of
            # the fields and says what is wrong with the arrays. It imports Flax.
            held = weights.load(self._path, "deblocker")
            return self._export(held.model, held.variables["params"])

    def _export(self, model: Any, params: dict) -> Any:
        """Exports a network with the attributes of `model`; as `_model`."""
        from cqr_jax.export import onnx

        data = onnx.network_to_onnx(model, params)
        found = self._compiler.core.read_model(data)
        self._onnx = data
        return found
