"""Files that belong to a model: the model itself, and what it refers to beside itself."""

import base64
import binascii
import io
import os
import unicodedata
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from o3d_jax.errors import InputError
from o3d_jax.files.images import decode, to_rgba
from o3d_jax.files.letters import text_of

MAX_SIDE = 4096
"""The most pixels along a side of a texture; larger ones are shrunk."""

TEXTURE_FORMATS = ("PNG", "JPEG", "WebP", "BMP", "TGA", "TIFF", "GIF")


class ModelFiles(NamedTuple):
    """A model file and the limits on what is read for it."""

    path: Path
    max_bytes: int
    """The largest size of the model file, and of each file that it refers to."""

    def read(self) -> bytes:
        """Returns the model file's bytes.

        Raises:
            InputError: missing, empty, or above the limit.
        """
        return self.read_at(self.path)

    def read_beside(self, reference: str) -> bytes:
        """Returns the bytes that a model refers to: a data URI, or a file in its folder or below.

        Raises:
            InputError: missing, empty, above the limit, or somewhere else.
        """
        if reference[:5].lower() == "data:":
            return _data_uri(reference)
        return self.read_at(self.beside(urllib.parse.unquote(reference)))

    def beside(self, name: str) -> Path:
        """Returns the path of a file that a model refers to by name.

        If there is none of that name, one that differs in case alone is taken, or in how its
        letters are encoded: names were written on other systems than they are read on.

        Raises:
            InputError: it is not in the model's folder or below.
        """
        plain = name.strip().replace("\\", "/")
        folder = self.path.parent.resolve()
        try:
            target = (folder / plain).resolve()
            outside = Path(plain).is_absolute() or not target.is_relative_to(folder)
            if not (outside or os.path.lexists(target)):
                target = _alike(folder, plain).resolve()
                outside = not target.is_relative_to(folder)
        except (ValueError, OSError, RuntimeError) as error:  # A null byte; a loop of links.
            raise InputError(f"it refers to {name[:80]!r}, which is no file name") from error
        if outside or ":" in plain.split("/")[0]:
            raise InputError(
                f"it refers to {name[:200]!r}, outside its folder; copy that file beside the "
                "model and refer to it by name"
            )
        return target

    def read_at(self, path: Path) -> bytes:
        """Returns a file's bytes; its limit is the model's.

        Raises:
            InputError: missing, empty, or above the limit.
        """
        try:
            size = path.stat().st_size
            if not path.is_file():
                raise InputError(f"{path.name} is not a file")
            if size == 0:
                raise InputError(f"{path.name} is empty; copy it anew")
            if size > self.max_bytes:
                raise InputError(
                    f"{path.name} has {size / 2**20:,.0f} MiB, above the limit of "
                    f"{self.max_bytes / 2**20:,.0f}; raise --max-megabytes, or simplify it"
                )
            return path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path.name} is missing; copy it beside the model") from error
        except PermissionError as error:
            raise InputError(f"{path.name} may not be read; change its permissions") from error
        except OSError as error:  # Too long a name, a file for a folder, a disk that fails.
            raise InputError(f"{path.name[:80]} cannot be read: {error.strerror}") from error


def _alike(folder: Path, plain: str) -> Path:
    """Returns the file whose name is most like one that is not there, or else that one."""
    found = folder
    for part in PurePosixPath(plain).parts:
        if part != ".." and not os.path.lexists(found / part):
            names = sorted(os.listdir(found)) if found.is_dir() else []
            part = next((name for name in names if _key(name) == _key(part)), part)
        found = found / part
    return found


def _key(name: str) -> str:
    """Returns what names have in common that differ in case and encoding alone."""
    return unicodedata.normalize("NFC", text_of(os.fsencode(name))).casefold()


def _data_uri(uri: str) -> bytes:
    """Returns the bytes in a URI, whose base64 may have line breaks in it and lack its padding."""
    head, _, body = uri.partition(",")
    if head.lower().rpartition(";")[2].strip() != "base64":
        return urllib.parse.unquote_to_bytes(body)
    letters = "".join(urllib.parse.unquote(body).split()).rstrip("=")
    letters = letters.replace("-", "+").replace("_", "/") + "=" * (-len(letters) % 4)
    try:
        return base64.b64decode(letters, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"a data URI in it is not base64: {error}") from error


def decode_texture(data: bytes, name: str) -> UInt8[np.ndarray, "h w 4"]:
    """Returns an image as RGBA, at most MAX_SIDE a side; its bytes are the file's, taken for sRGB.

    Raises:
        InputError: damaged, of a format that is not read, or too large.
    """
    image = decode(io.BytesIO(data), f"texture {name}", TEXTURE_FORMATS)
    rgba = to_rgba(image, f"texture {name}")
    while max(rgba.size) > MAX_SIDE:
        rgba = rgba.reduce(2)
    return np.array(rgba)
