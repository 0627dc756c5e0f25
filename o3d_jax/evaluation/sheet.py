"""Pictures to judge a model by: of a training run, and of an evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from o3d_jax.media.sheets import grid
from o3d_jax.steps.sample import Estimate
from o3d_jax.types import Batch


def evaluation_sheet(batch: Batch, found: Estimate) -> Float[np.ndarray, "h w 3"]:
    """Three rows an object: views, renders of its Gaussians, truth; the input on the left.

    Both arguments lie on the host; of what was found, the first objects are the batch's.
    """
    views = np.asarray(found.views)
    renders = np.asarray(found.reconstruction.rendering.rgb)
    truth = np.asarray(batch.images)
    rows, labels = [], []
    for i in range(truth.shape[0]):
        for name, images in (("views", views), ("renders", renders), ("truth", truth)):
            rows.append([truth[i, 0], *images[i]])
            labels.append(name)
    columns = ["input", *(f"view {k}" for k in range(truth.shape[1]))]
    return grid(rows, labels, columns)


COMPARISON_TILE = 88
"""Pixels, so that a sheet of ten objects stays below a megabyte."""

LABEL_LETTERS = 24
"""Of longer names, the last ones are shown: the first are those of its collection."""


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
    """A row for each object and model: input | truth | views | renders | error of the renders.

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
