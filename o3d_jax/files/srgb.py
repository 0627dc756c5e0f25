"""sRGB's transfer curve (IEC 61966-2-1): between the values in image files and light.

Both are in [0, 1], and results have the type of what is given: float32 stays float32.
"""

import numpy as np
from jaxtyping import Float


def to_light(display: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Returns the linear light of values as they are in files."""
    curve = ((display + 0.055) / 1.055) ** 2.4
    return np.where(display <= 0.04045, display / 12.92, curve)


def to_display(light: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Returns the values in a file that stand for linear light: the inverse of `to_light`."""
    curve = 1.055 * light ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, 12.92 * light, curve)
