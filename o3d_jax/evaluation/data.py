"""What a protocol takes from a rendered folder: which orbits, and of each the input and truth."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.orbits.folder import OrbitIndex, find_orbits, read_frames, read_index
from o3d_jax.data.views import BLENDING, FILTERS
from o3d_jax.errors import InputError
from o3d_jax.evaluation.protocol import ImagesProtocol, ObjectsProtocol, Protocol
from o3d_jax.geometry.orbits import pinhole, relative_poses
from o3d_jax.geometry.released import FRAME_CHOICES
from o3d_jax.types import Cameras


class OrbitName(NamedTuple):
    """One orbit of an object."""

    object_name: str
    orbit_name: str
    """The path of its folder, from the root on."""


class Sample(NamedTuple):
    """What a model is given of an orbit, and what it is compared with."""

    image: Float[np.ndarray, "h w 3"]
    """The input on white, as large as the model wants it."""
    cameras: Cameras
    """Relative to the input's; a batch of one."""
    truth: Float[np.ndarray, "v H W 3"]
    """On white, as large as images are compared; the input first."""
    frames: tuple[int, ...]
    """The numbers of these frames in the orbit."""


class SeenObject(NamedTuple):
    """The silhouettes of an orbit's object."""

    poses: Float[np.ndarray, "v 4 4"]
    """camera_to_world (OpenCV axes) in the world that it was rendered in."""
    fov: float
    """Field of view in degrees."""
    alpha: UInt8[np.ndarray, "v h h"]
    """The share of each pixel that the object covers, in 255ths."""


class DataFacts(NamedTuple):
    """What was found in the orbits that an evaluation reads."""

    sha256: str
    """A digest of the names, cameras and pixels of all frames that it uses."""
    radii: tuple[float, float]
    """Smallest and largest distance of a camera from the origin, scene units."""
    fovs: tuple[float, float]
    """Smallest and largest field of view, degrees."""


def choose_orbits(root: Path, objects: ObjectsProtocol) -> list[OrbitName]:
    """Returns the orbits that a protocol asks for, by object.

    Raises:
        InputError: there is none, or one that the protocol lists is not there.
    """
    if not root.is_dir():
        raise InputError(f"no folder {root}; give one that `o3d data render` wrote")

    # An orbit lies in its object's folder, or is the object's only one.
    found: dict[str, list[str]] = {}
    for name in find_orbits(root):
        if name.count("/") > 1:
            raise InputError(
                f"{root / name} lies deeper than an object's orbit; give the folder of objects: "
                f"{(root / name).parents[1]}"
            )
        found.setdefault(name.split("/")[0], []).append(name)

    wanted = tuple(found) if objects.names == "all" else objects.names
    if missing := [name for name in wanted if name not in found]:
        raise InputError(
            f"{root} lacks {len(missing)} of {len(wanted)} objects of the protocol: "
            f"{', '.join(missing[:3])}; render them, or give another protocol"
        )

    # Which of an object's orbits: by number, in the order of their names.
    chosen = []
    for name in wanted:
        orbits = found[name]
        numbers = range(len(orbits)) if objects.orbits == "all" else objects.orbits
        if max(numbers) >= len(orbits):
            raise InputError(
                f"{root}/{name} has {len(orbits)} orbits; the protocol asks for {numbers}, "
                "counted from 0"
            )
        chosen += [OrbitName(name, orbits[number]) for number in numbers]
    return chosen


def frames_of(protocol: Protocol, config: Config, frames: int) -> Int[np.ndarray, " v"]:
    """Returns which of an orbit's frames a model's views are compared with, the input first.

    Raises:
        InputError: the protocol and the model want another number of frames.
    """
    views, data = protocol.views, config.data
    if views.first_frame >= frames:
        raise InputError(f"there is no frame {views.first_frame} among {frames}; render more")
    if views.frames == "model":
        if frames != data.frames_per_orbit:
            raise InputError(
                f"an orbit of {frames} frames; {config.name} was trained with "
                f"{data.frames_per_orbit}: render as many, or list views.frames in the protocol"
            )
        choose = FRAME_CHOICES[data.orbit_frames]
        return choose(views.first_frame, config.model.num_views, frames)

    # A protocol that lists frames holds all models to the same, however they were trained.
    if len(views.frames) != config.model.num_views or max(views.frames) >= frames:
        raise InputError(
            f"the protocol's views.frames lists {len(views.frames)}, up to {max(views.frames)}; "
            f"{config.name} makes {config.model.num_views} views, and orbits here have {frames} "
            "frames"
        )
    return (views.first_frame + np.array(views.frames)) % frames


def compared_size(protocol: Protocol, config: Config) -> int:
    """Returns the pixels along a side at which a model's images are compared."""
    wanted = protocol.images.resolution
    return config.model.image_size if wanted == "model" else wanted


def check_data(
    root: Path, orbits: Sequence[OrbitName], protocol: Protocol, configs: Sequence[Config]
) -> DataFacts:
    """Reads all that will be used and returns facts about it: faults show before hours of sampling.

    Raises:
        InputError: a frame or camera is missing or damaged, or does not suit a model.
    """
    digest = hashlib.sha256()
    radii, fovs = [], []
    for orbit in tqdm(orbits, desc="checking data", unit="orbit"):
        index = read_index(root / orbit.orbit_name)
        count = len(index.files)
        used = sorted({int(i) for c in configs for i in _frames(protocol, c, index)})
        rgba = _square_frames(index, used)
        _check_size(index, rgba.shape[1], protocol, configs)
        digest.update(repr((orbit, index.fov, count, used, rgba.shape)).encode())
        digest.update(index.camera_to_world[used].astype(np.float64).tobytes())
        digest.update(rgba.tobytes())
        radii += np.linalg.norm(index.camera_to_world[used, :3, 3], axis=-1).tolist()
        fovs.append(index.fov)
    return DataFacts(digest.hexdigest(), (min(radii), max(radii)), (min(fovs), max(fovs)))


def read_sample(root: Path, orbit: OrbitName, protocol: Protocol, config: Config) -> Sample:
    """Returns one orbit as a model and a protocol want it.

    Raises:
        InputError: as `check_data`.
    """
    index = read_index(root / orbit.orbit_name)
    chosen = _frames(protocol, config, index)
    rgba = _square_frames(index, chosen.tolist())
    poses = relative_poses(index.camera_to_world[chosen].astype(np.float64))
    intrinsics = np.tile(pinhole(index.fov), (len(poses), 1, 1))
    return Sample(
        image=_prepared(rgba[:1], config.model.image_size, protocol.images)[0],
        cameras=Cameras(
            camera_to_world=jnp.asarray(poses, jnp.float32)[None],
            intrinsics=jnp.asarray(intrinsics, jnp.float32)[None],
        ),
        truth=_prepared(rgba, compared_size(protocol, config), protocol.images),
        frames=tuple(chosen.tolist()),
    )


def read_seen(root: Path, orbit: OrbitName, protocol: Protocol, config: Config) -> SeenObject:
    """Returns the silhouettes in the frames of `read_sample`, as large as they were rendered.

    Raises:
        InputError: as `check_data`.
    """
    index = read_index(root / orbit.orbit_name)
    chosen = _frames(protocol, config, index)
    poses = index.camera_to_world[chosen].astype(np.float64)
    return SeenObject(poses, index.fov, _square_frames(index, chosen.tolist())[..., 3])


def _frames(protocol: Protocol, config: Config, index: OrbitIndex) -> Int[np.ndarray, " v"]:
    try:
        return frames_of(protocol, config, len(index.files))
    except InputError as error:
        raise InputError(f"{index.files[0].parent}: {error}") from error


def _square_frames(index: OrbitIndex, chosen: Sequence[int]) -> UInt8[np.ndarray, "n h h 4"]:
    rgba = read_frames([index.files[i] for i in chosen])
    if rgba.shape[1] != rgba.shape[2]:
        raise InputError(
            f"{index.files[0].parent}: frames of {rgba.shape[2]} x {rgba.shape[1]} pixels; models "
            "see squares only"
        )
    return rgba


def _check_size(
    index: OrbitIndex, size: int, protocol: Protocol, configs: Sequence[Config]
) -> None:
    largest = max(max(c.model.image_size, compared_size(protocol, c)) for c in configs)
    if size < largest:
        raise InputError(
            f"{index.files[0].parent}: frames of {size} px are too small, {largest} are needed; "
            "render larger ones, or lower images.resolution in the protocol"
        )


def _prepared(
    rgba: UInt8[np.ndarray, "n h h 4"], size: int, images: ImagesProtocol
) -> Float[np.ndarray, "n {size} {size} 3"]:
    """Returns frames on white, in [0, 1]. Pillow premultiplies alpha while it resizes."""
    if rgba.shape[1] != size:
        resample = FILTERS[images.resize_filter]
        made = [np.asarray(Image.fromarray(x).resize((size, size), resample)) for x in rgba]
        rgba = np.stack(made)
    return BLENDING[images.blending](rgba)


def resized_views(
    views: Float[np.ndarray, "v h h 3"], size: int, images: ImagesProtocol
) -> Float[np.ndarray, "v {size} {size} 3"]:
    """Returns generated images as large as they are compared, not rounded to bytes."""
    if views.shape[1] == size:
        return views
    resample = FILTERS[images.resize_filter]
    planes = np.moveaxis(np.asarray(views, np.float32), -1, 1).reshape(-1, *views.shape[1:3])
    made = [np.asarray(Image.fromarray(x).resize((size, size), resample)) for x in planes]
    return np.moveaxis(np.stack(made).reshape(len(views), 3, size, size), 1, -1)
