"""Environment variables of TensorFlow, which reads records and writes logs here."""

import os


def quiet() -> None:
    """Hides TensorFlow's descriptions of the processor, which are no warnings.

    Call this before TensorFlow and JAX are imported. XLA obeys the same level, whose
    value is JAX's default. TensorFlow then does not use oneDNN, because no level hides
    its messages on processors with AVX512_VNNI. Reading records does not need it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
