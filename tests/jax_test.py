"""Tests that the installed JAX computes correctly on CPUs; some versions do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


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
