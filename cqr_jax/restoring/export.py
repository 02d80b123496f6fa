"""Writes the deblocker as a program for other runtimes: ONNX or StableHLO.

    python -m cqr_jax.restoring.export deblocker.onnx --side=192
    python -m cqr_jax.restoring.export deblocker.stablehlo

Both map images to restored ones, float32 in [0, 1], and hold the weights. ONNX,
(batch, 1, side, side), of a fixed side, is what onnxruntime and others read. StableHLO,
(batch, height, width, 1) with sides that are multiples of 8 from 16 on, is what
jax.export.deserialize reads, for CPU, CUDA and TPU; its attention holds all its scores
at once, so images beyond a megapixel are better cut into tiles.

Needs the extra `export` for ONNX.
"""

import argparse
import os
import pathlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cqr_jax import files, weights
from cqr_jax.errors import UserError, extra, one_line_errors
from cqr_jax.restoring import restorer, tiles

_PLATFORMS = ("cpu", "cuda", "tpu")
_OPSET = 17
_IR_VERSION = 8  # of ONNX 1.10 and later


def to_stablehlo(deblocker: weights.Weights) -> bytes:
    """The network for images of any number and of sides 8 h and 8 w, h and w from 2."""
    params = {"params": deblocker.variables["params"]}
    (shape,) = (
        jax.export.symbolic_shape(
            "b, 8*h, 8*w, 1", constraints=["b >= 1", "h >= 2", "w >= 2"]
        ),
    )
    function = jax.jit(lambda image: deblocker.model.apply(params, image))
    exported = jax.export.export(function, platforms=_PLATFORMS)(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    return bytes(exported.serialize())


def to_onnx(deblocker: weights.Weights, side: int) -> bytes:
    """The network for any number of images of one side, a multiple of 8."""
    with extra("export"):
        import onnx

    graph = _Graph()
    model = deblocker.model
    out = _deblocker(graph, model, deblocker.variables["params"])
    value = [
        onnx.helper.make_tensor_value_info(
            name, onnx.TensorProto.FLOAT, ("batch", 1, side, side)
        )
        for name in ("image", out)
    ]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "deblocker", value[:1], value[1:], graph.constants
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="cqr_jax",
    )
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


class _Graph:
    """Nodes and constants of an ONNX graph in the making; channels come second."""

    def __init__(self):
        self.nodes: list = []
        self.constants: list = []

    def add(self, operator: str, *inputs: str, **attributes) -> str:
        """Adds a node; returns its output's name."""
        import onnx

        name = f"{operator}_{len(self.nodes)}"
        node = onnx.helper.make_node(operator, inputs, [name], name, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, values) -> str:
        """Adds an array; returns its name."""
        import onnx

        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def convolve(self, x: str, layer: dict, dilation: int = 1, stride: int = 1) -> str:
        """A Flax convolution of 3x3, or a dense layer as one of 1x1."""
        kernel = np.asarray(layer["kernel"], np.float32)
        kernel = kernel.reshape(*(1,) * (4 - kernel.ndim), *kernel.shape)
        padding = dilation if kernel.shape[0] == 3 else 0
        return self.add(
            "Conv",
            x,
            self.constant(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))),
            self.constant(np.asarray(layer["bias"], np.float32)),
            dilations=[dilation] * 2,
            pads=[padding] * 4,
            strides=[stride] * 2,
        )


def _deblocker(graph: _Graph, model, params: dict) -> str:
    """As `Deblocker.__call__`; returns the output's name."""

    def block(x, name, non_local):
        return _dilated_block(graph, x, params[name], model, non_local)

    x = graph.add("Sub", "image", graph.constant(np.float32(0.5)))
    x = graph.add("SpaceToDepth", x, blocksize=model.scale)
    x = block(graph.convolve(x, params["head"]), "non_local_in", True)
    for i in range(model.local_blocks):
        x = block(x, f"local{i}", False)
    x = block(graph.convolve(x, params["body"]), "non_local_out", True)
    x = graph.convolve(x, params["tail"])
    x = graph.add("DepthToSpace", x, blocksize=model.scale, mode="DCR")
    return graph.add("Add", "image", x)


def _dilated_block(graph, x, params, model, non_local) -> str:
    blocks = range(model.residual_blocks)
    x = _residual(graph, x, params["head"])
    trunk = x
    for i in blocks:
        trunk = _residual(graph, trunk, params[f"trunk{i}"])
    mask = _mask(graph, x, params["mask"], model, non_local)
    x = graph.add("Add", x, graph.add("Mul", trunk, mask))
    for i in blocks:
        x = _residual(graph, x, params[f"tail{i}"])
    y = graph.add("Relu", x)
    scales = [
        graph.convolve(y, params["multi_dilation"][f"dilated{i}"], dilation)
        for i, dilation in enumerate(model.dilations)
    ]
    return graph.add("Add", x, graph.add("Concat", *scales, axis=1))


def _residual(graph, x, params) -> str:
    y = graph.add("Relu", graph.convolve(x, params["inner"]))
    return graph.add("Add", x, graph.convolve(y, params["out"]))


def _mask(graph, x, params, model, non_local) -> str:
    if non_local:
        x = _attention(graph, x, params["non_local"], model.key_pool)
    x = _residual(graph, x, params["before"])
    y = graph.convolve(x, params["down"], stride=2)
    for i in range(model.residual_blocks):
        y = _residual(graph, y, params[f"inner{i}"])
    y = graph.convolve(y, params["up"]["conv"])
    y = graph.add("DepthToSpace", y, blocksize=2, mode="DCR")
    x = _residual(graph, graph.add("Add", x, y), params["after"])
    return graph.add("Sigmoid", graph.convolve(x, params["mask"]))


def _attention(graph, x, params, key_pool) -> str:
    source = x
    if key_pool > 1:
        pool = {"kernel_shape": [key_pool] * 2, "strides": [key_pool] * 2}
        source = graph.add("AveragePool", x, **pool)
    flat = graph.constant(np.array([0, 0, -1]))

    def rows(x, name):
        """(batch, channels, pixels)."""
        return graph.add("Reshape", graph.convolve(x, params[name]), flat)

    theta = graph.add("Transpose", rows(x, "theta"), perm=[0, 2, 1])
    scores = graph.add("MatMul", theta, rows(source, "phi"))
    weights_ = graph.add("Softmax", scores, axis=-1)
    g = graph.add("Transpose", rows(source, "g"), perm=[0, 2, 1])
    y = graph.add("MatMul", weights_, g)
    y = graph.add("Transpose", y, perm=[0, 2, 1])
    inner = params["theta"]["kernel"].shape[-1]
    shape = graph.add(
        "Concat",
        graph.constant(np.array([0, inner])),
        graph.add("Shape", x, start=2),
        axis=0,
    )
    y = graph.add("Reshape", y, shape)
    return graph.add("Add", x, graph.convolve(y, params["out"]))


def write(path: str | os.PathLike, deblocker: weights.Weights, side: int) -> None:
    """Writes ONNX or StableHLO, as the path's suffix says.

    Raises:
      UserError: another suffix, or a side that is not a multiple of 8.
      SystemExit: the package onnx is missing.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in (".onnx", ".stablehlo"):
        raise UserError(f"{path}: must end in .onnx or .stablehlo")
    if side % 8 or side < 16:
        raise UserError(f"--side={side}: must be a multiple of 8 from 16 on")
    stablehlo = suffix == ".stablehlo"
    data = to_stablehlo(deblocker) if stablehlo else to_onnx(deblocker, side)
    files.write(pathlib.Path(path), data)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.restoring.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUTPUT", help=".onnx or .stablehlo")
    parser.add_argument("--weights", default=restorer.WEIGHTS, help="a deblocker")
    parser.add_argument(
        "--side", type=int, default=tiles.SIDE, help="of ONNX's images (%(default)s)"
    )
    args = parser.parse_args()
    with one_line_errors():
        write(args.output, weights.load(args.weights, "deblocker"), args.side)


if __name__ == "__main__":
    main()
