"""Plain backgrounds of pictures: what color they have behind the object, and the object without it.

Plain is what a border says in one color, or in one that changes smoothly from side to side, as on a
sheet of paper under a lamp.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from o3d_jax.errors import InputError
from o3d_jax.media.cutouts import EDGE, Mask, connected_regions, without_specks

Rgba = Float[np.ndarray, "h w 4"]
Rgb = Float[np.ndarray, "h w 3"]

PLAIN_BORDER = 0.85
"""Share of border pixels that must agree for a background to be plain; an object may touch it."""

PLAIN_TOLERANCE = 0.1
"""Largest difference in any channel between a background's color and its pixels."""

LEAST_TOLERANCE = 2 / 255
"""Smallest such tolerance. Clean backgrounds get it, so that whitish objects on white survive."""

SMOOTH_FIT, SMOOTH_TOLERANCE = 0.03, 0.06
"""How well the border of one whose color changes must agree; and the smallest tolerance there, for
the color is known at the border, and a guess elsewhere."""

EVEN_BORDER, EVEN_TOLERANCE = 0.25, 4 / 255
"""Or: share of the border that must agree, and how closely. No photograph is as even as that."""

FOR_WHITE = 0.35
"""What white gains over another even color, as a share of the border: many objects are on white."""


class Background(NamedTuple):
    """What is behind an object."""

    colors: Rgb
    """Its color at each pixel, also where the object hides it."""
    tolerance: float
    """How far it differs from that in any channel."""


def find_background(rgb: Rgb, border: Mask) -> Background | None:
    """Returns the background that a border shows, or None if it is busy."""
    shown = rgb[border]
    color = np.median(shown, axis=0)
    one = None
    if (_difference(shown, color[None]) <= PLAIN_TOLERANCE).mean() >= PLAIN_BORDER:
        one = _of_one_color(rgb, border, color, PLAIN_TOLERANCE)

    # A change of color that explains the border much better than one color is a change.
    if one is None or one.tolerance > SMOOTH_TOLERANCE:
        smooth = _smooth_background(rgb, border)
        if smooth is not None and (one is None or one.tolerance > smooth.tolerance):
            return smooth
    if one is not None:
        return one
    color = _even_color(shown)
    return None if color is None else _of_one_color(rgb, border, color, EVEN_TOLERANCE)


def _difference(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "#n 3"]) -> np.ndarray:
    """Returns the largest difference of each color in any channel."""
    return np.abs(a - b).max(axis=-1)


def _of_one_color(rgb: Rgb, border: Mask, color: Float[np.ndarray, "3"], most: float) -> Background:
    """Returns a background of one color, from those pixels of the border that are at `most` off."""
    difference = _difference(rgb[border], color[None])
    tolerance = _tolerance(difference[difference <= most], LEAST_TOLERANCE)
    return Background(np.broadcast_to(color, rgb.shape), tolerance)


def _tolerance(differences: Float[np.ndarray, " n"], least: float) -> float:
    """Returns twice the spread seen on the border: there is more background than border."""
    return min(max(2 * float(np.quantile(differences, 0.99)), least), PLAIN_TOLERANCE)


def _smooth_background(rgb: Rgb, border: Mask) -> Background | None:
    """Returns the background whose color is a quadratic function of the place, if there is one."""
    y, x = (np.arange(side) / side - 0.5 for side in border.shape)
    rows, columns = np.nonzero(border)
    known, shown = _terms(y[rows], x[columns]), rgb[border].astype(np.float64)

    # An object that touches the border is left out: what fits worst, again and again.
    factors, difference = np.zeros((6, 3)), np.zeros(len(shown))
    for _ in range(8):
        fitting = difference <= np.quantile(difference, PLAIN_BORDER)
        factors = np.linalg.lstsq(known[fitting], shown[fitting], rcond=None)[0]
        difference = _difference(shown, known @ factors)
    agree = difference <= SMOOTH_FIT
    if np.mean(agree) < PLAIN_BORDER:
        return None

    # All terms but the last depend on the row or on the column alone.
    across, down = _terms(0 * x, x) @ factors, (_terms(y, 0 * y) @ factors - factors[0])
    colors = across.astype(np.float32)[None] + down.astype(np.float32)[:, None]
    colors += np.multiply.outer(np.outer(y, x).astype(np.float32), factors[5].astype(np.float32))
    return Background(colors.clip(0, 1), _tolerance(difference[agree], SMOOTH_TOLERANCE))


def _terms(y: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 6"]:
    return np.stack([np.ones_like(x), x, x * x, y, y * y, x * y], axis=-1)


def _even_color(border: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3"] | None:
    """Returns the color of the free parts of a border that an object touches, if they are even."""
    colors, counts = np.unique(np.round(border * 255) / 255, axis=0, return_counts=True)

    # An even object may touch more of the border than the background has; white tips the scales.
    best, most = None, 0.0
    for color in colors[np.argsort(counts)[-8:]].astype(np.float32):
        share = (_difference(border, color[None]) <= EVEN_TOLERANCE).mean()
        likely = share + FOR_WHITE * (color.min() > 1 - EVEN_TOLERANCE)
        if share >= EVEN_BORDER and likely > most:
            best, most = color, likely
    return best


def without_background(rgb: Rgb, background: Background) -> Rgba:
    """Removes the background by a flood from the border; the object encloses colors like it.

    So a white eye on white stays.

    Raises:
        InputError: nothing is left.
    """
    alike = np.abs(rgb - background.colors).max(axis=-1) <= background.tolerance
    regions = connected_regions(alike, diagonal=False)
    at_border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])

    # Region 0 is all that differs from the background; `alike` keeps it out of the flood.
    is_object = ~(alike & np.isin(regions, at_border))
    if not is_object.any():
        raise InputError(
            "the image is one plain color, with no object to see; give an image of an object that "
            "stands out, or one with a transparent background"
        )
    return _soften_edge(rgb, without_specks(is_object), background)


def _soften_edge(rgb: Rgb, is_object: Mask, background: Background) -> Rgba:
    """Makes edges soft: solves pixel = alpha object + (1 - alpha) background for alpha there.

    `object` is the nearest pixel further inside. Where there is none near (thin parts), or it
    looks like the background, the pixel stays opaque.
    """
    # No blend reaches further than EDGE pixels: what remains when the object shrinks by so many
    # is its own color.
    alpha = is_object.astype(np.float32)
    square = np.ones((2 * EDGE + 1, 2 * EDGE + 1))
    inside = np.asarray(ndimage.binary_erosion(is_object, square, border_value=1), bool)
    if not inside.any():
        return np.concatenate([rgb, alpha[..., None]], axis=-1)

    # For each pixel, the nearest one inside and how far away it is.
    distance, nearest = np.zeros(inside.shape), np.zeros((2, *inside.shape), np.int32)
    ndimage.distance_transform_edt(
        ~inside, return_indices=True, distances=distance, indices=nearest
    )

    # Three equations, one per channel, for one alpha. With p, o, b for pixel, object, background,
    # least squares give alpha = (p - b) . (o - b) / |o - b|^2: well posed only where o is not b.
    inner = rgb[nearest[0], nearest[1]]
    contrast = inner - background.colors
    norm = (contrast**2).sum(axis=-1)

    # Twice EDGE: a corner of the object is that far from its inside.
    solvable = is_object & ~inside & (distance <= 2 * EDGE)
    solvable &= norm > (4 * background.tolerance) ** 2
    solved = ((rgb - background.colors) * contrast).sum(axis=-1) / np.where(solvable, norm, 1)
    alpha = np.where(solvable, solved.clip(0, 1), alpha).astype(np.float32)

    # A blended pixel has the background in its color; the object's own replaces it.
    blended = solvable & (alpha < 1)
    return np.concatenate([np.where(blended[..., None], inner, rgb), alpha[..., None]], axis=-1)
