"""What the alpha of a picture says about the object in it: what is clear, haze, dust, or a card.

Programs that cut objects out leave halos and shadows around them, people give pictures whose alpha
is 254 everywhere or which have round corners: that a pixel is not opaque says little by itself.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from o3d_jax.errors import InputError

Alpha = Float[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]

VISIBLE = 8 / 255
"""Alpha below which a pixel shows nothing: compression leaves such traces."""

FAINT = 0.1
"""Share of the picture's highest alpha below which a pixel counts as outside of the object."""

HALF = 0.5
"""Share of it from which a pixel is shown wherever it is."""

CLEAR = 0.8
"""Share of it from which a pixel is surely object; in parts thinner than edges, HALF is enough."""

EDGE = 2
"""Pixels from the background inwards that may be a blend of object and background."""

EDGES_ALONG = 256
"""The same, of larger pictures: their longest side divided by this, about a pixel of the result."""

SPECK = 0.005
"""Parts smaller than this share of the largest one are dust, and removed."""

CARD = 0.9
"""Share of its bounding box that a rectangle covers, be its corners as round as they may."""

CARD_EDGE = 0.01
"""Of a card's longest side: the width of outlines and blends along its edge."""


class CutOut(NamedTuple):
    """What a picture's alpha cuts out."""

    alpha: Alpha
    """Between 0 and 1: without halos, shadows and dust, and 1 where the file's is highest."""
    left_out: float
    """Share of what is visible in the file that is not any more."""


class Extent(NamedTuple):
    """Rows and columns of a part of a picture, each with its first and behind its last."""

    rows: slice
    columns: slice


def without_haze(alpha: Alpha) -> CutOut:
    """Returns alpha as it is where it is clear, enclosed by what is, or a blend along its edge.

    A blend lies between the object and nothing. So what is soft stays nowhere else: a halo, a
    haze, a shadow.

    Raises:
        InputError: nothing is visible.
    """
    top = _highest(alpha)
    shown = without_specks(alpha >= HALF * top)
    enclosed = np.asarray(ndimage.binary_fill_holes(shown), bool)
    width = _edge_width(alpha)
    blends = _within(shown, width) & _within(alpha < FAINT * top, width)
    kept = np.where(enclosed | blends, (alpha / top).clip(0, 1), 0).astype(np.float32)
    visible = alpha >= FAINT * top
    left_out = float((visible & (kept == 0)).sum() / visible.sum())
    return CutOut(kept, left_out)


def bounding_box(alpha: Alpha) -> Extent:
    """Returns where the object is: all that is clear, but for dust.

    Raises:
        InputError: nothing is visible.
    """
    top, width = _highest(alpha), _edge_width(alpha)
    shown = alpha >= HALF * top
    is_thin = shown & ~_within(~_within(~shown, width), width)
    return _box(without_specks(is_thin | (alpha >= CLEAR * top)))


def find_card(alpha: Alpha) -> Extent | None:
    """Returns where all that is shown is one rectangle, and None where it is not."""
    shown = np.asarray(ndimage.binary_fill_holes(alpha >= HALF), bool)
    box = _box(shown)
    return box if shown[box].mean() >= CARD else None


def inside_card(alpha: Alpha) -> Mask:
    """Pixels of a card without its outline; but what is at the picture's edge is inside."""
    card = np.asarray(ndimage.binary_fill_holes(alpha >= HALF), bool)
    width = max(EDGE, round(CARD_EDGE * max(alpha.shape)))
    inside = ~_within(~card, width)
    return inside if inside.any() else card


def without_specks(is_object: Mask) -> Mask:
    """The parts that are not dust beside the largest one."""
    regions = connected_regions(is_object, diagonal=True)
    areas = np.bincount(regions.ravel())
    areas[0] = 0  # The background.
    return (areas >= SPECK * areas.max())[regions] & is_object


def connected_regions(mask: Mask, diagonal: bool) -> Int[np.ndarray, "h w"]:
    """Number of the connected region each pixel is in, from 1; 0 outside of `mask`."""
    regions = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, ndimage.generate_binary_structure(2, 2 if diagonal else 1), regions)
    return regions


def _highest(alpha: Alpha) -> float:
    """Of the visible pixels, but for one in a thousand, which may be dust."""
    visible = alpha[alpha >= VISIBLE]
    if not visible.size:
        raise InputError("the image shows no object: all of it is transparent; make alpha higher")
    return float(np.quantile(visible, 0.999))


def _edge_width(alpha: Alpha) -> int:
    return max(EDGE, round(max(alpha.shape) / EDGES_ALONG))


def _within(mask: Mask, distance: int) -> Mask:
    """Pixels that have one of `mask` at most so far away in rows and in columns."""
    near = ndimage.maximum_filter(mask.astype(np.uint8), 2 * distance + 1, mode="constant")
    return near > 0


def _box(mask: Mask) -> Extent:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Extent(slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
