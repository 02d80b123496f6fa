"""Kinds of records, which are also the folder names of their TFDS builders.

This module is separate from `records` because worker processes import neither
TensorFlow nor JAX.
"""

LADDER = "qf_ladder"  # Y, with its JPEGs at each of QUALITIES
COLOUR = "colour"  # RGB or gray; JPEGs are made when the record is read
KINDS = (LADDER, COLOUR)

QUALITIES = tuple(range(1, 31))  # JPEG quality factors of the ladder
