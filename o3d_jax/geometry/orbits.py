"""Cameras on a circle around the object, and which frames of an orbit make a training sample.

The world is y-up and right-handed. A camera at azimuth 0 is on +z and looks along -z; azimuth grows
toward +x. The formulas are float64 numpy, because the data pipeline must not touch a device.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from o3d_jax.types import Cameras


def orbit(
    elevation_deg: float, azimuths_deg: Real[np.ndarray, " v"], radius: float, fov_deg: float
) -> Cameras:
    """Returns cameras (leaves "v 4 4" and "v 3 3") on one circle, looking at the origin.

    Angles are in degrees; `radius`, in scene units, is the distance from the origin.
    """
    poses = orbit_poses(elevation_deg, azimuths_deg, radius)
    return Cameras(
        camera_to_world=jnp.asarray(poses, jnp.float32),
        intrinsics=jnp.asarray(np.tile(pinhole(fov_deg), (len(poses), 1, 1)), jnp.float32),
    )


def relative_to_first(cameras: Cameras) -> Cameras:
    """Returns the cameras in a world where view 0 is on +z, looking at the origin (Sec. 3.1)."""
    poses = relative_poses(np.asarray(cameras.camera_to_world, np.float64))
    return Cameras(
        camera_to_world=jnp.asarray(poses, jnp.float32),
        intrinsics=jnp.asarray(cameras.intrinsics, jnp.float32),
    )


def frame_indices(first: int, views: int, frames: int) -> Int[np.ndarray, " {views}"]:
    """Returns every 2nd frame of an orbit from `first` on, wrapping around (Sec. 4.1).

    Raises:
        ValueError: if the orbit has fewer than twice as many frames, so that one would come twice.
    """
    if frames < 2 * views:
        raise ValueError(
            f"{views} views need an orbit of at least {2 * views} frames, not {frames}"
        )
    return (first + 2 * np.arange(views)) % frames


def orbit_poses(
    elevation_deg: float, azimuths_deg: Real[np.ndarray, " v"], radius: float
) -> Float[np.ndarray, "v 4 4"]:
    """Returns camera_to_world (OpenCV axes) of cameras on a circle, looking at the origin."""
    elevation, azimuths = np.deg2rad(float(elevation_deg)), np.deg2rad(azimuths_deg)
    zero, one = np.zeros_like(azimuths), np.ones_like(azimuths)
    right = np.stack([np.cos(azimuths), zero, -np.sin(azimuths)], axis=-1)
    outward = np.stack(
        [
            np.cos(elevation) * np.sin(azimuths),
            np.sin(elevation) * one,
            np.cos(elevation) * np.cos(azimuths),
        ],
        axis=-1,
    )

    # The camera's axes as columns: right, down, forward; then its place.
    poses = np.zeros((len(azimuths), 4, 4))
    poses[:, :3, 0] = right
    poses[:, :3, 1] = np.cross(-outward, right)  # down = forward x right
    poses[:, :3, 2] = -outward
    poses[:, :3, 3] = radius * outward
    poses[:, 3, 3] = 1
    return poses


def relative_poses(poses: Float[np.ndarray, "*b v 4 4"]) -> Float[np.ndarray, "*b v 4 4"]:
    """Returns S inv(pose_0) pose_i, with S = diag(1, -1, -1, 1) moved to (0, 0, r) (release).

    r is the distance of camera 0 from the origin. Pose 0 becomes S; the new world is tilted by the
    elevation of view 0, and distances stay.
    """
    first = poses[..., :1, :, :]
    start = np.zeros_like(first)
    start[...] = np.diag([1.0, -1.0, -1.0, 1.0])
    start[..., 2, 3] = np.linalg.norm(first[..., :3, 3], axis=-1)
    return start @ np.linalg.inv(first) @ poses


def pinhole(fov_deg: float) -> Float[np.ndarray, "3 3"]:
    """Returns the intrinsics of a camera that sees `fov_deg` both ways, in units of image width."""
    focal = 0.5 / np.tan(np.deg2rad(fov_deg) / 2)
    return np.array([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
