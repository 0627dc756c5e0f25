"""Rendered orbits on disk, in the folder format of the release, which its PyTorch loader reads.

    ROOT/train.txt                   one orbit's name a line
    ROOT/<name>/meta.json            field of view, camera and file name of each frame
    ROOT/<name>/render_0000.png      RGBA with straight alpha, one a frame
    ROOT/<name>/maps.npz             depth and position, if there are any (not in the release)

A name may have several parts, as `<object>/<orbit>`: the first is the object's, which id lists
select by. In the file, cameras have Blender's axes (y up, looking along -z); in memory, OpenCV's.
"""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import whole_folder
from o3d_jax.files.images import decode

META, MAPS, IDS = "meta.json", "maps.npz", "train.txt"
"""The names of an orbit's files, and of the list of orbits."""

ORBIT_FILES = (META, MAPS, "render_*.png", "render_*.webp")
"""All that an orbit's folder may hold, for it to be replaced by another."""

PNG_END = b"IEND\xaeB`\x82"
"""The last chunk of every PNG file."""

RIGID = 1e-3
"""Largest entry of R R^T - 1 in a camera's pose; matrices written with four decimals pass."""

FLIP = np.array([1.0, -1.0, -1.0, 1.0])
"""Factors of a pose's columns, from Blender's camera axes to OpenCV's, and back."""


_MAPS_FAULTS = (
    *(OSError, ValueError, EOFError, LookupError, TypeError, SyntaxError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise on files that are damaged, encrypted, or claim to be huge."""


class RenderedOrbit(NamedTuple):
    """All frames of one orbit."""

    name: str
    """The path of its folder from the root on, parts joined by "/"."""
    rgba: UInt8[np.ndarray, "frames h w 4"]
    """Straight alpha."""
    camera_to_world: Float[np.ndarray, "frames 4 4"]
    """OpenCV axes; the world is y-up, the object around its origin."""
    fov: float
    """Horizontal field of view, degrees."""
    depth: Float32[np.ndarray, "frames h w"] | None = None
    """Depth along the camera's z at pixel centers, scene units; 0 where empty."""
    position: Float32[np.ndarray, "frames h w 3"] | None = None
    """The surface's place in the world, scene units; 0 where empty."""


class SurfaceMaps(NamedTuple):
    """The maps of an orbit, as in `RenderedOrbit`."""

    depth: Float32[np.ndarray, "frames h w"] | None
    position: Float32[np.ndarray, "frames h w 3"] | None


class OrbitIndex(NamedTuple):
    """What meta.json says of an orbit."""

    name: str
    camera_to_world: Float[np.ndarray, "frames 4 4"]
    """OpenCV axes."""
    fov: float
    """Horizontal field of view, degrees."""
    files: tuple[Path, ...]
    """One image a frame; not checked to be there."""


def write_orbit(folder: Path, orbit: RenderedOrbit) -> None:
    """Writes `folder` whole or not at all; an orbit that is there already is replaced.

    Raises:
        InputError: the folder holds other files than an orbit's, or a pose is not a camera's.
        ValueError: there are not as many poses as frames.
    """
    check_poses(folder, orbit.camera_to_world)
    if len(orbit.camera_to_world) != len(orbit.rgba):
        raise ValueError(f"{len(orbit.camera_to_world)} poses for {len(orbit.rgba)} frames")
    with whole_folder(folder, ORBIT_FILES) as scratch:
        _write_files(scratch, orbit)


def is_complete(file: Path) -> bool:
    """Returns whether a frame or a file of maps has its end, so was written to it."""
    if file.suffix == ".npz":
        return zipfile.is_zipfile(file)
    with file.open("rb") as stream:
        stream.seek(-min(64, file.stat().st_size), os.SEEK_END)
        return PNG_END in stream.read()


def read_orbit(folder: Path) -> RenderedOrbit:
    """Returns the orbit in a folder, all of it, by the folder's name unless meta.json has another.

    Raises:
        InputError: something is missing, damaged, or no camera; the message names the file.
    """
    index = read_index(folder)
    rgba = read_frames(index.files)
    maps = read_maps(folder / MAPS, rgba.shape[:3])
    return RenderedOrbit(index.name, rgba, index.camera_to_world, index.fov, *maps)


def read_index(folder: Path) -> OrbitIndex:
    """Returns the cameras and file names of an orbit; no image is opened.

    Raises:
        InputError: as `read_unchecked_index`, or a pose is not finite, mirrors or shears.
    """
    index = read_unchecked_index(folder)
    check_poses(folder / META, index.camera_to_world)
    return index


def read_unchecked_index(folder: Path) -> OrbitIndex:
    """Returns what `read_index` does, but poses may be any matrices.

    Raises:
        InputError: meta.json is missing, or is not as described above.
    """
    path = folder / META
    meta = _load_json(path)
    try:
        angle, locations = float(meta["camera_angle_x"]), meta["locations"]
        poses = np.array([place["transform_matrix"] for place in locations], np.float64)
        names = [place["frames"][0]["name"] for place in locations]
        name = str(meta.get("name", folder.name))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} is not an orbit's: {type(error).__name__} {error}; it needs camera_angle_x "
            "and locations, each with a 4 x 4 transform_matrix and frames[0].name"
        ) from error

    if not 0 < angle < np.pi:
        raise InputError(f"{path}: camera_angle_x {angle} is not in 0 .. pi radians")
    if poses.shape[1:] != (4, 4):
        raise InputError(f"{path}: transform_matrix is not 4 x 4 in all of at least one location")

    # Names come from others: none may lead out of the folder.
    for each in names:
        if not isinstance(each, str) or each in ("", "..") or not each.isprintable():
            raise InputError(f"{path}: frame name {each!r} is not that of a file in its folder")
        if Path(each).name != each:
            raise InputError(f"{path}: frame name {each!r} is not that of a file in its folder")

    return OrbitIndex(
        name, poses * FLIP, float(np.rad2deg(angle)), tuple(folder / each for each in names)
    )


def read_frames(files: Sequence[Path]) -> UInt8[np.ndarray, "frames h w 4"]:
    """Returns the images of some frames, all of one size.

    Raises:
        InputError: one is missing, damaged, without alpha, or of another size.
    """
    frames = [read_rgba(path) for path in files]
    for path, frame in zip(files, frames, strict=True):
        if frame.shape != frames[0].shape:
            h, w = frame.shape[:2]
            raise InputError(
                f"{path} is {w} x {h} pixels, {files[0].name} is {frames[0].shape[1]} x "
                f"{frames[0].shape[0]}; render the orbit anew"
            )
    return np.stack(frames)


def read_rgba(path: Path) -> UInt8[np.ndarray, "h w 4"]:
    """Returns a PNG or WebP image with alpha, as it is in the file.

    Raises:
        InputError: missing, damaged, without alpha, or too large (as `decode`).
    """
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; render the orbit anew") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    image = decode(io.BytesIO(encoded), str(path), ("PNG", "WebP"))
    if image.mode != "RGBA":
        raise InputError(
            f"{path} is {image.mode}, not RGBA: it has no alpha to tell object from background; "
            "render it with a transparent background"
        )
    if image.format == "PNG" and PNG_END not in encoded[-64:]:  # Pillow forgives that.
        raise InputError(f"{path} is damaged: it has no end; render the orbit anew")
    return np.array(image)


def find_orbits(root: Path) -> list[str]:
    """Returns the names of all orbits below a folder, sorted; hidden folders are left out.

    Raises:
        InputError: there is none.
    """
    names = []
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if META in files:
            folders[:] = []
            names.append(Path(here).relative_to(root).as_posix())
    if not names:
        raise InputError(f"{root} has no rendered orbits: no {META} in any folder below it")
    return sorted(names)


def check_poses(where: Path | str, poses: Float[np.ndarray, "frames 4 4"]) -> None:
    """Raises an InputError for the first pose that is not a camera's."""
    for i, pose in enumerate(poses):
        fault = pose_fault(pose)
        if fault is not None:
            raise InputError(f"{where}: the pose of frame {i} {fault}; render the orbit anew")


@np.errstate(over="ignore", invalid="ignore")
def pose_fault(pose: Float[np.ndarray, "4 4"]) -> str | None:
    """Returns what keeps a pose from being a camera's, or None."""
    if not np.isfinite(pose).all():
        return "has values that are not finite"
    rotation = pose[:3, :3]
    shear = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not max(shear, np.abs(pose[3] - [0, 0, 0, 1]).max()) <= RIGID:  # Nor NaN, of huge values.
        return "is not rigid: it scales or shears"
    if np.linalg.det(rotation) < 0:
        return "is mirrored: its determinant is negative"
    return None


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; it belongs to every rendered orbit") from error
    except (ValueError, RecursionError) as error:  # Not JSON, not UTF-8, or nested without end.
        raise InputError(f"{path} is damaged: {error}") from error


def _write_files(folder: Path, orbit: RenderedOrbit) -> None:
    names = [f"render_{i:04d}.png" for i in range(len(orbit.rgba))]
    for name, frame in zip(names, orbit.rgba, strict=True):
        Image.fromarray(frame).save(folder / name, format="PNG")
    maps = {"depth": orbit.depth, "position": orbit.position}
    present: dict[str, Any] = {key: value for key, value in maps.items() if value is not None}
    if present:
        np.savez_compressed(folder / MAPS, **present)
    poses = np.asarray(orbit.camera_to_world, np.float64) * FLIP
    locations = [
        {"transform_matrix": pose.tolist(), "frames": [{"name": name}]}
        for pose, name in zip(poses, names, strict=True)
    ]
    angle = float(np.deg2rad(orbit.fov))
    meta = {"name": orbit.name, "camera_angle_x": angle, "locations": locations}
    (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


def read_maps(path: Path, shape: tuple[int, ...]) -> SurfaceMaps:
    """Returns the maps of frames of shape (frames, h, w), without any if there is no such file.

    Raises:
        InputError: the file is damaged, or its maps are of another shape or type.
    """
    if not path.exists():
        return SurfaceMaps(None, None)
    try:
        with np.load(path, allow_pickle=False) as maps:
            depth, position = (maps.get(name) for name in ("depth", "position"))
        if isinstance(depth, bytes) or isinstance(position, bytes):  # Numpy's, of other files.
            raise ValueError("a map in it is no array")
    except _MAPS_FAULTS as error:
        raise InputError(f"{path} is damaged: {error}; render the orbit anew") from error
    for name, found, expected in (("depth", depth, shape), ("position", position, (*shape, 3))):
        if found is not None and (found.shape != expected or found.dtype != np.float32):
            raise InputError(
                f"{path}: {name} is {found.dtype} {found.shape}, not float32 {expected} as the "
                "frames are; render the orbit anew"
            )
    return SurfaceMaps(depth, position)
