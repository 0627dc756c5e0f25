"""Reads Wavefront MTL files, the materials of OBJ models; see obj.py on why it is written here.

    newmtl NAME                       the statements up to the next one are of this material
    Kd R [G B]                        color, in sRGB
    d [-halo] OPACITY | Tr 1-OPACITY
    map_Kd [OPTION ...] FILE          color, in the place of Kd
    map_d [OPTION ...] FILE           opacity

Of the options, -s and -o move the texture, and -clamp on keeps it from repeating; the others are
passed over, as all statements besides are. What is here must be as above, or the file is refused.
"""

import math
from typing import NamedTuple

from o3d_jax.data.meshes.readers.statements import Statement, statements
from o3d_jax.errors import InputError
from o3d_jax.files.letters import text_of

_VALUES = {
    **{"-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1},
    **{"-mm": 2, "-texres": 1, "-type": 1},
}
"""How many values each option has, but for the triples."""

_TRIPLES = ("-s", "-o", "-t")
"""Options of one to three numbers."""


class TextureMap(NamedTuple):
    """A texture, looked up at scale * uv + offset; all count from the bottom left."""

    file: str
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    clamp: bool = False
    """Whether it ends at its edges, and is not repeated."""
    folder: str = "."
    """The folder of the library that names it, seen from the model's."""


class Paint(NamedTuple):
    """A material of an MTL file."""

    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB as sRGB has it."""
    opacity: float | None = None
    """None where the file does not say, which means 1."""
    color_map: TextureMap | None = None
    opacity_map: TextureMap | None = None


def read_mtl(data: bytes, folder: str) -> dict[str, Paint]:
    """Returns the materials in a file, by name.

    Args:
        folder: where the file is, seen from the model's folder.

    Raises:
        InputError: a statement is not as its keyword asks for.
    """
    found: dict[str, Paint] = {}
    name = None
    for block in statements(data):
        for statement in block:
            if statement.keyword.lower() == b"newmtl":
                name = text_of(statement.words)
                found[name] = Paint()
            elif name is not None:
                found[name] = _with(found[name], statement, folder)
    return found


def _with(paint: Paint, statement: Statement, folder: str) -> Paint:
    """Returns a material with what a statement says of it."""
    keyword, words = statement.keyword.lower(), text_of(statement.words)

    # Spectral curves and XYZ are passed over, as most programs do.
    try:
        if keyword == b"kd" and not words.lower().startswith(("spectral", "xyz")):
            values = [_number(word) for word in words.split()]
            red, green, blue = values if len(values) == 3 else values * 3
            return paint._replace(color=(red, green, blue))
        if keyword == b"d":
            return paint._replace(opacity=_number(words.split()[-1]))
        if keyword == b"tr" and paint.opacity is None:  # Programs disagree on it, but not on d.
            return paint._replace(opacity=1 - _number(words.split()[-1]))
        if keyword == b"map_kd":
            return paint._replace(color_map=_texture_map(words, folder))
        if keyword == b"map_d":
            return paint._replace(opacity_map=_texture_map(words, folder))
    except ValueError as error:
        line = f"{text_of(statement.keyword)} {words}"
        raise InputError(
            f"a material file of it is damaged: it has {line[:80]!r}; export it anew"
        ) from error
    return paint


def _number(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word} is not finite")
    return value


def _texture_map(words: str, folder: str) -> TextureMap:
    """Returns the texture that a line names, after options and their values.

    The file's name may have spaces.

    Raises:
        ValueError: an option lacks its values, or there is no file.
    """
    found = TextureMap("", folder=folder)
    before, parts = 0, words.split()
    while len(parts) - before > 1:
        option = parts[before].lower()
        values = _values(option, parts[before + 1 : -1])
        if values is None:
            break
        before += 1 + len(values)
        if option == "-clamp":
            found = found._replace(clamp=values[0].lower() == "on")
        elif option in ("-s", "-o"):
            start = found.scale if option == "-s" else found.offset
            u, v = ([float(value) for value in values] + list(start)[len(values) :])[:2]
            found = found._replace(**{"scale" if option == "-s" else "offset": (u, v)})

    file = words.split(None, before)[before].strip('"')
    if not file:
        raise ValueError("no file is named")
    return found._replace(file=file)


def _values(option: str, words: list[str]) -> list[str] | None:
    """Returns an option's values among the words that follow; None if it is no option at all."""
    if option in _TRIPLES:
        count = 0
        while count < min(len(words), 3) and _is_number(words[count]):
            count += 1
        if count == 0:
            raise ValueError(f"{option} lacks its values")
        return words[:count]
    if option not in _VALUES:
        return None
    if len(words) < _VALUES[option]:
        raise ValueError(f"{option} lacks its values")
    return words[: _VALUES[option]]


def _is_number(word: str) -> bool:
    try:
        _number(word)
    except ValueError:
        return False
    return True
