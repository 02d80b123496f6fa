"""Export of the deblocker and the ranker to ONNX.

`python -m cqr_jax.export --help` describes the file of the deblocker. This module
builds the graphs node by node, following `cqr_jax.models.deblocker` and
`cqr_jax.models.ranker`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

import cqr_jax
from cqr_jax import weights
from cqr_jax.data import ycbcr
from cqr_jax.data.compression import FEATURES
from cqr_jax.export.program import deblocker_of, multiple_of, quality_table

if TYPE_CHECKING:  # `cqr-restore` uses this module without Flax, for speed
    from cqr_jax.models.deblocker import Deblocker

_OPSET = 17
_IR_VERSION = 8  # of ONNX 1.10 and later


def to_onnx(deblocker: weights.Weights, side: int | None = None) -> bytes:
    """Returns the network as a serialized ONNX model of `image` and `quality`.

    `python -m cqr_jax.export --help` gives the shapes.

    Args:
      deblocker: network to export.
      side: height and width of the images; None for any.
    """
    import onnx  # here, because importing it takes long

    model = deblocker_of(deblocker)
    graph = _Graph()
    _program(graph, model, deblocker.variables["params"], side)
    image: list[str | int] = ["batch", model.channels, "height", "width"]
    if side is not None:
        image[2:] = side, side
    shapes = {"image": image, "quality": ["qualities"], "restored": image}
    descriptions = _descriptions(model)
    made = _model(graph, "deblocker", shapes, descriptions)
    fields = json.dumps(deblocker.fields)
    onnx.helper.set_model_props(made, {**descriptions, "network": fields})
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def network_to_onnx(model: Deblocker, params: dict) -> bytes:
    """Returns the network alone as a serialized ONNX model, for `cqr_jax.restoring`.

    The inputs and the output are those of `Deblocker.__call__`: `image` and `restored`
    are (batch, height, width, channels), and `compression`, which only a conditioned
    network takes, is (batch, FEATURES). All are float32. No input is optional.

    Args:
      model: the network, or an object with the same attributes.
      params: its parameters.
    """
    graph = _Graph()
    image = graph.add("Transpose", "image", perm=[0, 3, 1, 2])
    condition = None
    if model.conditioning != "none":
        condition = graph.add(
            "Reshape", "compression", graph.constant([0, FEATURES, 1, 1])
        )
    change = _change(graph, model, params, image, condition, filling=True)
    restored = graph.add("Add", image, change)
    graph.add("Transpose", restored, name="restored", perm=[0, 2, 3, 1])
    shape: list[str | int] = ["batch", "height", "width", model.channels]
    shapes = {"image": shape}
    if condition:
        shapes["compression"] = ["batch", FEATURES]
    shapes["restored"] = shape
    made = _model(graph, "deblocker", shapes, dict.fromkeys(shapes, ""))
    return made.SerializeToString()


def ranker_to_onnx(variables: dict) -> bytes:
    """Returns the ranker as a serialized ONNX model, for `cqr_jax.restoring`.

    The input `image` is Y in [0, 1], (batch, height, width, 1), and the output `score`
    is (batch,). Both are float32. Each BatchNorm is part of the convolution before it.

    Args:
      variables: variables of the ranker, with its `batch_stats`.
    """
    graph = _Graph()
    params, statistics = variables["params"], variables["batch_stats"]
    x = graph.add("Transpose", "image", perm=[0, 3, 1, 2])
    for i in range(sum(name.startswith("conv") for name in params)):
        layer = params[f"conv{i}"]
        if i > 0:
            layer = _normalized(layer, params[f"norm{i}"], statistics[f"norm{i}"])
        stride = 2 if layer["kernel"].shape[0] == 4 else 1
        x = graph.add("LeakyRelu", graph.convolve(x, layer, stride=stride), alpha=0.2)
    x = graph.add("GlobalAveragePool", x)
    x = graph.add("LeakyRelu", graph.convolve(x, params["dense0"]), alpha=0.2)
    x = graph.convolve(x, params["dense1"])
    graph.add("Reshape", x, graph.constant(np.array([-1])), name="score")
    shapes = {"image": ["batch", "height", "width", 1], "score": ["batch"]}
    made = _model(graph, "ranker", shapes, dict.fromkeys(shapes, ""))
    return made.SerializeToString()


def _normalized(layer: dict, norm: dict, statistics: dict) -> dict:
    """Returns a convolution that includes the BatchNorm after it."""
    epsilon = 1e-5  # as in `cqr_jax.models.ranker`
    scale = norm["scale"] / np.sqrt(statistics["var"] + epsilon)
    return {
        "kernel": layer["kernel"] * scale,
        "bias": (layer["bias"] - statistics["mean"]) * scale + norm["bias"],
    }


def _model(graph: _Graph, name: str, shapes: dict, descriptions: dict[str, str]) -> Any:
    """Returns the ONNX model of a graph.

    Args:
      graph: the nodes and constants.
      name: name of the graph.
      shapes: name -> shape of the inputs and the output. A side is a number or a name.
      descriptions: name -> description of the inputs that the model has, and then of
        its output.
    """
    import onnx

    *inputs, output = (
        onnx.helper.make_tensor_value_info(
            value, onnx.TensorProto.FLOAT, shapes[value], description
        )
        for value, description in descriptions.items()
    )
    return onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, name, inputs, [output], graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="cqr_jax",
        producer_version=cqr_jax.__version__,
        doc_string=_DOCUMENTED[name],
    )


_DOCUMENTED = {
    "deblocker": "Removes the artifacts of JPEG compression from images.",
    "ranker": "Scores the JPEG quality of images.",
}


def _descriptions(model: Deblocker) -> dict[str, str]:
    """Returns name -> description of the inputs and the output of the ONNX model."""
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
    """Builder of the nodes and constants of an ONNX graph in NCHW layout."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: list = []

    def add(self, operator: str, *inputs: str, name: str = "", **attributes) -> str:
        """Adds a node; returns its name, which is also that of its output."""
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
        """Adds a 3x3 or 4x4 convolution, or a dense layer as a 1x1 convolution."""
        kernel = np.asarray(layer["kernel"], np.float32)
        kernel = kernel.reshape(*(1,) * (4 - kernel.ndim), *kernel.shape)
        padding = dilation if kernel.shape[0] > 1 else 0
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
        """Adds a node for the height and the width, (2,)."""
        return self.add("Shape", x, start=2)

    def crop(self, x: str, sides: str) -> str:
        """Crops to the first rows and columns; `sides` holds their numbers."""
        zero, axes = self.constant(np.array([0, 0])), self.constant(np.array([2, 3]))
        return self.add("Slice", x, zero, sides, axes)


def _program(graph: _Graph, model: Deblocker, params: dict, side: int | None) -> None:
    """Adds the nodes of the exported program, from `image` and `quality`.

    The program takes and returns RGB if the network has three channels.
    """
    x = "image"
    if model.channels == 3:
        from_rgb = {"kernel": ycbcr.FROM_RGB.T, "bias": ycbcr.ZERO}
        x = graph.convolve(x, from_rgb)
    condition = None
    if model.conditioning != "none":
        condition = _condition(graph, quality_table(model))
    filling = side is None or side % multiple_of(model) != 0
    x = _change(graph, model, params, x, condition, filling)
    if model.channels == 3:  # converts only the correction; the image stays exact
        x = graph.convolve(x, {"kernel": ycbcr.TO_RGB.T, "bias": np.zeros(3)})
    graph.add("Add", "image", x, name="restored")


def _change(
    graph: _Graph,
    model: Deblocker,
    params: dict,
    image: str,
    condition: str | None,
    filling: bool,
) -> str:
    """Adds the nodes of `Deblocker.__call__`, without adding the correction.

    Args:
      graph: where the nodes are added.
      model: the network.
      params: its parameters.
      image: Y, or Y, Cb and Cr, (batch, channels, height, width).
      condition: the compression features, (1 or batch, FEATURES, 1, 1); None if the
        network does not take them.
      filling: whether sides may be no multiples of `multiple_of`.

    Returns:
      The correction, of the shape of the image.
    """
    scale = graph.constant(np.float32(model.feature_scale))
    x = graph.add("Sub", image, graph.constant(np.float32(0.5)))
    x = graph.add("Mul", x, scale)
    if filling:
        x = _fill(graph, x, multiple_of(model))
    x = graph.add("SpaceToDepth", x, blocksize=model.scale)
    embedding = None
    if condition and model.conditioning == "planes":
        x = graph.add("Concat", x, _planes(graph, condition, x), axis=1)
    elif condition:
        embedding = condition
        for name in ("embedding0", "embedding1"):
            embedding = graph.convolve(embedding, params[name])
            embedding = _rectified(graph, embedding, model)
    x = graph.convolve(x, params["head"])
    x = _level(graph, x, params, model, embedding, 0)
    x = graph.convolve(x, params["tail"])
    x = graph.add("Div", x, scale)
    x = graph.add("DepthToSpace", x, blocksize=model.scale, mode="DCR")
    return graph.crop(x, graph.sides(image)) if filling else x


def _fill(graph, x, multiple) -> str:
    """Pads by repeating the last rows and columns, up to a multiple of `multiple`."""
    missing = graph.add("Neg", graph.sides(x))
    missing = graph.add("Mod", missing, graph.constant(np.array([multiple])))
    none = graph.constant(np.zeros(6, np.int64))
    pads = graph.add("Concat", none, missing, axis=0)
    return graph.add("Pad", x, pads, mode="edge")


def _condition(graph, table) -> str:
    """Adds the compression features of the network, (1 or batch, FEATURES, 1, 1)."""
    quality = graph.constant(np.zeros(1, np.float32), "quality")  # the default
    quality = graph.add("Round", quality)
    nothing = graph.add("IsNaN", quality)
    quality = graph.add("Where", nothing, graph.constant(np.float32(0)), quality)
    first, last = graph.constant(np.float32(0)), graph.constant(np.float32(100))
    row = graph.add("Clip", quality, first, last)
    row = graph.add("Cast", row, to=7)  # int64
    return graph.add("Gather", graph.constant(table[..., None, None]), row)


def _planes(graph, condition, x) -> str:
    """Adds constant planes with the size of `x`."""
    one = graph.constant(np.array([1]))
    batch = graph.add("Shape", x, end=1)
    shape = graph.add("Concat", batch, one, graph.sides(x), axis=0)
    return graph.add("Expand", condition, shape)


def _level(graph, x, params, model, embedding, level) -> str:
    """Adds the nodes of `Deblocker._level`."""

    def block(x, name, non_local=False, mask=model.masks) -> str:
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
    x = _residual(graph, x, params["head"], model, embedding)
    if mask:
        trunk = x
        for i in blocks:
            trunk = _residual(graph, trunk, params[f"trunk{i}"], model)
        branch, shift = _mask(graph, x, params["mask"], model, non_local)
        x = graph.add("Add", x, graph.add("Mul", trunk, branch))
        if shift:
            x = graph.add("Add", x, shift)
    for i in blocks:
        x = _residual(graph, x, params[f"tail{i}"], model)
    y = _rectified(graph, x, model)
    scales = [
        graph.convolve(y, params["multi_dilation"][f"dilated{i}"], dilation)
        for i, dilation in enumerate(model.dilations)
    ]
    return graph.add("Add", x, graph.add("Concat", *scales, axis=1))


def _residual(graph, x, params, model, embedding=None) -> str:
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
    y = _rectified(graph, y, model)
    return graph.add("Add", x, graph.convolve(y, params["out"]))


def _rectified(graph, x, model) -> str:
    slope = model.negative_slope
    return graph.add("LeakyRelu", x, alpha=slope) if slope else graph.add("Relu", x)


def _mask(graph, x, params, model, non_local) -> tuple[str, str]:
    """Adds a mask branch; returns its mask and its term to add, or ''."""
    if non_local:
        x = _attention(graph, x, params["non_local"], model.key_pool)
    x = _residual(graph, x, params["before"], model)
    y = graph.convolve(x, params["down"], stride=2)
    for i in range(model.residual_blocks):
        y = _residual(graph, y, params[f"inner{i}"], model)
    y = graph.convolve(y, params["up"]["conv"])
    y = graph.add("DepthToSpace", y, blocksize=2, mode="DCR")
    x = _residual(graph, graph.add("Add", x, y), params["after"], model)
    shift = graph.convolve(x, params["shift"]) if model.mask_shifts else ""
    return graph.add("Sigmoid", graph.convolve(x, params["mask"])), shift


def _attention(graph, x, params, key_pool) -> str:
    source = _average(graph, x, key_pool) if key_pool > 1 else x
    flat = graph.constant(np.array([0, 0, -1]))

    def rows(x: str, name: str) -> str:
        """Applies a 1x1 convolution; returns (batch, channels, pixels)."""
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
    """Averages over squares, like `flax.linen.avg_pool` in `NonLocalAttention`.

    Incomplete squares are left out, unless the image is smaller than a square.
    """
    pool = {"kernel_shape": [side] * 2, "strides": [side] * 2}
    if side == 2:  # sides are even
        return graph.add("AveragePool", x, **pool)
    # The means leave out the padding. Squares that contain padding are cropped.
    means = graph.add("AveragePool", x, pads=[0, 0, side - 1, side - 1], **pool)
    whole = graph.add("Div", graph.sides(x), graph.constant(np.array([side])))
    return graph.crop(means, graph.add("Max", whole, graph.constant(np.array([1]))))
