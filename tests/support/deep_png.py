"""PNG files of 16 bits a channel, written from the specification: Pillow writes gray ones only."""

import struct
import zlib

import numpy as np

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Of the number of channels."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(pixels, clear=None) -> bytes:
    """Of (height, width, channels) values up to 65535; `clear` is the one that is not there."""
    pixels = np.asarray(pixels, np.uint16)
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    hole = b"" if clear is None else chunk(b"tRNS", np.asarray(clear, ">u2").tobytes())
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + hole + data + chunk(b"IEND", b"")
