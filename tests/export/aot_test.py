"""Tests of lowering for absent devices, and of counting operations."""

import jax
import jax.numpy as jnp
import pytest

from configs import aot as aot_config
from cqr_jax.export import aot
from tests.conftest import run


def _shape(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_flop_of_products_and_convolutions_equal_counts_by_hand():
    def convolve(image, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=dimensions
        )

    image, kernel = _shape(2, 8, 8, 3), _shape(3, 3, 3, 5)
    forward = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    assert aot.flop(convolve, image, kernel) == forward
    assert aot.flop(jnp.matmul, _shape(4, 5), _shape(5, 6)) == 2 * 4 * 5 * 6

    def weight_gradient(image, kernel):
        return jax.grad(lambda k: convolve(image, k).sum())(kernel)

    # Zeros between strides don't count: the output's gradient has 4x4 values.
    found = aot.flop(weight_gradient, image, kernel)
    assert found - forward == 2 * (3 * 3 * 3 * 5) * (2 * 4 * 4)

    def repeated(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=10)[0]

    assert aot.flop(jax.jit(repeated), _shape(4, 4)) == 10 * 2 * 4**3

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x @ x)

    assert aot.flop(either, _shape(4, 4)) == 2 * 2 * 4**3


@pytest.mark.slow
def test_programs_of_the_paper_lower_for_every_platform():
    config = aot_config.get_config()
    config.side, config.model.local_blocks = 64, 0  # outer blocks have all operations
    for program in aot.programs(config):
        lowered = aot.lower(program)
        assert lowered.platforms == ("cpu", "cuda", "tpu")
        assert "convolution" in lowered.mlir_module()


@pytest.mark.parametrize("preset", ["colour", "quickstart"])
def test_programs_of_other_presets_have_shapes(preset):
    config = aot_config.get_config(preset)
    config.side = 32
    for program in aot.programs(config):
        jax.eval_shape(program.function, *program.arguments(program.size))


def test_cost_of_the_deblocker_is_as_documented():
    # 15 G multiply-adds forward for one crop of 48x48
    config = aot_config.get_config()
    config.side = 48
    *_, restore = aot.programs(config)
    gflop = aot.flop(restore.function, *restore.arguments(1)) / 1e9
    assert gflop == pytest.approx(30, rel=0.05)


def test_unknown_topology_is_one_line(tmp_path):
    code, _, err = run(
        "cqr_jax.main",
        "--config=configs/aot.py:quickstart",
        "--config.topology=v0:1x1",
        f"--config.workdir={tmp_path}",
    )
    assert code == 1
    assert "error: config.topology=v0:1x1:" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_command_prints_and_writes_its_table(tmp_path):
    code, out, err = run(
        "cqr_jax.main",
        "--config=configs/aot.py:quickstart",
        f"--config.workdir={tmp_path}",
    )
    assert code == 0, err
    assert out == (tmp_path / "table.md").read_text()
    assert out.count("cpu, cuda, tpu") == 3
