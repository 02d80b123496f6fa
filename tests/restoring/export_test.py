"""The network in other runtimes gives what it gives here."""

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest

from cqr_jax import state, weights
from cqr_jax.errors import UserError
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.restoring import export, network, restorer

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=["shipped", "paper"])
def deblocker(request):
    """The one that is shipped, and a small one of the paper's making."""
    if request.param == "shipped":
        return weights.load(restorer.WEIGHTS, "deblocker")
    model = Deblocker(width=6, local_blocks=1, residual_blocks=2)
    params = state.init(model, 48, 0)["params"]
    params = jax.tree.map(
        lambda x: x + 0.1 * RNG.standard_normal(x.shape, np.float32), params
    )
    return weights.Weights(model, {"params": params}, {}, {})


def test_onnx(deblocker, tmp_path):
    path = tmp_path / "a.onnx"
    export.write(path, deblocker, 48)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = RNG.random((2, 48, 48), np.float32)
    (found,) = session.run(None, {session.get_inputs()[0].name: images[:, None]})
    expected = network.Network(deblocker)(images)
    assert np.abs(expected - images).max() > 0.01
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)


def test_stablehlo(deblocker, tmp_path):
    path = tmp_path / "a.stablehlo"
    export.write(path, deblocker, 48)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for shape in ((1, 16, 24), (3, 56, 40)):
        images = RNG.random(shape, np.float32)
        found = jax.jit(exported.call)(images[..., None])[..., 0]
        expected = network.Network(deblocker)(images)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("a.pb", 48, "must end in .onnx or .stablehlo"),
        ("a.onnx", 50, "must be a multiple of 8 from 16 on"),
    ],
)
def test_mistakes(deblocker, tmp_path, name, side, message):
    with pytest.raises(UserError, match=message):
        export.write(tmp_path / name, deblocker, side)
    assert not list(tmp_path.iterdir())
