"""From any picture to what the model was trained on: one object, centred, on white.

Alpha is taken as it is; a plain background is found and removed; a busy one needs `rembg`.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage

from o3d_jax.errors import InputError
from o3d_jax.files.images import load_image

Rgba = Float[np.ndarray, "h w 4"]
Rgb = Float[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]

VISIBLE = 8 / 255
"""Alpha below which a pixel does not count as object: compression leaves such traces."""

PLAIN_BORDER = 0.85
"""Share of border pixels that must agree for a background to be plain; an object may touch it."""

PLAIN_TOLERANCE = 0.1
"""Largest difference in any channel between a background's colour and its pixels."""

LEAST_TOLERANCE = 2 / 255
"""Smallest such tolerance. Clean backgrounds get it, so that whitish objects on white survive."""

EDGE = 2
"""Pixels from the background inwards that may be a blend of object and background."""

SPECK = 0.005
"""Parts smaller than this share of the largest one are dust, and removed."""


def read_foreground(path: str | os.PathLike[str]) -> Rgba:
    """The picture in a file with its background transparent, not premultiplied.

    Raises:
        InputError: not a usable image, or no object to see in it; names the file.
    """
    rgba = load_image(path)
    try:
        return extract_foreground(rgba)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def extract_foreground(rgba: Rgba, rembg_model: Path | None = None) -> Rgba:
    """The picture with its background transparent, not premultiplied.

    In this order: alpha, if any pixel is not opaque; a plain background, removed from the border
    inwards; the network of `rembg`, if installed with its weights in a local file: `rembg_model`,
    by default `u2net.onnx` where rembg keeps it. Nothing is ever downloaded.

    Raises:
        InputError: no object can be told from the background.
    """
    if (rgba[..., 3] < 1).any():
        _check_visible(rgba)
        return rgba
    background = _plain_background(rgba[..., :3])
    if background is None:
        return _remove_by_network(rgba, rembg_model)
    color, tolerance = background
    return _remove_plain(rgba[..., :3], color, tolerance)


def _plain_background(rgb: Rgb) -> tuple[Float[np.ndarray, "3"], float] | None:
    """Colour of the border and its tolerance, or None if the border is busy."""
    border = np.concatenate([rgb[0], rgb[-1], rgb[1:-1, 0], rgb[1:-1, -1]])
    color = np.median(border, axis=0)
    difference = np.abs(border - color[None]).max(axis=-1)
    agree = difference <= PLAIN_TOLERANCE
    if agree.mean() < PLAIN_BORDER:
        return None
    # Twice the spread seen on the border: there is more background than border.
    spread = float(np.quantile(difference[agree], 0.99))
    return color, min(max(2 * spread, LEAST_TOLERANCE), PLAIN_TOLERANCE)


def _remove_plain(rgb: Rgb, color: Float[np.ndarray, "3"], tolerance: float) -> Rgba:
    """Flood from the border: equal colours enclosed by the object stay (a white eye on white)."""
    alike = np.abs(rgb - color[None, None]).max(axis=-1) <= tolerance
    regions = _regions(alike, diagonal=False)
    at_border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    is_object = ~(alike & np.isin(regions, at_border))
    if not is_object.any():
        raise InputError(
            "the image is one plain color, with no object to see; give an image of an object that "
            "stands out, or one with a transparent background"
        )
    return _soften_edge(rgb, _without_specks(is_object), color, tolerance)


def _without_specks(is_object: Mask) -> Mask:
    regions = _regions(is_object, diagonal=True)
    areas = np.bincount(regions.ravel())
    areas[0] = 0  # The background.
    return (areas >= SPECK * areas.max())[regions]


def _regions(mask: Mask, diagonal: bool) -> Int[np.ndarray, "h w"]:
    """Number of the connected region each pixel is in, from 1; 0 outside of `mask`."""
    regions = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, ndimage.generate_binary_structure(2, 2 if diagonal else 1), regions)
    return regions


def _soften_edge(
    rgb: Rgb, is_object: Mask, color: Float[np.ndarray, "3"], tolerance: float
) -> Rgba:
    """Solves pixel = alpha object + (1 - alpha) background for pixels at the edge.

    `object` is the nearest pixel further inside. Where there is none near (thin parts), or it
    looks like the background, the pixel stays opaque.
    """
    alpha = is_object.astype(np.float32)
    square = np.ones((2 * EDGE + 1, 2 * EDGE + 1))
    inside = np.asarray(ndimage.binary_erosion(is_object, square, border_value=1), bool)
    if not inside.any():
        return np.concatenate([rgb, alpha[..., None]], axis=-1)
    distance, nearest = np.zeros(inside.shape), np.zeros((2, *inside.shape), np.int32)
    ndimage.distance_transform_edt(
        ~inside, return_indices=True, distances=distance, indices=nearest
    )
    inner = rgb[nearest[0], nearest[1]]
    contrast = inner - color[None, None]
    norm = (contrast**2).sum(axis=-1)
    # Twice EDGE: a corner of the object is that far from its inside.
    solvable = is_object & ~inside & (distance <= 2 * EDGE) & (norm > (4 * tolerance) ** 2)
    solved = ((rgb - color[None, None]) * contrast).sum(axis=-1) / np.where(solvable, norm, 1)
    alpha = np.where(solvable, solved.clip(0, 1), alpha).astype(np.float32)
    blended = solvable & (alpha < 1)
    return np.concatenate([np.where(blended[..., None], inner, rgb), alpha[..., None]], axis=-1)


def _remove_by_network(rgba: Rgba, model: Path | None) -> Rgba:
    busy = "the background is busy; give an image with a transparent or plain background"
    if importlib.util.find_spec("rembg") is None:
        raise InputError(f"{busy}, or pip install 'o3d-jax[rembg]' to have it removed")
    if model is None:
        home = os.environ.get("U2NET_HOME") or os.path.join(
            os.environ.get("XDG_DATA_HOME", "~"), ".u2net"
        )  # As rembg does.
        model = Path(home).expanduser() / "u2net.onnx"
    if not model.is_file():
        raise InputError(
            f"{busy}, or put rembg's weights at {model} (`rembg d u2net` fetches them): "
            "they are not downloaded on their own"
        )
    import rembg  # pyright: ignore[reportMissingImports]  # optional and slow to import

    # The custom session takes a path, so it has nothing to download.
    session = rembg.new_session("u2net_custom", model_path=str(model))
    picture = Image.fromarray(np.round(rgba[..., :3] * 255).astype(np.uint8))
    mask = rembg.remove(picture, session=session, only_mask=True)
    alpha = np.asarray(mask, np.float32) / 255
    if not (alpha >= VISIBLE).any():
        raise InputError("rembg sees no object in the image; give one with a plain background")
    return np.concatenate([rgba[..., :3], alpha[..., None]], axis=-1)


def recentre_on_white(
    rgba: Rgba, size: int, border: float = 0.2
) -> Float[np.ndarray, "{size} {size} 3"]:
    """The object on a white square, its bounding box centred, its longest side 1 - `border` of it.

    Release, Sec. "Preprocessing" (there: bilinear, and any alpha above 0 counts as object).

    Raises:
        InputError: no pixel is visible.
    """
    if not 0 <= border < 1:
        raise ValueError(f"border {border} is not in [0, 1): it is the share of the square left")
    visible = _check_visible(rgba)
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    crop = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = crop.shape[:2]
    side = max(height, width) / (1 - border)
    pad = int(np.ceil((side - min(height, width)) / 2)) + 1
    alpha = crop[..., 3:]
    premultiplied = np.concatenate([crop[..., :3] * alpha, alpha], axis=-1)
    left, top = pad + (width - side) / 2, pad + (height - side) / 2
    canvas = np.pad(premultiplied, ((pad, pad), (pad, pad), (0, 0)))
    square = _resize(canvas, size, (left, top, left + side, top + side))
    return (square[..., :3] + 1 - square[..., 3:]).clip(0, 1)


def _check_visible(rgba: Rgba) -> Mask:
    """Pixels that show the object."""
    visible = rgba[..., 3] >= VISIBLE
    if not visible.any():
        raise InputError("the image shows no object: all of it is transparent; make alpha higher")
    return visible


def _resize(
    image: Float[np.ndarray, "h w c"], size: int, box: tuple[float, float, float, float]
) -> Float[np.ndarray, "{size} {size} c"]:
    """Part of the image (left, top, right, bottom; pixels), antialiased."""
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(
            (size, size), Image.Resampling.BICUBIC, box=box
        )
        for c in range(image.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
