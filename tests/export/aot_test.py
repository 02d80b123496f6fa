"""Tests of lowering for absent devices, and of counting operations."""

import jax
import jax.numpy as jnp
import pytest

from configs import aot as aot_config
from cqr_jax import tasks
from cqr_jax.errors import UserError
from cqr_jax.export import aot


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
    config.side = 64
    # The other blocks have all operations.
    config.model.local_blocks = config.model.residual_blocks = 0
    for program in aot.programs(config):
        lowered = aot.lower(program)
        assert lowered.platforms == ("cpu", "cuda", "tpu")
        assert "convolution" in lowered.mlir_module()


def test_programs_of_colour_have_shapes():
    config = aot_config.get_config("colour")
    config.side, config.model.local_blocks = 32, 0
    _, *others = aot.programs(config)  # the first is the ranker's
    for program in others:
        jax.eval_shape(program.function, *program.arguments(program.size))


def test_cost_of_the_deblocker_is_as_documented():
    # 15 G multiply-adds forward for one crop of 48x48
    config = aot_config.get_config()
    config.side = 48
    *_, restore = aot.programs(config)
    gflop = aot.flop(restore.function, *restore.arguments(1)) / 1e9
    assert gflop == pytest.approx(30, rel=0.05)


def test_unknown_topology_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as the task sets it
    config = aot_config.get_config("quickstart")
    config.topology, config.workdir = "v0:1x1", str(tmp_path)
    with pytest.raises(UserError, match=r"^config\.topology=v0:1x1:"):
        aot.report(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["", "ranker."])
def test_pmap_is_an_error(where):
    config = aot_config.get_config("quickstart")
    config.update_from_flattened_dict({f"{where}parallel": "pmap"})
    with pytest.raises(
        UserError, match=rf"^config\.{where}parallel='pmap': choose jit"
    ):
        tasks.check(config)


def test_task_prints_and_writes_its_table(tmp_path, capsys):
    config = aot_config.get_config("quickstart")
    config.workdir, config.side, config.model.local_blocks = str(tmp_path), 64, 0
    tasks.TASKS[config.task].run(config)
    out = capsys.readouterr().out
    assert out == (tmp_path / "table.md").read_text()
    assert out.count("cpu, cuda, tpu") == 3
