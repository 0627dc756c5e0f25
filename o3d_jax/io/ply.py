"""Gaussians as .ply, in the layout of 3D Gaussian Splatting that viewers read.

Binary, little endian. Stored are values before activation: the logit of the opacity, the log of
the scales, and the zeroth spherical harmonic of the color, (rgb - 0.5) / C0.
"""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from o3d_jax.errors import InputError
from o3d_jax.io.atomic import written_whole
from o3d_jax.types import Gaussians

SH_C0 = 0.28209479177387814
"""Zeroth real spherical harmonic, 1 / (2 sqrt(pi))."""

MIN_OPACITY = 0.005
"""Gaussians below are not worth storing (release, LGM's export)."""

_LEAST_SCALE = 1e-8  # So that the log is finite (release).
_LEAST_OPACITY = 1e-6  # From 0 and from 1, so that the logit is finite.

FIELDS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
"""Properties, in order; normals are 0. rot is (w, x, y, z)."""


def write_ply(
    path: str | os.PathLike[str], gaussians: Gaussians, min_opacity: float = MIN_OPACITY
) -> None:
    """Writes one object, whole or not at all; drops Gaussians of less than `min_opacity`.

    Raises:
        ValueError: more than one object, or values that are not finite.
    """
    means, quats = np.asarray(gaussians.means), np.asarray(gaussians.quats)
    scales, colors = np.asarray(gaussians.scales), np.asarray(gaussians.colors)
    opacities = np.asarray(gaussians.opacities, np.float64)
    if means.ndim != 2:
        raise ValueError(f"means of shape {means.shape}: a .ply holds one object, so give (n, 3)")
    opacity = opacities.clip(_LEAST_OPACITY, 1 - _LEAST_OPACITY)
    columns = [
        *(means, np.zeros_like(means), (colors - 0.5) / SH_C0),
        *((np.log(opacity) - np.log1p(-opacity))[:, None], np.log(scales.clip(_LEAST_SCALE))),
        quats,
    ]
    table = np.concatenate(columns, axis=-1).astype("<f4")[opacities >= min_opacity]
    if not np.isfinite(table).all():
        bad = (~np.isfinite(table).all(axis=-1)).sum()
        raise ValueError(f"{bad} of {len(table)} Gaussians are not finite; {path} is not written")
    with written_whole(path) as temporary:
        temporary.write_bytes(_header(len(table)) + table.tobytes())


def _header(count: int) -> bytes:
    properties = [f"property float {name}" for name in FIELDS]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}", *properties]
    return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii")


def read_ply(path: str | os.PathLike[str]) -> Gaussians:
    """The Gaussians of a file in this layout, after activation; further properties are ignored.

    Raises:
        InputError: missing, not such a file, or cut short.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    header, end, body = content.partition(b"end_header\n")
    if not end or not header.startswith(b"ply\n"):
        raise InputError(f"{path} is not a .ply file")
    names, count = _parse_header(path, header.decode("ascii", errors="replace"))
    size = count * len(names) * 4
    if len(body) != size:
        raise InputError(f"{path} has {len(body)} bytes of data, its header says {size}")
    table = np.frombuffer(body, "<f4").reshape(count, len(names))

    def columns(*wanted: str) -> np.ndarray:
        return table[:, [names.index(name) for name in wanted]]

    return Gaussians(
        means=jnp.asarray(columns("x", "y", "z")),
        scales=jnp.asarray(np.exp(columns("scale_0", "scale_1", "scale_2"))),
        quats=jnp.asarray(columns("rot_0", "rot_1", "rot_2", "rot_3")),
        opacities=jnp.asarray(1 / (1 + np.exp(-columns("opacity")[:, 0]))),
        colors=jnp.asarray(columns("f_dc_0", "f_dc_1", "f_dc_2") * np.float32(SH_C0) + 0.5),
    )


def _parse_header(path: str | os.PathLike[str], header: str) -> tuple[list[str], int]:
    """Property names in order, and the number of Gaussians."""
    lines = [line.split() for line in header.splitlines()[1:] if not line.startswith("comment")]
    elements = [words for words in lines if words[:1] == ["element"]]
    properties = [words for words in lines if words[:1] == ["property"]]
    names = [words[-1] for words in properties]
    missing = [name for name in FIELDS if name not in names and name not in ("nx", "ny", "nz")]
    if lines[:1] != [["format", "binary_little_endian", "1.0"]]:
        raise InputError(f"{path} is not a binary little-endian .ply; convert it")
    if missing or any(words[1] != "float" for words in properties):
        raise InputError(f"{path} is not a .ply of Gaussians: {missing or 'types'} do not fit")
    if len(elements) != 1 or elements[0][1] != "vertex" or not elements[0][2].isdigit():
        raise InputError(f"{path} is not a .ply of Gaussians: it needs one element, vertex")
    return names, int(elements[0][2])
