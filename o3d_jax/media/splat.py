"""Gaussians as .splat, the format of web viewers (antimatter15/splat: convert.py, main.js).

No header; for each Gaussian 32 bytes, little endian: mean and scales as float32, then color and
opacity as bytes, value * 255, then the unit quaternion (w, x, y, z) as bytes, q * 128 + 128.
Those that cover most come first, so that a viewer has something to show while it loads. In memory
objects stand upright, y up (`o3d_jax.geometry.upright`); a file has other axes and does not say
which.
"""

import os

import numpy as np

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.geometry.upright import Up, from_axes, to_axes
from o3d_jax.media.gaussians import (
    MIN_OPACITY,
    Values,
    file_content,
    gaussians_from,
    values_to_store,
)
from o3d_jax.types import Gaussians

ROW = np.dtype(
    [("mean", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quaternion", "u1", 4)]
)
"""The bytes of one Gaussian."""


def write_splat(
    path: str | os.PathLike[str],
    gaussians: Gaussians,
    min_opacity: float = MIN_OPACITY,
    up: Up = "y-down",
) -> None:
    """Writes one upright object, whole or not at all, in the axes `up`.

    Drops Gaussians of less than `min_opacity`, and sorts by volume times opacity, equal ones by
    index. Bytes are rounded as the viewer's own converter does it (its script for Python cuts off,
    which is up to 1/255 darker). So colors and opacities, of which only [0, 1] can be stored, are
    within 1/510, and rotations within 0.9 degrees; a zero quaternion is the identity, as for
    `render`.

    Raises:
        ValueError: more than one object, scales below 0, or values that are not finite.
    """
    values = values_to_store(to_axes(gaussians, up), path, min_opacity)

    # What covers most comes first. A stable order makes equal ones the same on every machine.
    importance = values.scales.prod(axis=-1) * values.opacities
    order = np.argsort(-importance, kind="stable")

    rows = np.empty(len(order), ROW)
    rows["mean"], rows["scales"] = values.means, values.scales
    rows["rgba"][:, :3] = _to_bytes(values.colors * 255)
    rows["rgba"][:, 3] = _to_bytes(values.opacities * 255)
    rows["quaternion"] = _to_bytes(_normalized(values.quats) * 128 + 128)
    with written_whole(path) as temporary:
        temporary.write_bytes(rows[order].tobytes())


@np.errstate(over="ignore", invalid="ignore")  # What is not finite is dropped or refused.
def read_splat(
    path: str | os.PathLike[str], drop_bad: bool = False, up: Up = "y-down"
) -> Gaussians:
    """Reads the Gaussians of a .splat file in its order; an empty file has none.

    They are upright, y up, and their quaternions are of length 1.

    Args:
        drop_bad: whether Gaussians with values that are not finite are left out, with a warning
            that says how many, and not refused.
        up: the file's axes.

    Raises:
        InputError: missing, not such a file, cut short, or with values that are not finite.
    """
    content = file_content(path)
    if content.startswith((b"ply\n", b"ply\r\n")):
        raise InputError(f"{path} is a .ply file; read it with o3d_jax.media.ply.read_ply")
    if len(content) % ROW.itemsize:
        raise InputError(
            f"{path} has {len(content)} bytes, no multiple of {ROW.itemsize}: it is cut short or "
            "not a .splat file; export it anew"
        )

    # Any bytes make floats: scales below 0 are the one sign that these are not Gaussians.
    rows = np.frombuffer(content, ROW)
    if (rows["scales"] < 0).any():
        raise InputError(f"{path} has scales below 0: it is not a .splat file; export it anew")

    # Bytes of quaternions, rounded, are of another length than 1, which is undone here.
    values = Values(
        means=rows["mean"].astype(np.float64),
        scales=rows["scales"].astype(np.float64),
        quats=_normalized((rows["quaternion"].astype(np.float64) - 128) / 128),
        opacities=rows["rgba"][:, 3] / 255,
        colors=rows["rgba"][:, :3] / 255,
    )
    return from_axes(gaussians_from(path, values, drop_bad), up)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Rounds to whole numbers in 0 .. 255; what lies outside is cut off."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _normalized(quats: np.ndarray) -> np.ndarray:
    """Returns unit quaternions; a zero one becomes the identity, as for `render`."""
    norm = np.linalg.norm(quats, axis=-1, keepdims=True)
    return np.where(norm > 0, quats / np.where(norm > 0, norm, 1), [1.0, 0, 0, 0])
