"""Definition of PSNR that training and evaluation share."""

import math

PEAK = 255.0  # largest level of an 8-bit image


def psnr_of_mse(mse: float) -> float:
    """Returns the PSNR in dB of a mean squared error on the scale of 0 to 255.

    The PSNR of an error of zero is infinite.
    """
    return math.inf if mse == 0 else 10 * math.log10(PEAK**2 / mse)
