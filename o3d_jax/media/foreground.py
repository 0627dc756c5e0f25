"""From any picture to what the model was trained on: one object, centered, on white.

A mask is obeyed; alpha is taken where it cuts something out (`cutouts`); a plain background is
found and removed; a busy one needs `rembg`.
"""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from o3d_jax.errors import InputError
from o3d_jax.files.images import load_image
from o3d_jax.media.backgrounds import Rgba, find_background, without_background
from o3d_jax.media.cutouts import (
    HALF,
    VISIBLE,
    Alpha,
    Extent,
    Mask,
    bounding_box,
    fills_picture,
    find_card,
    inside_card,
    without_haze,
)

NOTED = 0.02
"""Share of the visible pixels above which leaving them out is told to the user."""

MOST_BORDER = 0.9
"""Share of the picture's border above which a mask that keeps it is told to the user."""


class Foreground(NamedTuple):
    """An object cut out of its picture."""

    rgba: Rgba
    """The picture with its background transparent, not premultiplied."""
    note: str | None
    """One line for the user on what was done, if it is not what everyone expects."""


def read_foreground(path: str | os.PathLike[str], mask: Path | None = None) -> Foreground:
    """Returns the object in a file; a file `mask` says where it is, white on black or by its alpha.

    Raises:
        InputError: not a usable image, or no object to see in it; names the file.
    """
    rgba = load_image(path)
    try:
        if mask is not None:
            return _masked(rgba, mask)
        return extract_foreground(rgba)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _masked(rgba: Rgba, path: Path) -> Foreground:
    """Returns the picture with its alpha multiplied by a mask, which may be of another size.

    Raises:
        InputError: the mask is of another shape, or leaves nothing visible.
    """
    mask = load_image(path)
    (height, width), (rows, columns) = rgba.shape[:2], mask.shape[:2]

    # Shapes agree to one pixel of the smaller picture, to which programs round its sides.
    if abs(height * columns - width * rows) > max(height, width, rows, columns):
        raise InputError(
            f"the mask {path} is {columns} x {rows} pixels, the image {width} x {height}; give one "
            "of the image's shape"
        )

    # Bicubic weights are partly negative and overshoot at edges.
    whole = (0.0, 0.0, float(columns), float(rows))
    resized = _resize(_coverage(mask)[..., None], (height, width), whole)[..., 0]
    alpha = rgba[..., 3] * resized.clip(0, 1)
    if not (alpha >= VISIBLE).any():
        raise InputError(f"the mask {path} leaves nothing of the image; paint the object white")

    # That is obeyed, for an object may be seen so; but mostly it is not what is meant.
    note = None
    if (alpha[_border_of(np.ones_like(alpha, bool))] >= HALF).mean() > MOST_BORDER:
        note = (
            "the mask keeps all along the picture's border, as one that is inverted does; paint "
            "the object white and the rest black"
        )
    return Foreground(_with_alpha(rgba, alpha), note)


def _coverage(mask: Rgba) -> Alpha:
    """Returns what a mask keeps of each pixel: by its alpha if that cuts out a shape, or its light.

    The most in the mask is all: people save 0 and 1 as bytes, or paint in red.
    """
    alpha, light = mask[..., 3], mask[..., :3].max(axis=-1) * mask[..., 3]
    varies = np.ptp(alpha) > 0
    card = find_card(alpha / alpha.max()) if varies else None

    # A picture of white and black is opaque, as a card is, though some pixels may not be.
    is_card = card is not None and fills_picture(card, alpha) and np.ptp(mask[..., :3]) > 0
    values = light if is_card or not varies else alpha
    return values / max(float(values.max()), 1e-9)


def extract_foreground(rgba: Rgba, rembg_model: Path | None = None) -> Foreground:
    """Cuts the object out, by whatever tells it from its background.

    In this order: alpha, if it cuts something out; a plain background, removed from the border
    inwards; the network of `rembg`, if installed with its weights in a local file: `rembg_model`,
    by default `u2net.onnx` where rembg keeps it. Nothing is ever downloaded.

    Raises:
        InputError: no object can be told from the background.
    """
    found = without_haze(rgba[..., 3])

    # What is removed may have been wanted, such as glass or fur; so the user hears of it.
    note = None
    if found.left_out > NOTED:
        note = (
            f"{found.left_out:.0%} of what is visible is soft, as halos and shadows are, and was "
            "left out; give --mask to keep it"
        )

    # An opaque picture, too, is a card: its alpha cuts out nothing.
    cut = Foreground(_with_alpha(rgba, found.alpha), note)
    card = find_card(found.alpha)
    return cut if card is None else _on_card(rgba, cut, card, rembg_model)


def _on_card(rgba: Rgba, cut: Foreground, card: Extent, rembg_model: Path | None) -> Foreground:
    """Cuts out what is on an opaque rectangle: the whole picture, or a window in it.

    A picture that is opaque but for its corners is as good as an opaque one. One within a picture
    may be the object itself: a brick, a painted box.
    """
    rgb, alpha = rgba[..., :3], cut.rgba[..., 3]
    is_picture = card == Extent(*(slice(0, side) for side in alpha.shape))

    # The card's own outline may be drawn, or a blend; the background begins behind it.
    inside = inside_card(alpha)
    background = find_background(rgb, _border_of(inside))
    if background is None and fills_picture(card, alpha):
        return _remove_by_network(rgba, rembg_model)
    if background is None:
        note = "the object is a rectangle with a busy border, and was kept as it is"
        return Foreground(cut.rgba, cut.note or note)

    # Around the card, outline and round corners included, the same background goes on, so that
    # the flood from the rectangle's border passes them.
    on_plain = np.where((inside & (alpha > 0))[..., None], rgb, background.colors)
    behind = background._replace(colors=background.colors[card])
    try:
        cleaned = without_background(on_plain[card].astype(np.float32), behind)
    except InputError:  # All of it is of one color.
        if is_picture:
            raise
        return cut

    # Where the card itself is not opaque, neither is what is on it.
    result = np.zeros_like(rgba)
    result[card] = cleaned
    result[..., 3] *= alpha
    if is_picture and (inner := _picture_within(result[..., 3])) is not None:
        return _on_card(result, Foreground(result, None), inner, rembg_model)
    return Foreground(result, _note_on_card(cleaned[..., 3], bool((rgba[..., 3] == 1).all())))


def _picture_within(left: Alpha) -> Extent | None:
    """Returns the rectangle in a frame, or between bars, if that is what is left of a picture."""
    inner = find_card(left)
    if inner is None or inner == Extent(*(slice(0, side) for side in left.shape)):
        return None
    spans = any(part == slice(0, side) for part, side in zip(inner, left.shape, strict=True))
    return inner if spans or fills_picture(inner, left) else None


def _note_on_card(left: Alpha, opaque: bool) -> str | None:
    """Returns what the user should know of what is left on a card, whose sides are the array's."""
    sides = (left[0], left[-1], left[:, 0], left[:, -1])
    reached = sum(bool((side >= HALF).any()) for side in sides)
    if reached >= 3:
        return (
            f"what was cut out reaches {'all four' if reached == 4 else 'three'} sides, as what "
            "remains of a background may; give --mask if not all of it is the object"
        )
    if opaque:
        return None
    return "a rectangle with a plain border was taken for background; give --mask to keep it"


def _with_alpha(rgba: Rgba, alpha: Float[np.ndarray, "h w"]) -> Rgba:
    """Returns the picture with this alpha in place of its own."""
    return np.concatenate([rgba[..., :3], alpha[..., None]], axis=-1)


def _border_of(mask: Mask) -> Mask:
    """Returns the mask's pixels that are beside one outside of it, or at the picture's edge."""
    return mask & ~np.asarray(ndimage.binary_erosion(mask), bool)


def _remove_by_network(rgba: Rgba, model: Path | None) -> Foreground:
    """Cuts the object out by the network of `rembg`, from weights that are on this machine.

    Raises:
        InputError: rembg or its weights are missing, with how to get them; or it sees no object.
    """
    if model is None:
        # Where rembg itself looks for its weights.
        home = os.environ.get("U2NET_HOME") or os.path.join(
            os.environ.get("XDG_DATA_HOME", "~"), ".u2net"
        )
        model = Path(os.path.expanduser(home)) / "u2net.onnx"

    # All that is missing in one message, so that nobody has to come back for the second half.
    steps = []
    if importlib.util.find_spec("rembg") is None:
        steps.append("pip install 'o3d-jax[rembg]'")
    if not model.is_file():
        steps.append(f"`rembg d u2net` for its weights, which are to be at {model}")
    if steps:
        raise InputError(
            "the background is busy; give an image with a transparent or plain background, or a "
            f"mask (--mask FILE), or have it removed by rembg: {', then '.join(steps)}; nothing is "
            "installed or downloaded on its own"
        )
    import rembg  # pyright: ignore[reportMissingImports]  # optional and slow to import

    # The custom session takes a path, so it has nothing to download.
    session = rembg.new_session("u2net_custom", model_path=str(model))
    picture = Image.fromarray(np.round(rgba[..., :3] * 255).astype(np.uint8))
    mask = rembg.remove(picture, session=session, only_mask=True)
    alpha = np.asarray(mask, np.float32) / 255
    if not (alpha >= VISIBLE).any():
        raise InputError("rembg sees no object in the image; give one with a plain background")
    return Foreground(_with_alpha(rgba, alpha), "the background was removed by rembg")


def recenter_on_white(
    rgba: Rgba, size: int, border: float = 0.2
) -> Float[np.ndarray, "{size} {size} 3"]:
    """Puts the object on a white square: centered, its longest side 1 - `border` of the square's.

    Centered is the bounding box of what is clear; what is soft around it is shown, too. Release,
    Sec. "Preprocessing" (there: bilinear, and any alpha above 0 counts as object).

    Raises:
        InputError: no pixel is visible.
    """
    if not 0 <= border < 1:
        raise ValueError(
            f"border {border} is not in [0, 1): it is the share of the square that stays white"
        )

    # The square in pixels of the picture, of which it may need more than there are on any side.
    rows, columns = bounding_box(rgba[..., 3])
    height, width = rows.stop - rows.start, columns.stop - columns.start
    side = max(height, width) / (1 - border)
    pad = int(np.ceil((side - min(height, width)) / 2)) + 1

    # Colors are resized times alpha: otherwise those of transparent pixels bleed into the edge.
    alpha = rgba[..., 3:]
    premultiplied = np.concatenate([rgba[..., :3] * alpha, alpha], axis=-1)
    left = pad + columns.start + (width - side) / 2
    top = pad + rows.start + (height - side) / 2
    canvas = np.pad(premultiplied, ((pad, pad), (pad, pad), (0, 0)))
    square = _resize(canvas, (size, size), (left, top, left + side, top + side))

    # Over white: alpha color + (1 - alpha) 1.
    return (square[..., :3] + 1 - square[..., 3:]).clip(0, 1)


def _resize(
    image: Float[np.ndarray, "h w c"],
    size: tuple[int, int],
    box: tuple[float, float, float, float],
) -> Float[np.ndarray, "{size[0]} {size[1]} c"]:
    """Resizes a part of the image, antialiased.

    `size` is (height, width); `box` is (left, top, right, bottom) in pixels of the image.
    """
    height, width = size
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC, box=box
        )
        for c in range(image.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
