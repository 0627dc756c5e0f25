"""Colors of vertices and faces, as OBJ and PLY files have them."""

import numpy as np
from jaxtyping import Float, Float64, Shaped

from o3d_jax.files.srgb import to_light

WIDEST = {"u1": 255, "u2": 65535, "i1": 127, "i2": 32767}
"""Full brightness by numpy's name of the type; in other types of whole numbers it is 255."""


def linear_rgba(colors: Float[np.ndarray, "n c"]) -> Float64[np.ndarray, "n 4"]:
    """Returns linear light and alpha of sRGB values in [0, 1]; without alpha they are opaque.

    Values far above 1 are taken for bytes, which some programs write as decimal numbers; what is
    not finite is white.
    """
    values = np.asarray(colors, np.float64)
    known = np.isfinite(values)
    most = values.max(where=known, initial=0)
    values = np.where(known, values / 255 if most > 2 else values, 1).clip(0, 1)
    alpha = values[:, 3:] if values.shape[1] == 4 else np.ones((len(values), 1))
    return np.concatenate([to_light(values[:, :3]), alpha], axis=-1)


def fractions(columns: list[Shaped[np.ndarray, " n"]]) -> Float64[np.ndarray, "n c"]:
    """Returns colors in [0, 1] of columns of any type of number, each by its own type's range."""
    return np.stack([_fraction(column) for column in columns], axis=-1)


def _fraction(column: Shaped[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    values = column.astype(np.float64)
    return values if column.dtype.kind == "f" else values / WIDEST.get(column.dtype.str[1:], 255)
