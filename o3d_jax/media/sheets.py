"""Contact sheets: many small images in one, with labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float
from PIL import Image, ImageDraw, ImageFont

from o3d_jax.errors import InputError
from o3d_jax.files.images import to_bytes

Tile = Float[Array | np.ndarray, "_ _ 3"]  # Each its own size.

LEAST_TILE = 128
"""Pixels; smaller images are enlarged to it, so that one can see them and read their labels."""

MOST_TILE = 512
"""Pixels; larger images are shrunk to it, so that a sheet stays small enough to open."""

GAP = 4
"""Pixels between tiles."""

FONT_SIZE = 12
"""Height of the labels' letters, in pixels."""


def grid(
    rows: Sequence[Sequence[Tile]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    least_tile: int = LEAST_TILE,
    most_tile: int = MOST_TILE,
) -> Float[np.ndarray, "H W 3"]:
    """Returns one picture on white with a tile for each image in `rows`, values in [0, 1].

    Images may differ in size; each is fitted into a square tile as large as the largest of them,
    within `least_tile` and `most_tile`. Rows may differ in length. Labels may be missing.

    Raises:
        ValueError: there is no image at all.
    """
    if not any(len(row) for row in rows):
        raise ValueError("a contact sheet needs at least one image; rows is empty")

    # All tiles have one size, so that images of one column stand below each other.
    largest = max(max(image.shape[:2]) for row in rows for image in row)
    tile = min(max(least_tile, largest), most_tile)
    columns = max(len(row) for row in rows)

    # Labels have a margin of their own, of the width of the longest; none, where there are none.
    font = ImageFont.load_default(FONT_SIZE)
    left = GAP + max((int(font.getlength(label)) + 2 * GAP for label in row_labels), default=0)
    top = GAP + (FONT_SIZE + 2 * GAP if column_labels else 0)
    pitch = tile + GAP

    sheet = Image.new("RGB", (left + columns * pitch, top + len(rows) * pitch), "white")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            sheet.paste(_fit(image, tile), (left + j * pitch, top + i * pitch))

    # Row labels in the middle of their tile's left side ("lm"), column labels above ("mt").
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(row_labels):
        draw.text((GAP, top + i * pitch + tile // 2), label, "black", font, anchor="lm")
    for j, label in enumerate(column_labels):
        draw.text((left + j * pitch + tile // 2, GAP), label, "black", font, anchor="mt")
    return np.asarray(sheet, np.float32) / 255


def row_of(sheet: Float[np.ndarray, "H W 3"], columns: int) -> list[Float[np.ndarray, "t t 3"]]:
    """Returns the tiles of a sheet of one row that has labels above its columns, and no others.

    Raises:
        InputError: it is no such sheet.
    """
    height, width = sheet.shape[:2]
    pitch = (width - GAP) // columns
    tile, top = pitch - GAP, GAP + FONT_SIZE + 2 * GAP
    if tile < 1 or (height, width) != (top + pitch, GAP + columns * pitch):
        raise InputError(f"a sheet of {width} x {height} pixels is none of {columns} views")
    lefts = [GAP + i * pitch for i in range(columns)]
    return [sheet[top : top + tile, left : left + tile] for left in lefts]


def _fit(image: Tile, tile: int) -> Image.Image:
    """Returns the image as large as fits, in the middle of a white square."""
    picture = Image.fromarray(to_bytes(image))
    factor = tile / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (tile, tile), "white")
    square.paste(picture, ((tile - size[0]) // 2, (tile - size[1]) // 2))
    return square
