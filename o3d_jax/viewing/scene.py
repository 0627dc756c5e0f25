"""What stands in a viser scene: the object, the cameras of its views, its mesh.

The scene's axes are those of the upright world (`geometry/upright.py`): y up, the input view in
front, which is +z. Each part has a fixed name; what is put under it replaces what was there.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.linalg import norm
from scipy.spatial.transform import Rotation

from o3d_jax.geometry.quaternions import rotation_matrices
from o3d_jax.types import Cameras, Gaussians

FRUSTUM_SIZE = 0.12
"""Size of a camera, in scene units; the cameras are 1.5 from the middle of the object."""

BLUE, GRAY = (40, 90, 200), (120, 120, 120)
"""Colors of the input's camera and of the others."""

AFAR = (-25.0, 22.5)
"""Degrees about x and then y of the look from afar: from above, between two cameras."""

THEME = {"show_logo": False, "show_share_button": False, "control_width": "large"}
"""viser's logo and button for sharing would lead to other hosts."""


def set_stage(server: Any, cameras: Cameras, from_afar: bool) -> None:
    """Sets a viser server's axes, and the first look: the input's, or one from behind all cameras.

    From afar, one sees the cameras; the input's own picture would hide the object.
    """
    server.gui.configure_theme(**THEME)
    server.scene.set_up_direction("+y")
    position = _pose(cameras, 0)[:3, 3]
    if from_afar:
        position = Rotation.from_euler("xy", AFAR, degrees=True).apply([0, 0, 2 * norm(position)])
    server.initial_camera.position = tuple(position)
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
    server.initial_camera.fov = _field_of_view(cameras)


def put_object(scene: Any, gaussians: Gaussians) -> Any:
    """Puts Gaussians into a scene, and returns viser's handle of them."""
    return scene.add_gaussian_splats(
        "/object",
        centers=np.asarray(gaussians.means),
        covariances=covariances(gaussians),
        rgbs=np.asarray(gaussians.colors).clip(0, 1),
        opacities=np.asarray(gaussians.opacities)[:, None],
    )


def put_cameras(scene: Any, cameras: Cameras, views: UInt8[np.ndarray, "v h w 3"]) -> list[Any]:
    """Puts cameras with what they see into a scene, and returns viser's handles of them."""
    handles = []
    for i, view in enumerate(views):
        pose = _pose(cameras, i)
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        handle = scene.add_camera_frustum(
            f"/cameras/{i}",
            fov=_field_of_view(cameras),
            aspect=1.0,
            scale=FRUSTUM_SIZE,
            thickness=0.004,
            color=GRAY if i else BLUE,
            image=view,
            format="png",
            wxyz=(w, x, y, z),
            position=tuple(pose[:3, 3]),
            cast_shadow=False,
            receive_shadow=False,
        )
        handles.append(handle)

    return handles


def put_mesh(scene: Any, glb: bytes) -> Any:
    """Puts a mesh, y up, into a scene, and returns viser's handle of it."""
    return scene.add_glb("/mesh", glb, cast_shadow=False, receive_shadow=False)


def covariances(gaussians: Gaussians) -> Float[np.ndarray, "n 3 3"]:
    """Returns the covariance matrix of each Gaussian, R diag(scales^2) R^T."""
    own = rotation_matrices(gaussians.quats) * np.asarray(gaussians.scales, np.float64)[:, None]
    return own @ np.swapaxes(own, -1, -2)


def _pose(cameras: Cameras, view: int) -> Float[np.ndarray, "4 4"]:
    return np.asarray(cameras.camera_to_world[view], np.float64)


def _field_of_view(cameras: Cameras) -> float:
    """The vertical one, in radians; K is in units of the picture's height."""
    return float(2 * np.arctan(0.5 / np.asarray(cameras.intrinsics)[0, 1, 1]))
