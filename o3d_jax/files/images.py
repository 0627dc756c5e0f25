"""Pictures in and out of files.

Reading is a door: whatever is not a whole, sane picture is refused here with one line, so that
the rest may trust what it gets.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageOps

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.files.srgb import to_display, to_light

FORMATS = ("PNG", "JPEG", "WebP")
"""The formats of pictures that people give, by Pillow's names, which it reads in any case."""

MAX_PIXELS = 64 * 2**20
"""The most pixels of a picture. Larger ones are refused by their headers, before a byte is decoded:
64 megapixels are 256 MiB as RGBA."""

UNPACKED, UNPACKED_TIMES = 64 * 2**20, 48
"""Bytes of memory that a picture may take, and how many for each of its file's, at most.

64 MiB are 4096 x 4096 pixels of one color; 48 is twice what smooth photographs need.
"""

DEFLATE = 1032
"""Bytes that one of a PNG may hold. Pillow leaves pixels black that are in none."""

PNG_BITS = {"RGB": 24, "RGBA": 32, "LA": 16}
"""Least bits of a pixel in a PNG; other modes have at least 1."""

WORKING_SIZE = 2048
"""The longest side after loading, pixels; four times what the largest model sees."""

# What Pillow's decoders raise on broken files, besides OSError (of which UnidentifiedImageError
# is one): chunk parsing, Python-level decoders, EXIF; values of another type than they should be.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_DECODER_ERRORS += (TypeError, LookupError, ArithmeticError, AttributeError)


def decode(
    file: io.BytesIO | io.BufferedReader, name: str, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Returns the picture in an open file, all of it read, with the mode that it has there.

    This is the one way in which anything here decodes pictures; `name` is what messages call it.

    Raises:
        InputError: it is none of the `formats`, damaged, cut short, empty or above MAX_PIXELS.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    with warnings.catch_warnings():
        # Pillow warns of sizes that _check_size judges.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=formats)
        except Image.DecompressionBombError as error:  # Raised by the header, above 179 megapixels.
            raise InputError(_too_large(name)) from error
        except _DECODER_ERRORS as error:
            known = f"{', '.join(formats[:-1])} or {formats[-1]}"
            raise InputError(
                f"{name} is not a readable {known} image (another format, damaged or without "
                "pixels); convert it"
            ) from error

    # Only the header has been read so far, so that a bomb is refused before it takes memory.
    _check_size(name, image, size)
    try:
        image.load()
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} is damaged or cut short; save it anew: {error}") from error
    return image


def find_images(given: Iterable[Path]) -> list[Path]:
    """Returns the files of these paths in their order, each once; a folder stands for its images.

    Images in a folder are known by their suffixes, and taken by name; hidden ones are not.

    Raises:
        InputError: a path does not exist, or a folder holds no images.
    """
    found: dict[Path, Path] = {}
    for path in given:
        files = _images_in(path) if path.is_dir() else [path]
        for file in files:
            found.setdefault(file.absolute(), file)
    return list(found.values())


def _images_in(folder: Path) -> list[Path]:
    suffixes = (".png", ".jpg", ".jpeg", ".webp")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    images = [path for path in files if path.is_file() and not path.name.startswith(".")]
    if not images:
        raise InputError(f"{folder} holds no PNG, JPEG or WebP files; give a folder that does")
    return images


def load_image(path: str | os.PathLike[str]) -> Float[np.ndarray, "h w 4"]:
    """Returns a picture as RGBA in [0, 1], not premultiplied, upright, at most WORKING_SIZE wide.

    Reads PNG, JPEG and WebP, be they RGB, gray, with a palette or of 16 bits; alpha is 1 where the
    file has none. EXIF orientation is applied. Only the first frame of an animation is read, with a
    warning.

    Raises:
        InputError: missing, not a file, not an image, cut short, empty, above MAX_PIXELS, or
            wholly transparent.
    """
    path = Path(path)
    check_is_file(path)
    try:
        with path.open("rb") as file:
            image = decode(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error

    if getattr(image, "is_animated", False) and image.format in ("PNG", "WEBP"):
        warnings.warn(f"{path} is animated; only its first frame is used", stacklevel=2)
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except _DECODER_ERRORS as error:
        raise InputError(f"{path} is damaged or cut short; save it anew: {error}") from error
    if image.mode == "RGB" and "transparency" not in image.info:  # Else there would be two of it.
        _shrink(image)
    image = to_rgba(image, str(path))
    _shrink(image)
    rgba = np.array(image, np.float32)
    rgba /= 255
    if not rgba[..., 3].any():
        raise InputError(f"{path} is fully transparent; give an image that shows an object")
    return rgba


def _shrink(image: Image.Image) -> None:
    """To WORKING_SIZE; Pillow premultiplies alpha meanwhile."""
    image.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.HAMMING)  # Does not ring.


def check_is_file(path: Path) -> None:
    """Raises an InputError, which says why, unless there is something at `path` to read."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give one image file")
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path of the image")
        if not path.is_file():  # A pipe or a device would block or never end.
            raise InputError(f"{path} is not a regular file; give a PNG, JPEG or WebP file")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); give a PNG, JPEG or WebP file")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 2**20} megapixels; shrink it first"


def _check_size(name: str, image: Image.Image, file_size: int) -> None:
    """A small file that unpacks to much is damaged, or meant to do harm."""
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels; give an image with pixels")
    if width * height > MAX_PIXELS:
        raise InputError(f"{_too_large(name)} (it is {width} x {height})")
    copies = 2 if image.format == "WEBP" else 1  # Its decoder has one of its own.
    unpacked = copies * height * (4 * width + 16)  # Pillow has a pointer for each row, too.
    if unpacked > UNPACKED + UNPACKED_TIMES * file_size:
        raise InputError(
            f"{name} is {width} x {height} pixels in {file_size} bytes, which unpack to too much; "
            "it is damaged, or shrink it first"
        )
    bits = PNG_BITS.get(image.mode, 1)
    if image.format == "PNG" and height * (1 + width * bits // 8) > DEFLATE * file_size:
        raise InputError(
            f"{name} is damaged: {width} x {height} pixels are not in {file_size} bytes; save it "
            "anew"
        )


def to_rgba(image: Image.Image, name: str) -> Image.Image:
    """Returns the picture with 8 bits a channel and with alpha; messages call it `name`.

    Full brightness is 65535 in gray of 16 bits, whatever is the brightest in the picture, and 1 in
    decimal numbers. For color of 16 bits, Pillow has kept the upper 8, which are within one step.

    Raises:
        InputError: Pillow cannot tell what its values mean.
    """
    try:
        return _deep_gray(image) if image.mode[0] in "IF" else _with_alpha(image)
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} is of a kind that is not read; save it anew: {error}") from error


def _deep_gray(image: Image.Image) -> Image.Image:
    """Returns gray of more than 8 bits as RGBA: Pillow would cut it off at 255, and lose alpha."""
    values, full = np.asarray(image), 1 if image.mode == "F" else 65535
    clear = image.info.get("transparency")  # The one value that stands for nothing there.
    rgba = np.empty((*values.shape, 4), np.uint8)
    for start in range(0, len(values), 256):  # Rows; in decimals, all would need much memory.
        part = values[start : start + 256].astype(np.float32)
        gray = np.round(np.nan_to_num(part) / full * 255).clip(0, 255)
        rgba[start : start + 256, :, :3] = gray[..., None]
        rgba[start : start + 256, :, 3] = 255 if clear is None else 255 * (part != clear)
    return Image.fromarray(rgba)


def _with_alpha(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # It has 16 bits, as the pixels had.
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image.convert("RGBA")


def to_bytes(image: Float[Array | np.ndarray, "*b"]) -> np.ndarray:
    """Returns values in [0, 1] as 0 .. 255, clipped and rounded.

    Raises:
        ValueError: a value is not finite.
    """
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} values of the image are not finite")
    return np.round(values.clip(0, 1) * 255).astype(np.uint8)


def save_png(path: str | os.PathLike[str], image: Float[Array | np.ndarray, "h w c"]) -> None:
    """Writes an image in [0, 1] (gray, RGB or RGBA by its channels) as PNG, whole or not at all."""
    pixels = to_bytes(image)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    with written_whole(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def on_white(rgba: UInt8[np.ndarray, "*b h w 4"]) -> Float[np.ndarray, "*b h w 3"]:
    """Returns straight-alpha images over white, in [0, 1]; a mean of the values in the file."""
    image = rgba.astype(np.float32) / 255
    alpha = image[..., 3:]
    return image[..., :3] * alpha + (1 - alpha)


def on_white_in_linear_light(
    rgba: UInt8[np.ndarray, "*b h w 4"],
) -> Float[np.ndarray, "*b h w 3"]:
    """Returns straight-alpha images over white, in [0, 1]; a mean of light: edges are brighter."""
    image = rgba.astype(np.float32) / 255
    alpha = image[..., 3:]
    return to_display(to_light(image[..., :3]) * alpha + (1 - alpha))
