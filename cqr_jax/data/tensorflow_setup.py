"""Settings of TensorFlow, which only reads and writes records here."""

import os


def quiet() -> None:
    """Lets TensorFlow log errors only. Call this before TensorFlow is imported.

    TensorFlow then does not use oneDNN, whose messages no log level turns off on
    processors with AVX512_VNNI. Reading records does not need it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
