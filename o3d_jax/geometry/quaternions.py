"""Quaternions (w, x, y, z) of Gaussians outside of `splat`, on the host in float64."""

import numpy as np
from jaxtyping import Array, Float


def or_identity(
    quats: Float[Array, "*n 4"] | Float[np.ndarray, "*n 4"],
) -> Float[np.ndarray, "*n 4"]:
    """Returns the quaternions with zero ones replaced by the identity, as `render` takes them."""
    quats = np.asarray(quats, np.float64)
    return np.where(quats.any(axis=-1, keepdims=True), quats, [1.0, 0, 0, 0])


def rotation_matrices(
    quats: Float[Array, "n 4"] | Float[np.ndarray, "n 4"],
) -> Float[np.ndarray, "n 3 3"]:
    """Returns the rotation of each quaternion, normalized: own axes to the world's."""
    from scipy.spatial.transform import Rotation  # Slow to import, and rarely needed.

    scalar_last = np.roll(or_identity(quats), -1, axis=-1)  # SciPy's order.
    return Rotation.from_quat(scalar_last).as_matrix()
