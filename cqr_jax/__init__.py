"""JPEG artifact removal guided by a compression quality ranker, in JAX and Flax."""

__version__ = "0.1.0"
