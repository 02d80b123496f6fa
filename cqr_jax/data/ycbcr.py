"""Colour space conversion matrices of JPEG, from ITU-R BT.601."""

import numpy as np

# RGB to full-range Y, Cb and Cr, as JFIF defines them, and back.
FROM_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ]
)
TO_RGB = np.linalg.inv(FROM_RGB)
ZERO = np.array([0, 0.5, 0.5], np.float32)  # offset of Y, Cb and Cr: neutral chroma

# RGB in [0, 1] to Y in studio range minus 16, which is in 0 to 219.
STUDIO_LUMA = np.array([65.481, 128.553, 24.966])
