"""Ahead-of-time lowering and compilation of the steps for absent devices."""

import functools
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import ml_collections
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params

from cqr_jax import files, losses, models, tables
from cqr_jax.data.compression import FEATURES
from cqr_jax.errors import UserError
from cqr_jax.export.program import PLATFORMS
from cqr_jax.models import colour
from cqr_jax.training import distributed, stages, state, steps

_log = logging.getLogger(__name__)

_GIB = 2**30
_LOWERED = ("", "batch", "GFLOP", "lowers for")
_COMPILED = (
    *("", "devices", "batch", "GFLOP", "GB moved", "GiB"),
    *("batch that would fit", "compiling"),
)


class Program(NamedTuple):
    """A function to compile, with the shapes of its arguments.

    Attributes:
      name: name in the tables.
      function: (state or variables, ranker_variables, batch) -> anything.
      state: shapes of the first argument.
      ranker_variables: shapes of the second argument.
      batch: batch size -> shapes of the third argument.
      size: batch size in the config: number of images, crops or pairs.
      grad_accum_steps: number of micro-batches per step.
      train: whether this is a training step, which runs on all devices and donates its
        state. Other programs run on one device.
    """

    name: str
    function: Callable
    state: Any
    ranker_variables: Any
    batch: Callable[[int], Any]
    size: int
    grad_accum_steps: int
    train: bool

    def arguments(self, size: int) -> tuple:
        return self.state, self.ranker_variables, self.batch(size)


def programs(config: ml_collections.ConfigDict) -> Iterator[Program]:
    """Yields both training steps and the restoration of an image.

    Args:
      config: config of `configs/aot.py`.
    """
    guided = losses.needs_ranker(config.loss)
    rank = stages.ranker_steps(config.ranker)
    deblock = stages.deblock_steps(config, rank.model if guided else None)
    ranker_state = _fresh_state(rank, config.ranker.patch)
    deblocker_state = _fresh_state(deblock, config.patch)
    yield Program(
        "ranker step",
        rank.train_step,
        ranker_state,
        {},
        functools.partial(_pairs, config.ranker.patch),
        config.ranker.batch_size,
        config.ranker.grad_accum_steps,
        train=True,
    )
    rungs = config.qualities_per_crop or len(config.qualities)
    channels = models.channels(deblock.model)
    yield Program(
        "deblocker step",
        deblock.train_step,
        deblocker_state,
        ranker_state.variables() if guided else {},
        functools.partial(_ladders, config.patch, channels, rungs),
        config.batch_size,
        config.grad_accum_steps,
        train=True,
    )
    yield Program(
        f"restore {config.side}x{config.side}",
        functools.partial(_restore, deblock.model),
        {"params": deblocker_state.params},
        {},
        functools.partial(_images, config.side, channels),
        1,
        1,
        train=False,
    )


def _fresh_state(learner: stages.Steps, patch: int):
    """Returns the shapes of the training state."""
    return jax.eval_shape(
        lambda: state.create(learner.model, patch, learner.optimizer, 0)
    )


def _images(side: int, channels: int, *leading: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leading, side, side, channels), jnp.uint8)


def _pairs(patch: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of stage 1."""
    image, label = _images(patch, 1, size), jax.ShapeDtypeStruct((size,), jnp.int32)
    return {"image_i": image, "image_j": image, "label_i": label, "label_j": label}


def _ladders(
    patch: int, channels: int, rungs: int, size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of stage 2 with `rungs` JPEGs of each crop."""
    clean = _images(patch, channels, size)
    batch = {"clean": clean, "compressed": _images(patch, channels, size, rungs)}
    if channels == 3:
        condition = jax.ShapeDtypeStruct((size, rungs, FEATURES), jnp.float32)
        batch["compression"] = condition
    return batch


def _restore(model, variables, ranker_variables, image: jax.Array) -> jax.Array:
    del ranker_variables
    apply = colour.on_rgb(model.apply) if models.channels(model) == 3 else model.apply
    restored = apply(variables, steps.to_float(image))
    return steps.to_levels(restored).astype(jnp.uint8)


def report(config: ml_collections.ConfigDict) -> None:
    """Lowers and compiles the programs; prints their costs and writes them as a table.

    The table is written to the workdir.

    Args:
      config: config of `configs/aot.py`.

    Raises:
      UserError: if the topology is unknown, if libtpu is not installed, or if a batch
        doesn't divide into its micro-batches.
    """
    for stage, where in ((config, "config"), (config.ranker, "config.ranker")):
        distributed.check_batch(
            stage.batch_size, f"{where}.batch_size", stage.grad_accum_steps
        )
    devices = _devices(config.topology) if config.topology else []
    lowered, compiled = [list(_LOWERED)], [list(_COMPILED)]
    for program in programs(config):
        gflop = flop(program.function, *program.arguments(program.size)) / 1e9
        exported = lower(program)
        platforms = ", ".join(exported.platforms)
        lowered.append([program.name, str(program.size), f"{gflop:.4g}", platforms])
        _log.info("%s: lowered for %s", program.name, platforms)
        if devices:
            compiled.append(_measure(program, devices, gflop, config.memory))
            _log.info("%s", "  ".join(compiled[-1]))
    texts = [tables.markdown(lowered)]
    if devices:
        kind = f"{len(devices)} x {devices[0].device_kind}"
        texts.append(
            f"{config.topology}, {kind}, jax {jax.__version__}. GFLOP, GB and GiB are "
            "per device. The batch that would fit, on all devices together, needs at "
            f"most {config.memory:g} GiB of each.\n\n" + tables.markdown(compiled)
        )
    text = "\n\n".join(texts)
    print(text)
    files.write(pathlib.Path(config.workdir) / "table.md", text + "\n")
    _log.info("table in %s", config.workdir)


def lower(program: Program) -> jax.export.Exported:
    """Lowers a program to StableHLO for all `PLATFORMS`."""
    export = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)
    return export(*program.arguments(program.size))


def flop(function: Callable, *arguments: Any) -> float:
    """Counts the floating-point operations of convolutions and matrix products.

    A multiply-add counts as two. The body of a loop counts once per iteration; XLA's
    own analysis counts it once. Only the most expensive branch of a conditional counts.

    Args:
      function: function to trace.
      *arguments: trees of arrays or of their shapes.
    """
    return _flop(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flop(jaxpr) -> float:
    return sum(_flop_of(equation) for equation in jaxpr.eqns)


def _flop_of(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = params["dimension_numbers"].rhs_spec[0]
        depth = math.prod(kernel) / kernel[outputs]
        return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
    inner = [_flop(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner)


def _devices(topology: str) -> list[jax.Device]:
    # Without a TPU there is no metadata server to query.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"config.topology={topology}: {line}; examples are v5e:2x2 and "
            "v4:2x2x1; libtpu is installed by: pip install -e '.[tpu]'"
        ) from None


def _measure(
    program: Program, devices: list[jax.Device], gflop: float, memory: float
) -> list[str]:
    """Compiles a program; returns its line of the table of compiled programs."""
    used = devices if program.train else devices[:1]
    count, unit = len(used), len(used) * program.grad_accum_steps
    size = -(-program.size // unit) * unit
    start = time.perf_counter()
    compiled = _compile(program, used, size)
    seconds = time.perf_counter() - start
    stats = compiled.memory_analysis()
    fixed = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    # Temporary memory, mostly activations, is proportional to the batch size.
    fits = size * (memory * _GIB - fixed) / stats.temp_size_in_bytes
    fits = max(0, int(fits // unit * unit))
    peak = fixed + stats.temp_size_in_bytes
    moved = compiled.cost_analysis()["bytes accessed"]
    return [
        program.name,
        str(count),
        str(size),
        f"{gflop * size / program.size / count:.4g}",
        f"{moved / 1e9:.3g}",
        f"{peak / _GIB:.3g}",
        str(fits),
        f"{seconds:.0f} s",
    ]


def _compile(program: Program, devices: list[jax.Device], size: int):
    everywhere, divided = distributed.shardings(devices)
    step = jax.jit(
        program.function,
        in_shardings=(everywhere, everywhere, divided),
        out_shardings=everywhere,
        donate_argnums=0 if program.train else (),
    )
    return step.lower(*program.arguments(size)).compile()
