"""Gaussians as .ply, in the layout of 3D Gaussian Splatting that viewers read.

Binary. Stored are values before activation: the logit of the opacity, the log of the scales, and
the zeroth spherical harmonic of the color, (rgb - 0.5) / C0. In memory objects stand upright, y up
(`o3d_jax.geometry.upright`); a comment in the header says which axes the file has instead.
"""

import os
import warnings

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.files.ply_header import PlyElement, PlyHeader, read_ply_header
from o3d_jax.geometry.upright import TURNS, Up, from_axes, to_axes
from o3d_jax.media.gaussians import (
    MIN_OPACITY,
    Values,
    file_content,
    gaussians_from,
    values_to_store,
)
from o3d_jax.types import Gaussians

SH_C0 = 0.28209479177387814
"""Zeroth real spherical harmonic, 1 / (2 sqrt(pi))."""

_LEAST_SCALE = 1e-8  # So that the log is finite (release).
_LEAST_OPACITY = 1e-6  # From 0 and from 1, so that the logit is finite.

_MEAN = ("x", "y", "z")
_COLOR = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES = ("scale_0", "scale_1", "scale_2")
_QUATERNION = ("rot_0", "rot_1", "rot_2", "rot_3")

FIELDS = (*_MEAN, "nx", "ny", "nz", *_COLOR, "opacity", *_SCALES, *_QUATERNION)
"""Properties, in order; normals are 0. rot is (w, x, y, z)."""

_UP_COMMENT = "o3d_jax up"  # And the axes behind it.

_NEEDED = (*_MEAN, *_COLOR, "opacity", *_SCALES[:2], *_QUATERNION)


def write_ply(
    path: str | os.PathLike[str],
    gaussians: Gaussians,
    min_opacity: float = MIN_OPACITY,
    up: Up = "y-down",
) -> None:
    """Writes one upright object, whole or not at all, in the axes `up`.

    Drops Gaussians of less than `min_opacity`. Little endian, all properties float32, in the order
    of `FIELDS`.

    Raises:
        ValueError: more than one object, scales below 0, or values that are not finite.
    """
    values = values_to_store(to_axes(gaussians, up), path, min_opacity)
    columns = [
        *(values.means, np.zeros_like(values.means), (values.colors - 0.5) / SH_C0),
        logit(values.opacities.clip(_LEAST_OPACITY, 1 - _LEAST_OPACITY))[:, None],
        *(np.log(values.scales.clip(_LEAST_SCALE)), values.quats),
    ]
    table = np.concatenate(columns, axis=-1).astype("<f4")
    with written_whole(path) as temporary:
        temporary.write_bytes(_header(len(table), up) + table.tobytes())


def _header(count: int, up: Up) -> bytes:
    """Returns the header of a file of `count` Gaussians in the axes `up`."""
    properties = [f"property float {name}" for name in FIELDS]
    lines = ["ply", "format binary_little_endian 1.0", f"comment {_UP_COMMENT} {up}"]
    lines += [f"element vertex {count}", *properties]
    return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii")


@np.errstate(over="ignore", invalid="ignore")  # What is not finite is dropped or refused.
def read_ply(
    path: str | os.PathLike[str], drop_bad: bool = False, up: Up | None = None
) -> Gaussians:
    """Reads the Gaussians of a file in this layout: after activation, upright with y up.

    Properties may come in any order and be float or double, in either byte order; further ones
    and further elements are skipped. Of colors that change with the direction (f_rest_*), the
    part that does not is read, with a warning. Colors below 0 become 0, as 3D Gaussian
    Splatting draws them. Without scale_2, as 2D Gaussian Splatting writes them, Gaussians are flat:
    their third scale is 0.

    Args:
        drop_bad: whether Gaussians with values that are not finite, which some programs write, are
            left out, with a warning that says how many, and not refused.
        up: the file's axes; None takes those in its header, or else y-down, as others write them.

    Raises:
        InputError: missing, not such a file, cut short, or with values that are not finite.
    """
    content = file_content(path)
    header = read_ply_header(content, str(path))
    table = _read_vertices(path, content, header)

    def columns(*names: str) -> Float[np.ndarray, "n k"]:
        return np.stack([table[name].astype(np.float64) for name in names], axis=-1)

    # Ours have one color from all sides. Higher harmonics that are all 0 lose nothing.
    rest = [name for name in table.dtype.names or () if name.startswith("f_rest_")]
    if any(table[name].any() for name in rest):
        warnings.warn(
            f"{path} has colors that change with the direction; only the part that does not "
            "(f_dc_*) is read",
            stacklevel=2,
        )

    # Flat Gaussians have two scales; exp makes 1 of a stored 0, so the third is padded behind it.
    names = [name for name in _SCALES if name in (table.dtype.names or ())]
    scales = np.exp(columns(*names))
    scales = np.pad(scales, [(0, 0), (0, 3 - len(names))])

    values = Values(
        means=columns(*_MEAN),
        scales=scales,
        quats=columns(*_QUATERNION),
        opacities=expit(columns("opacity")[:, 0]),
        colors=(columns(*_COLOR) * SH_C0 + 0.5).clip(0),
    )
    return from_axes(gaussians_from(path, values, drop_bad), up or _axes_of(header))


def _axes_of(header: PlyHeader) -> Up:
    """Returns the axes that a header names, or else those that viewers expect."""
    named: list[Up] = [up for up in TURNS if f"{_UP_COMMENT} {up}" in header.comments]
    return named[0] if named else "y-down"


def _read_vertices(path: str | os.PathLike[str], content: bytes, header: PlyHeader) -> np.ndarray:
    """Returns the rows of the element vertex, with its properties as named fields."""
    if not header.byte_order:
        raise InputError(f"{path} is a .ply in text; save it as a binary one")
    elements = header.elements
    names = [element.name for element in elements]
    if names.count("vertex") != 1:
        raise InputError(f"{path} is not a .ply of Gaussians: it needs one element, vertex")

    # Rows before the vertices are skipped by their size, which lists in them would hide.
    before = elements[: names.index("vertex")]
    vertex = elements[len(before)]
    _check_is_of_gaussians(path, before, vertex)
    skipped = sum(element.count * _row(element, "<").itemsize for element in before)

    # Behind the vertices anything may follow; where they are last, nothing may.
    row = _row(vertex, header.byte_order)
    needed, found = skipped + vertex.count * row.itemsize, len(content) - header.start
    last = vertex is elements[-1]
    if found < needed or (last and found > needed):
        raise InputError(
            f"{path} has {found} bytes of data, its header says "
            f"{'' if last else 'at least '}{needed}: it is damaged; copy it again"
        )
    return np.frombuffer(content, row, vertex.count, header.start + skipped)


def _check_is_of_gaussians(
    path: str | os.PathLike[str], before: list[PlyElement], vertex: PlyElement
) -> None:
    """Refuses a file whose vertices are not Gaussians that can be read.

    Raises:
        InputError: properties are missing or come twice, or there are lists among what is read.
    """
    names = [each.name for each in vertex.properties]
    numbers = {
        each.name for each in vertex.properties if each.kind[0] == "f" and not each.count_kind
    }

    # The third scale is the only one of ours that a file may be without.
    needed = [*_NEEDED, *(name for name in _SCALES[2:] if name in names)]
    missing = [name for name in needed if name not in numbers]
    if missing:
        raise InputError(
            f"{path} is not a .ply of Gaussians: its vertices have no {', '.join(missing)} of type "
            "float or double; export it uncompressed, in the layout of 3D Gaussian Splatting"
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{path} is a damaged .ply: it has the property {twice[0]} twice")
    if any(element.has_lists() for element in (*before, vertex)):
        raise InputError(f"{path} has lists before the end of its vertices; export it without them")


def _row(element: PlyElement, byte_order: str) -> np.dtype:
    """Returns the type of one row, without gaps.

    Other elements' properties are numbered: they are only skipped, and their names may come twice.
    """
    kinds = [byte_order + each.kind for each in element.properties]
    if element.name != "vertex":
        return np.dtype([(f"{i}", kind) for i, kind in enumerate(kinds)])
    names = [each.name for each in element.properties]
    return np.dtype(list(zip(names, kinds, strict=True)))
