"""Kinds of records, named as the folders of their TFDS builders.

Apart from `records`, for worker processes import neither TensorFlow nor JAX.
"""

LADDER = "qf_ladder"  # Y, with its JPEGs at each of QUALITIES
COLOUR = "colour"  # RGB or gray; JPEGs are made of it when it is read
KINDS = (LADDER, COLOUR)

QUALITIES = tuple(range(1, 31))  # JPEG quality factors of the ladder
