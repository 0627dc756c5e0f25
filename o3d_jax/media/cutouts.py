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
"""Share of the highest alpha from which a pixel is shown wherever it is."""

CLEAR = 0.8
"""Share of the highest alpha from which a pixel is surely object.

In parts that are thinner than two edges, HALF is enough. A card is clear: shadows of windows may
be darker than HALF.
"""

SHADOW_STEP = 0.1
"""What alpha falls by where a shadow begins behind a card, at least."""

EDGE = 2
"""Pixels, from the background inward, that may be a blend of object and background."""

EDGES_ALONG = 256
"""In larger pictures, the longest side divided by this replaces EDGE: a pixel of the result."""

SPECK = 0.005
"""Parts smaller than this share of the largest one are dust, and removed."""

CARD = 0.9
"""Share of its bounding box that a rectangle covers, however round its corners are."""

CARD_EDGE = 0.01
"""Share of a card's longest side that outlines and blends along its edge are wide."""


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
    """Removes halos, hazes, shadows and dust from a picture's alpha.

    Alpha stays as it is where it is clear, where clear pixels enclose it (glass), and where it is
    a blend: within an edge's width of both the object and of nothing. Everywhere else what is soft
    is no part of the object, and becomes 0.

    Raises:
        InputError: nothing is visible.
    """
    top = _highest(alpha)
    shown = without_specks(alpha >= HALF * top)
    enclosed = np.asarray(ndimage.binary_fill_holes(shown), bool)
    width = _edge_width(alpha)
    blends = _within(shown, width) & _within(alpha < FAINT * top, width)

    # Dividing by the highest alpha makes a picture opaque that is saved with 254 everywhere.
    kept = np.where(enclosed | blends, (alpha / top).clip(0, 1), 0).astype(np.float32)
    visible = alpha >= FAINT * top
    left_out = float((visible & (kept == 0)).sum() / visible.sum())
    return CutOut(kept, left_out)


def bounding_box(alpha: Alpha) -> Extent:
    """Returns the smallest rectangle that holds all that is clear, dust left out.

    Raises:
        InputError: nothing is visible.
    """
    top, width = _highest(alpha), _edge_width(alpha)
    shown = alpha >= HALF * top

    # Opening: what disappears when the mask shrinks and grows again is thinner than two edges.
    is_thin = shown & ~_within(~_within(~shown, width), width)
    return _box(without_specks(is_thin | (alpha >= CLEAR * top)))


def find_card(alpha: Alpha) -> Extent | None:
    """Returns the rectangle that is all the picture shows, or None if it shows another shape."""
    shown = _filled(alpha)
    box = _box(shown)
    return box if shown[box].mean() >= CARD else None


def fills_picture(card: Extent, alpha: Alpha) -> bool:
    """Returns whether a card is all of the picture, or is short of it by an outline's width."""
    width = _outline_width(alpha)
    return all(
        part.start <= width and side - part.stop <= width
        for part, side in zip(card, alpha.shape, strict=True)
    )


def inside_card(alpha: Alpha) -> Mask:
    """Returns the pixels of a card without its outline.

    A card that is cut off by the picture's edge has no outline there.
    """
    card = _filled(alpha)
    inside = ~_within(~card, _outline_width(alpha))
    return inside if inside.any() else card


def without_specks(is_object: Mask) -> Mask:
    """Returns the mask without its parts that are dust beside the largest one."""
    regions = connected_regions(is_object, diagonal=True)
    areas = np.bincount(regions.ravel())
    areas[0] = 0  # The background.
    return (areas >= SPECK * areas.max())[regions] & is_object


def connected_regions(mask: Mask, diagonal: bool) -> Int[np.ndarray, "h w"]:
    """Returns the number of the connected region each pixel is in, from 1; 0 outside of `mask`."""
    regions = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, ndimage.generate_binary_structure(2, 2 if diagonal else 1), regions)
    return regions


def _highest(alpha: Alpha) -> float:
    """Returns the highest alpha but for a thousandth of the visible pixels, which may be dust.

    Raises:
        InputError: no pixel is visible.
    """
    visible = alpha[alpha >= VISIBLE]
    if not visible.size:
        raise InputError("the image shows no object: all of it is transparent; make alpha higher")
    return float(np.quantile(visible, 0.999))


def _edge_width(alpha: Alpha) -> int:
    """Returns over how many pixels object and background may blend in a picture of this size."""
    return max(EDGE, round(max(alpha.shape) / EDGES_ALONG))


def _filled(alpha: Alpha) -> Mask:
    """Returns the shape of what the picture shows, without a shadow."""
    clear, shown = (
        np.asarray(ndimage.binary_fill_holes(alpha >= least), bool) for least in (CLEAR, HALF)
    )

    # Where a shadow begins, alpha makes a step; what fades out without one is a part of the shape.
    width = _edge_width(alpha)
    inside = clear & _within(~clear, width)
    outside = shown & _within(clear, width + 1) & ~_within(clear, width)
    if not (inside.any() and outside.any()):
        return shown
    step = np.median(alpha[inside]) - np.median(alpha[outside])
    return clear if step >= SHADOW_STEP else shown


def _outline_width(alpha: Alpha) -> int:
    """Returns how wide a card's outline may be, and blends along it, in pixels."""
    return max(EDGE, round(CARD_EDGE * max(alpha.shape)))


def _within(mask: Mask, distance: int) -> Mask:
    """Returns the pixels that have one of `mask` within `distance` rows and columns."""
    near = ndimage.maximum_filter(mask.astype(np.uint8), 2 * distance + 1, mode="constant")
    return near > 0


def _box(mask: Mask) -> Extent:
    """Returns the smallest rectangle around the mask's pixels, of which there must be one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Extent(slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
