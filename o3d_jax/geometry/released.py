"""The release's geometry where it departs from the paper's, for weights that were trained with it.

Facts of the code at github.com/Costwen/Ouroboros3D; PAPER.md has a row for each. Conventions are
those of the paper's counterparts: `rays.pluecker_rays`, `ccm.coordinate_map`,
`orbits.frame_indices`.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from o3d_jax.geometry.ccm import EMPTY
from o3d_jax.geometry.orbits import frame_indices
from o3d_jax.geometry.rays import ray_origins
from o3d_jax.types import Cameras, Gaussians

CCM_SCALE = 0.001
"""The factor from world coordinates to the release's maps, which have an offset of 0.5."""


def released_rays(cameras: Cameras, size: tuple[int, int]) -> Float[Array, "*b v h w 6"]:
    """Returns (o x d, d) of rays that are not the cameras': their d is the direction R^T p - t.

    R and t are those of camera_to_world, and p has the row where the column belongs and the column
    where the row belongs. The images are square, as in the release.
    """
    h, w = size
    k = jnp.asarray(cameras.intrinsics, jnp.float32)[..., None, None, :, :]
    rotation = jnp.asarray(cameras.camera_to_world, jnp.float32)[..., :3, :3]
    rows = (jnp.arange(h, dtype=jnp.float32) + 0.5) / h
    columns = (jnp.arange(w, dtype=jnp.float32) + 0.5) / w
    rows, columns = (jnp.broadcast_to(c, (h, w)) for c in (rows[:, None], columns[None, :]))
    shape = k.shape[:-4] + (h, w)
    x, y = (jnp.broadcast_to(c, shape) for c in (rows, columns))
    x, y = (x - k[..., 0, 2]) / k[..., 0, 0], (y - k[..., 1, 2]) / k[..., 1, 1]
    local = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)
    turned = jnp.einsum("...ij,...hwi->...hwj", rotation, local, precision=lax.Precision.HIGHEST)
    origins = jnp.broadcast_to(ray_origins(cameras), turned.shape)
    d = turned - origins
    d = d / jnp.linalg.norm(d, axis=-1, keepdims=True)
    return jnp.concatenate([jnp.cross(origins, d), d], axis=-1)


def released_coordinate_map(
    depth: Float[Array, "*b v h w 1"], cameras: Cameras
) -> Float[Array, "*b v h w 3"]:
    """Returns 0.001 times points unprojected by pixel indices and normalized intrinsics, plus 0.5.

    So x and y are as many times too large as the image is wide. `depth` is the rendered sum, not
    divided by alpha; where it is 0, the map is 0.5.
    """
    h, w = depth.shape[-3:-1]
    k = jnp.asarray(cameras.intrinsics, jnp.float32)[..., None, None, :, :]
    rotation = jnp.asarray(cameras.camera_to_world, jnp.float32)[..., :3, :3]
    shape = depth.shape[:-1]
    u = jnp.broadcast_to(jnp.arange(w, dtype=jnp.float32)[None, :], shape)
    v = jnp.broadcast_to(jnp.arange(h, dtype=jnp.float32)[:, None], shape)
    x, y = (u - k[..., 0, 2]) / k[..., 0, 0], (v - k[..., 1, 2]) / k[..., 1, 1]
    local = depth * jnp.stack([x, y, jnp.ones_like(x)], axis=-1)
    points = jnp.einsum("...ij,...hwj->...hwi", rotation, local, precision=lax.Precision.HIGHEST)
    points = points + ray_origins(cameras)
    return jnp.where(depth > 0, jnp.clip(CCM_SCALE * points + 0.5, 0, 1), EMPTY)


def linspace_frames(first: int, views: int, frames: int) -> Int[np.ndarray, " {views}"]:
    """Returns frames evenly spaced from `first` to the one before it, rounded down.

    8 of 16 are 0, 2, 4, 6, 8, 10, 12 and 15: the last step is one and a half times the others.
    """
    return (first + np.linspace(0, frames - 1, views).astype(np.int64)) % frames


def drawn_quaternions(quats: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Returns unit quaternions (w, x, y, z) for the rotations that quaternions are drawn with.

    Those given may be of any length.

    The matrix of a quaternion q that is taken as it is differs from a rotation by |q|^2 - |q|^4;
    the nearest rotation is returned.
    """
    from scipy.spatial.transform import Rotation  # Slow to import, and rarely needed.

    w, x, y, z = np.asarray(quats, np.float64).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    left, _, right = np.linalg.svd(np.moveaxis(np.array(rows), -1, 0))
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[:, None]
    xyzw = Rotation.from_matrix(left @ right).as_quat(canonical=True)
    return xyzw[:, [3, 0, 1, 2]]


def as_drawn(gaussians: Gaussians, rotation_norm: str) -> Gaussians:
    """Returns Gaussians with rotations that viewers, which normalize quaternions, draw as we do.

    `rotation_norm` is `LgmConfig.rotation_norm`.
    """
    if rotation_norm == "per_gaussian":
        return gaussians
    quats = drawn_quaternions(np.asarray(gaussians.quats))
    return dataclasses.replace(gaussians, quats=jnp.asarray(quats, jnp.float32))


FRAME_CHOICES = {"every_second": frame_indices, "linspace": linspace_frames}
"""The choices of `DataConfig.orbit_frames`: from first frame, views, frames to the chosen ones."""
