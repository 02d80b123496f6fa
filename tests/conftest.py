"""Fixtures and functions of all tests: small real records, and processes."""

import ast
import contextlib
import functools
import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest

from cqr_jax.data import tensorflow_setup

ROOT = pathlib.Path(__file__).parent.parent
tensorflow_setup.quiet()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# TensorFlow then does not import Keras, which takes a second in each process.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# Processes in other folders also import this checkout and not an installed package.
_PATHS = (str(ROOT), os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))
# Compiling takes most of the time of the tests and of the processes that they start.
# With --xla_cpu_use_fusion_emitters=false in addition it is faster still, but jaxlib
# 0.10.1 then computes wrong gradients.
FAST_COMPILING = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{FAST_COMPILING} {os.environ.get('XLA_FLAGS', '')}"


def pytest_collection_modifyitems(items):
    """Lets each of the two workers begin with half of the slow tests.

    A slow test at the end would keep one worker waiting for the other.
    """
    slow = [x for x in items if x.get_closest_marker("slow")]
    fast = [x for x in items if not x.get_closest_marker("slow")]
    middle = len(fast) // 2
    items[:] = slow[::2] + fast[:middle] + slow[1::2] + fast[middle:]


def check_cause(error: BaseException) -> None:
    """Fails if an error that stands for a damaged file hides a mistake in our code."""
    cause = error.__context__
    if isinstance(cause, TypeError | AttributeError | NameError):
        last = traceback.extract_tb(cause.__traceback__)[-1]
        assert not last.filename.startswith(str(ROOT / "cqr_jax")), repr(cause)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder of four photographs of 264x200 pixels as gray PNGs."""
    from PIL import Image

    from cqr_jax.data import jpeg
    from data_prep import sources

    folder = tmp_path_factory.mktemp("photographs")
    for path in sources.embedded("train")[:4]:
        y = jpeg.load_luma(path)[100:300, 60:324]
        Image.fromarray(y).save(folder / f"{path.stem}.png")
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, photographs):
    """Root of the records 'photos', made of `photographs`."""
    from data_prep.build import build

    data_dir = tmp_path_factory.mktemp("data")
    build(str(photographs), str(data_dir), "photos", processes=1)
    return data_dir


@pytest.fixture(scope="session")
def builder(data_dir):
    from cqr_jax.data import records

    return records.open_builder(str(data_dir), "photos")


@pytest.fixture
def image():
    """A uint8 photograph of 96x80 pixels."""
    from cqr_jax.data import jpeg
    from data_prep import sources

    return np.ascontiguousarray(jpeg.load_luma(sources.embedded("test")[0])[:96, :80])


def overridden(config, flags):
    """Sets fields of a config as the flags --config.FIELD=VALUE do, and returns it."""
    for flag in flags:
        field, text = flag.removeprefix("--config.").split("=", 1)
        *groups, name = field.split(".")
        group = functools.reduce(getattr, groups, config)
        keep = isinstance(group[name], str)
        group[name] = text if keep else ast.literal_eval(text)
    return config


FRESH = {
    "ranker": {"width": 2, "hidden": 8},
    "deblocker": {
        "width": 6,
        "local_blocks": 0,
        "residual_blocks": 0,
        "scale": 2,
        "key_pool": 8,
    },
    "colour": {
        "width": 4,
        "local_blocks": 0,
        "residual_blocks": 0,
        "scale": 2,
        "key_pool": 8,
        "channels": 3,
        "deeper_widths": (4,),
        "conditioning": "modulation",
        "embedding": 4,
    },
}


@functools.cache
def _fresh(kind):
    import jax

    from cqr_jax.models.deblocker import Deblocker
    from cqr_jax.models.init import init  # `training.state` needs the extra `train`
    from cqr_jax.models.ranker import Ranker

    model = (Ranker if kind == "ranker" else Deblocker)(**FRESH[kind])
    variables = init(model, 48, 0)
    if kind != "colour":
        return variables
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + np.float32(0.05) * rng.standard_normal(x.shape, np.float32),
        variables,
    )


def save_fresh(folder, kind) -> pathlib.Path:
    """Writes the weights of a small untrained model and returns their path.

    A model of kind 'deblocker' is the identity. One of kind 'colour' is a colour
    deblocker that changes every pixel, depending on the compression.
    """
    from cqr_jax import weights

    path = folder / f"{kind}.safetensors"
    held = "ranker" if kind == "ranker" else "deblocker"
    weights.save(path, held, FRESH[kind], _fresh(kind), {})
    return path


_STARTED: list[subprocess.Popen] = []
PATIENCE = 600  # seconds after which a process is killed


def start(*args, **kwargs) -> subprocess.Popen:
    """Starts `python -m ARGS` in the repository; its output is text."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.daemon = True
    watchdog.start()
    _STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
    """Kills the processes that a failed test left, but not those of module fixtures."""
    older = len(_STARTED)
    yield
    for process in _STARTED[older:]:
        if process.poll() is None:
            process.kill()
            process.communicate()
    del _STARTED[older:]


def call(
    main: Callable[[], None], *args, cwd: str | os.PathLike = "."
) -> tuple[int, str, str]:
    """Runs a command's `main` in this process, which is faster; returns as `run`.

    Standard input is empty. What the command sets for its process is set back: signals,
    warnings, the environment and Pillow's limit of pixels. Loaded networks stay cached.
    """
    from PIL import Image

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    code = 0
    names = ("SIGINT", "SIGTERM", "SIGPIPE")
    numbers = [getattr(signal, x) for x in names if hasattr(signal, x)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        with (
            warnings.catch_warnings(),
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO())),
            mock.patch.object(sys, "argv", [main.__module__, *map(str, args)]),
            mock.patch.object(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS),
            mock.patch.dict(os.environ),
        ):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: Python did not set it
                signal.signal(number, handler)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return code, *texts


def run(*args, **kwargs) -> tuple[int, str, str]:
    """Runs `python -m ARGS`; returns exit code, standard output, standard error."""
    process = start(*args, **kwargs)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
