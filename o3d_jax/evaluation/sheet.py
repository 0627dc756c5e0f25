"""The picture to judge an evaluation by."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from o3d_jax.media.sheets import grid

COMPARISON_TILE = 88
"""Width of a tile, pixels; a sheet of ten objects stays below a megabyte."""

LABEL_LETTERS = 24
"""How many letters of a name are shown, the last ones: a name begins with its collection."""


class Shown(NamedTuple):
    """Some views that a model made of an object."""

    label: str
    """The object's."""
    model: str
    image: Float[np.ndarray, "h w 3"]
    """The input."""
    truth: Float[np.ndarray, "k H W 3"]
    views: Float[np.ndarray, "k H W 3"]
    renders: Float[np.ndarray, "k H W 3"]


def comparison_sheet(objects: Sequence[Sequence[Shown]]) -> Float[np.ndarray, "h w 3"]:
    """Returns a row for each object and model: input, truth, views, renders, error of renders.

    The error is white where there is none. All models' rows of an object are together.
    """
    rows = [row for models in objects for row in models]
    tiles = [
        [r.image, *r.truth, *r.views, *r.renders, *(1 - abs(r.renders.clip(0, 1) - r.truth))]
        for r in rows
    ]
    groups = ("truth", "views", "renders", "error")
    columns = ["input", *(name for name in groups for _ in rows[0].truth)]
    several = len(objects[0]) > 1
    labels = [row.label[-LABEL_LETTERS:] + several * f" {row.model}" for row in rows]
    return grid(tiles, labels, columns, COMPARISON_TILE, COMPARISON_TILE)
