"""The colour spaces of JPEG, in one place: matrices of ITU-R BT.601."""

import numpy as np

# RGB to Y, Cb and Cr in full range, as JFIF defines it, and back.
FROM_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ]
)
TO_RGB = np.linalg.inv(FROM_RGB)
ZERO = np.array([0, 0.5, 0.5], np.float32)  # what no colour is stored as

# RGB in [0, 1] to Y in studio range, less 16: 0 to 219.
STUDIO_LUMA = np.array([65.481, 128.553, 24.966])
