"""Writes the deblocker as a program for other runtimes: ONNX or StableHLO.

    python -m cqr_jax.restoring.export deblocker.onnx
    python -m cqr_jax.restoring.export deblocker.stablehlo

The file holds the network and its weights, and maps compressed images to restored ones.
The number of images, the height and the width are free.

|            | ONNX                         | StableHLO                      |
|------------|------------------------------|--------------------------------|
| `image`    | (batch, 3, height, width)    | (batch, height, width, 3)      |
| `quality`  | (1,) or (batch,), optional   | (batch,)                       |
| `restored` | of the image's shape         | of the image's shape           |

All are float32. `image` is RGB in [0, 1]. `restored` is RGB near [0, 1], not clipped.
`quality` is libjpeg's quality factor, 1 to 100, or 0 where it is unknown. The program
rounds it, clips it to 0 to 100, and assumes 4:2:0 chroma subsampling. ONNX takes 0 if
`quality` is left out. StableHLO has no optional inputs: give zeros.

A network of Y (`channels` of 1) takes and gives images of 1 channel in place of 3. A
network that can't be told the compression (`conditioning` of 'none') has no `quality`.

ONNX is what onnxruntime and others read. Its metadata describe the inputs and the
output. `--side` fixes the height and the width, for runtimes that need this.

    session = onnxruntime.InferenceSession("deblocker.onnx")
    (restored,) = session.run(None, {"image": image, "quality": quality})

onnxruntime warns that `quality` "will not be treated as constant value": no fault, for
that is how ONNX marks an optional input.

StableHLO is what jax.export reads, for CPU, CUDA and TPU. It has no metadata; this text
describes it.

    with open("deblocker.stablehlo", "rb") as file:
        exported = jax.export.deserialize(bytearray(file.read()))
    restored = jax.jit(exported.call)(image, quality)

Both hold all scores of the attention at once. Cut large images into tiles.

Needs the extra `export` for ONNX.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import cqr_jax
from cqr_jax import files, weights
from cqr_jax.data import ycbcr
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.errors import UserError, extra, one_line_errors
from cqr_jax.models import colour
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.restoring import restorer

_PLATFORMS = ("cpu", "cuda", "tpu")
_OPSET = 17
_IR_VERSION = 8  # of ONNX 1.10 and later


def to_stablehlo(deblocker: weights.Weights) -> bytes:
    """The network as a serialized `jax.export.Exported` of `image` and `quality`.

    The module's docstring gives the shapes. Where attention averages its keys over
    squares, an image smaller than one square is first filled up to it by its last
    pixels, which the model itself does not do.
    """
    model = _model(deblocker)
    params = {"params": deblocker.variables["params"]}
    apply: Callable = model.apply
    if model.channels == 3:
        apply = colour.on_rgb(apply)
    table = _table(model)
    multiple = _multiple(model)
    # The lowest level has two pixels for each `multiple` of the image.
    least = -(-model.key_pool // 2)

    def up_to(size):
        """Indices that repeat the last one of `size`."""
        count = jax.core.max_dim((size + multiple - 1) // multiple, least)
        return jnp.minimum(jnp.arange(count * multiple), size - 1)

    def restore(image, *quality):
        _, height, width, _ = image.shape
        # Filled up here as the model would, but to sides that are a multiple of a
        # symbol, which shape polymorphism can reason about.
        filled = image[:, up_to(height)][:, :, up_to(width)]
        told = []
        if quality:
            row = jnp.clip(jnp.round(quality[0]), 0, len(table) - 1).astype(jnp.int32)
            told = [jnp.asarray(table)[row]]
        restored = apply(params, filled, *told)
        return restored[:, jnp.arange(height)][:, :, jnp.arange(width)]

    shape = jax.export.symbolic_shape(f"batch, height, width, {model.channels}")
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    if model.conditioning != "none":
        inputs.append(jax.ShapeDtypeStruct(shape[:1], jnp.float32))
    exported = jax.export.export(jax.jit(restore), platforms=_PLATFORMS)(*inputs)
    return bytes(exported.serialize())


def _model(deblocker: weights.Weights) -> Deblocker:
    assert isinstance(deblocker.model, Deblocker)
    return deblocker.model


def _multiple(model: Deblocker) -> int:
    """What the sides are filled up to a multiple of, as in `Deblocker.__call__`."""
    return 2 * model.scale * 2 ** len(model.deeper_widths)


def _table(model: Deblocker) -> np.ndarray:
    """What the network is told of quality 0 (unknown) to 100, (101, FEATURES)."""
    known = [
        features(libjpeg(quality, gray=model.channels == 1))
        for quality in range(1, 101)
    ]
    return np.stack([features(None), *known])


def to_onnx(deblocker: weights.Weights, side: int | None = None) -> bytes:
    """The network as a serialized ONNX model of `image` and `quality`.

    The module's docstring gives the shapes.

    Args:
      deblocker: the network.
      side: height and width of the images; None for any.

    Raises:
      SystemExit: the package onnx is missing.
    """
    with extra("export"):
        import onnx

    model = _model(deblocker)
    graph = _Graph()
    out = _program(graph, model, deblocker.variables["params"], side)
    shape: list[str | int | None] = ["batch", model.channels, "height", "width"]
    if side is not None:
        shape[2:] = side, side
    descriptions = _descriptions(model)
    values = {
        name: onnx.helper.make_tensor_value_info(
            name,
            onnx.TensorProto.FLOAT,
            ["qualities"] if name == "quality" else shape,
            description,
        )
        for name, description in descriptions.items()
    }
    restored = values.pop(out)
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "deblocker", list(values.values()), [restored], graph.constants
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="cqr_jax",
        producer_version=cqr_jax.__version__,
        doc_string="Removes the artifacts of JPEG compression from images.",
    )
    fields = json.dumps(deblocker.fields)
    onnx.helper.set_model_props(made, {**descriptions, "network": fields})
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def _descriptions(model: Deblocker) -> dict[str, str]:
    """What the inputs and the output of the ONNX are, by their names."""
    rgb = model.channels == 3
    channels = "RGB" if rgb else "Y (luma)"
    layout = f"float32, (batch, {model.channels}, height, width)"
    described = {"image": f"The compressed images, {channels} in [0, 1]. {layout}."}
    if model.conditioning != "none":
        described["quality"] = (
            "The JPEG quality factor of libjpeg, 1 to 100, or 0 where it is unknown "
            "(the default). It is rounded to a whole number"
            + (", and 4:2:0 chroma subsampling is assumed" if rgb else "")
            + ". float32, (1,) for all images or (batch,)."
        )
    described["restored"] = (
        f"The restored images, {channels} near [0, 1] but not clipped. {layout}."
    )
    return described


class _Graph:
    """Nodes and constants of an ONNX graph in the making; channels come second."""

    def __init__(self):
        self.nodes: list = []
        self.constants: list = []

    def add(self, operator: str, *inputs: str, name: str = "", **attributes) -> str:
        """Adds a node; returns its output's name, which is the node's too."""
        import onnx

        name = name or f"{operator}_{len(self.nodes)}"
        node = onnx.helper.make_node(operator, inputs, [name], name, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, values, name: str = "") -> str:
        """Adds an array; returns its name."""
        import onnx

        name = name or f"constant_{len(self.constants)}"
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

    def sides(self, x: str) -> str:
        """Height and width, (2,)."""
        return self.add("Shape", x, start=2)

    def crop(self, x: str, sides: str) -> str:
        """The first rows and columns, as many as `sides` says."""
        zero, axes = self.constant(np.array([0, 0])), self.constant(np.array([2, 3]))
        return self.add("Slice", x, zero, sides, axes)


def _program(graph: _Graph, model: Deblocker, params: dict, side: int | None) -> str:
    """As `Deblocker.__call__`, on RGB where it has three channels."""
    x = "image"
    if model.channels == 3:
        from_rgb = {"kernel": ycbcr.FROM_RGB.T, "bias": ycbcr.ZERO}
        x = graph.convolve(x, from_rgb)
    x = graph.add("Sub", x, graph.constant(np.float32(0.5)))
    multiple = _multiple(model)
    filling = side is None or side % multiple
    if filling:
        x = _fill(graph, x, multiple)
    x = graph.add("SpaceToDepth", x, blocksize=model.scale)
    embedding = None
    if model.conditioning != "none":
        told = _told(graph, _table(model))
        if model.conditioning == "planes":
            x = graph.add("Concat", x, _planes(graph, told, x), axis=1)
        else:
            embedding = told
            for name in ("embedding0", "embedding1"):
                embedding = graph.convolve(embedding, params[name])
                embedding = graph.add("Relu", embedding)
    x = graph.convolve(x, params["head"])
    x = _level(graph, x, params, model, embedding, 0)
    x = graph.convolve(x, params["tail"])
    x = graph.add("DepthToSpace", x, blocksize=model.scale, mode="DCR")
    if filling:
        x = graph.crop(x, graph.sides("image"))
    if model.channels == 3:  # of the change alone, for the image's own is exact
        x = graph.convolve(x, {"kernel": ycbcr.TO_RGB.T, "bias": np.zeros(3)})
    return graph.add("Add", "image", x, name="restored")


def _fill(graph, x, multiple) -> str:
    """Repeats the last rows and columns up to sides that are a multiple."""
    missing = graph.add("Neg", graph.sides(x))
    missing = graph.add("Mod", missing, graph.constant(np.array([multiple])))
    none = graph.constant(np.zeros(6, np.int64))
    pads = graph.add("Concat", none, missing, axis=0)
    return graph.add("Pad", x, pads, mode="edge")


def _told(graph, table) -> str:
    """What the network is told of the compression, (1 or batch, FEATURES, 1, 1)."""
    quality = graph.constant(np.zeros(1, np.float32), "quality")  # the default
    quality = graph.add("Round", quality)
    first, last = graph.constant(np.float32(0)), graph.constant(np.float32(100))
    row = graph.add("Clip", quality, first, last)
    row = graph.add("Cast", row, to=7)  # int64
    return graph.add("Gather", graph.constant(table[..., None, None]), row)


def _planes(graph, told, x) -> str:
    """Constant planes of the shape of `x`."""
    one = graph.constant(np.array([1]))
    batch = graph.add("Shape", x, end=1)
    shape = graph.add("Concat", batch, one, graph.sides(x), axis=0)
    return graph.add("Expand", told, shape)


def _level(graph, x, params, model, embedding, level) -> str:
    """As `Deblocker._level`."""

    def block(x, name, non_local=False, mask=model.masks):
        return _dilated_block(graph, x, params[name], model, embedding, non_local, mask)

    if level == len(model.deeper_widths):
        x = block(x, "non_local_in", True)
        for i in range(model.local_blocks):
            x = block(x, f"local{i}")
        return block(graph.convolve(x, params["body"]), "non_local_out", True)
    for i in range(model.outer_blocks):
        x = block(x, f"level{level}_in{i}", mask=model.outer_masks)
    y = graph.add("SpaceToDepth", x, blocksize=2)
    y = graph.convolve(y, params[f"down{level}"])
    y = _level(graph, y, params, model, embedding, level + 1)
    y = graph.convolve(y, params[f"up{level}"])
    y = graph.add("DepthToSpace", y, blocksize=2, mode="DCR")
    x = graph.add("Add", x, y)
    for i in range(model.outer_blocks):
        x = block(x, f"level{level}_out{i}", mask=model.outer_masks)
    return x


def _dilated_block(graph, x, params, model, embedding, non_local, mask) -> str:
    blocks = range(model.residual_blocks)
    x = _residual(graph, x, params["head"], embedding)
    if mask:
        trunk = x
        for i in blocks:
            trunk = _residual(graph, trunk, params[f"trunk{i}"])
        branch = _mask(graph, x, params["mask"], model, non_local)
        x = graph.add("Add", x, graph.add("Mul", trunk, branch))
    for i in blocks:
        x = _residual(graph, x, params[f"tail{i}"])
    y = graph.add("Relu", x)
    scales = [
        graph.convolve(y, params["multi_dilation"][f"dilated{i}"], dilation)
        for i, dilation in enumerate(model.dilations)
    ]
    return graph.add("Add", x, graph.add("Concat", *scales, axis=1))


def _residual(graph, x, params, embedding=None) -> str:
    y = graph.convolve(x, params["inner"])
    if embedding is not None:
        kernel, bias = (
            np.split(np.asarray(params["modulation"][name]), 2, axis=-1)
            for name in ("kernel", "bias")
        )
        scale = {"kernel": kernel[0], "bias": 1 + bias[0]}
        shift = {"kernel": kernel[1], "bias": bias[1]}
        y = graph.add("Mul", y, graph.convolve(embedding, scale))
        y = graph.add("Add", y, graph.convolve(embedding, shift))
    y = graph.add("Relu", y)
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
    source = _average(graph, x, key_pool) if key_pool > 1 else x
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
        graph.sides(x),
        axis=0,
    )
    y = graph.add("Reshape", y, shape)
    return graph.add("Add", x, graph.convolve(y, params["out"]))


def _average(graph, x, side) -> str:
    """Means over squares, whole ones alone unless the image is smaller than one."""
    pool = {"kernel_shape": [side] * 2, "strides": [side] * 2}
    if side == 2:  # sides are even
        return graph.add("AveragePool", x, **pool)
    # Pads are left out of the means, and squares that hold some are cut off.
    means = graph.add("AveragePool", x, pads=[0, 0, side - 1, side - 1], **pool)
    whole = graph.add("Div", graph.sides(x), graph.constant(np.array([side])))
    return graph.crop(means, graph.add("Max", whole, graph.constant(np.array([1]))))


def write(
    path: str | os.PathLike, deblocker: weights.Weights, side: int | None = None
) -> None:
    """Writes ONNX or StableHLO, as the path's suffix says.

    Args:
      path: of the file.
      deblocker: the network.
      side: height and width of ONNX's images, a multiple of 8 from 16 on; None for
        any. StableHLO takes images of any size whatever it is.

    Raises:
      UserError: another suffix, or a side that is not a multiple of 8 from 16 on.
      SystemExit: the package onnx is missing.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in (".onnx", ".stablehlo"):
        raise UserError(f"{path}: must end in .onnx or .stablehlo")
    if side is not None and (side % 8 or side < 16):
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
        "--side", type=int, help="height and width of ONNX's images (default: any)"
    )
    args = parser.parse_args()
    with one_line_errors():
        write(args.output, weights.load(args.weights, "deblocker"), args.side)


if __name__ == "__main__":
    main()
