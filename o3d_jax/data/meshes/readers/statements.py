"""The text of Wavefront files, OBJ and MTL: one statement a line, of a keyword and words.

Written as people's programs write them: in UTF-8 or Latin-1, with or without a byte-order mark, or
in UTF-16 with one; with line ends of any system, and with a backslash at the end of a line that
goes on in the next.
"""

import codecs
from collections.abc import Iterator
from typing import NamedTuple

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_NAMING = (b"usemtl", b"newmtl")
"""Keywords that say something also by themselves: that a material has no name."""

BLOCK = 2**21
"""Bytes of a file that are taken apart at a time, for single words take ten times the room."""


class Statement(NamedTuple):
    """One line that says something."""

    keyword: bytes
    """As it is written; some programs write capitals."""
    words: bytes
    """All after the keyword, without white space around it."""


def statements(data: bytes) -> Iterator[list[Statement]]:
    """Yields the statements of a file in order, some thousands at a time, without comments."""
    if data.startswith(_UTF_16):
        data = data.decode("utf-16", errors="replace").encode()
    data = data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + BLOCK)
        while end > 0 and _goes_on(data[max(start, end - 80) : end]):
            end = data.find(b"\n", end + 1)
        end = len(data) if end < 0 else end
        yield _block(data[start:end])
        start = end + 1


def _block(block: bytes) -> list[Statement]:
    lines = block.split(b"\n")
    if b"\\" in block:
        lines = _joined(lines)
    pairs = (line.split(None, 1) for line in lines)
    return [
        Statement(pair[0], pair[1].rstrip() if len(pair) == 2 else b"")
        for pair in pairs
        if (len(pair) == 2 and not pair[0].startswith(b"#"))
        or (pair and pair[0].lower() in _NAMING)
    ]


def _goes_on(line: bytes) -> bool:
    """Returns whether a line ends with a backslash, which blanks may follow that nobody sees."""
    return line.rstrip(b" \t").endswith(b"\\")


def _joined(lines: list[bytes]) -> list[bytes]:
    """Returns lines with those that they go on in; a comment ends with its line in any case."""
    whole, pieces = [], []
    for line in lines:
        goes_on = _goes_on(line) and (pieces or not line.lstrip().startswith(b"#"))
        pieces.append(line.rstrip(b" \t")[:-1] if goes_on else line)
        if not goes_on:
            whole.append(b" ".join(pieces))
            pieces = []
    return [*whole, b" ".join(pieces)]
