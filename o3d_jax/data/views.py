"""One training sample: some frames of an orbit, on white, with cameras relative to the first."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from o3d_jax.config import Config, DataConfig
from o3d_jax.errors import InputError
from o3d_jax.files.images import on_white, on_white_in_linear_light
from o3d_jax.geometry.orbits import pinhole, relative_poses
from o3d_jax.geometry.released import FRAME_CHOICES

FILTERS = {"area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}
"""The choices of `DataConfig.resize_filter`."""


@runtime_checkable
class StoredOrbit(Protocol):
    """All cameras of an orbit, and frames that are read when asked for."""

    @property
    def name(self) -> str:
        """The name by which messages tell which object it is."""
        ...

    @property
    def camera_to_world(self) -> Float[np.ndarray, "frames 4 4"]:
        """Poses of all frames, with OpenCV's axes."""
        ...

    @property
    def fov(self) -> float:
        """Horizontal field of view, degrees."""
        ...

    def read(self, chosen: Int[np.ndarray, " v"]) -> UInt8[np.ndarray, "v h w 4"]:
        """Returns some of the frames, with straight alpha."""
        ...


@runtime_checkable
class OrbitSource(Protocol):
    """Orbits by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> StoredOrbit: ...


class Views(NamedTuple):
    """One training sample, the input view first."""

    images: Float[np.ndarray, "v h w 3"]
    """On white, in [0, 1]."""
    alpha: Float[np.ndarray, "v h w 1"]
    """The share of each pixel that the object covers, in [0, 1]."""
    camera_to_world: Float[np.ndarray, "v 4 4"]
    """Relative to view 0."""
    intrinsics: Float[np.ndarray, "3 3"]
    """The same for all views, in units of the image's width."""


def choose_views(config: Config, orbit: StoredOrbit, first: int) -> Views:
    """Returns the frames of a sample that starts with `first`, cameras relative to that one's.

    Raises:
        InputError: the frames cannot be read, are not square, or smaller than model.image_size.
    """
    frames, size = len(orbit.camera_to_world), config.model.image_size
    chosen = FRAME_CHOICES[config.data.orbit_frames](first, config.model.num_views, frames)
    rgba = orbit.read(chosen)
    h, w = rgba.shape[1:3]
    if h != w or h < size:
        raise InputError(
            f"{orbit.name}: frames are {w} x {h} pixels; model.image_size {size} needs square ones "
            "of at least that"
        )

    rgba = resized(rgba, size, config.data)
    return Views(
        BLENDING[config.data.blending](rgba),
        rgba[..., 3:].astype(np.float32) / 255,
        relative_poses(orbit.camera_to_world[chosen]).astype(np.float32),
        pinhole(orbit.fov).astype(np.float32),
    )


def opaque_images(
    rgba: UInt8[np.ndarray, "v h w 4"], size: int, data: DataConfig
) -> Float[np.ndarray, "v {size} {size} 3"]:
    """Returns frames resized, then laid on white, as the config says; in [0, 1]."""
    return BLENDING[data.blending](resized(rgba, size, data))


def resized(
    rgba: UInt8[np.ndarray, "v h w 4"], size: int, data: DataConfig
) -> UInt8[np.ndarray, "v {size} {size} 4"]:
    """Returns frames with straight alpha, reduced to `size` pixels as the config says.

    Pillow weights colors by alpha when it resizes, and rounds to 8 bits; so does the release.
    """
    if rgba.shape[1:3] == (size, size):
        return rgba
    images = [Image.fromarray(frame) for frame in rgba]
    resample = FILTERS[data.resize_filter]
    return np.stack([np.array(image.resize((size, size), resample)) for image in images])


BLENDING = {"display": on_white, "linear": on_white_in_linear_light}
"""The choices of `DataConfig.blending`."""
