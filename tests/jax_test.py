"""Tests that the installed JAX computes correctly on CPUs; some versions do not."""

import os
import subprocess
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cqr_jax import main

_HAS_FLAG = metadata.version("jaxlib").startswith("0.10.")


@pytest.mark.parametrize("rows", [16_385, 32_769])
def test_sums_of_squares_of_matrix_vector_products_are_correct(rows):
    """JAX's issue 39103: 0.10.2 is wrong in float32 from 32,769 rows on."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3, 3)).astype(np.float32)
    vectors = rng.standard_normal((rows, 3)).astype(np.float32)

    @jax.jit
    def sums(vectors):
        return jax.vmap(lambda vector: jnp.sum((matrix @ vector) ** 2))(vectors)

    expected = np.square(vectors @ matrix.T).sum(-1)
    np.testing.assert_allclose(sums(vectors), expected, rtol=1e-4, atol=1e-5)


def test_training_chooses_the_convolutions_on_cpus(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    main.set_up_xla("eval")
    assert "XLA_FLAGS" not in os.environ
    main.set_up_xla("deblock")
    flags = os.environ.get("XLA_FLAGS")
    assert flags == (main.EIGEN_CONVOLUTIONS if _HAS_FLAG else None)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    main.set_up_xla("deblock")
    assert "XLA_FLAGS" not in os.environ
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    main.set_up_xla("deblock")
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


@pytest.mark.skipif(not _HAS_FLAG, reason="this jaxlib is left alone")
def test_xla_knows_the_flag():
    subprocess.run(
        [sys.executable, "-c", "import jax; jax.numpy.ones(3).block_until_ready()"],
        env={**os.environ, "XLA_FLAGS": main.EIGEN_CONVOLUTIONS},
        check=True,
    )
