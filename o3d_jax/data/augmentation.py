"""Further training samples from one: seen in a mirror, and in other colors.

Both keep what is learned true: a mirrored orbit is the orbit of the mirrored object, and colors
change in all views alike. White stays white, so backgrounds do.
"""

import math

import numpy as np
from jaxtyping import Float

from o3d_jax.config import DataConfig
from o3d_jax.data.views import Views

MIRROR = np.diag(np.array([-1, 1, 1, 1], np.float32))
"""The matrix that turns x around, in the world and in cameras."""


def augmented(data: DataConfig, views: Views, rng: np.random.Generator) -> Views:
    """Returns the sample, changed at random as `data.mirror` and `data.recolor` allow."""
    if data.mirror and rng.random() < 0.5:
        views = mirrored(views)
    if data.recolor:
        views = recolored(views, 2 * math.pi * rng.random(), rng.permutation(3))
    return views


def mirrored(views: Views) -> Views:
    """Returns the same orbit of the object that a mirror shows: x is turned around.

    A mirrored orbit runs the other way. So that azimuths rise as in all others, the views after
    the first are taken in the opposite order.
    """
    order = -np.arange(len(views.images)) % len(views.images)  # 0, v - 1, v - 2, ..., 1.
    intrinsics = views.intrinsics.copy()
    intrinsics[0, 2] = 1 - intrinsics[0, 2]
    return Views(
        images=views.images[order, :, ::-1],
        alpha=views.alpha[order, :, ::-1],
        camera_to_world=(MIRROR @ views.camera_to_world @ MIRROR)[order],
        intrinsics=intrinsics,
    )


def recolored(views: Views, angle: float, channels: np.ndarray) -> Views:
    """Returns the sample with its hues turned by an angle (radians), then its channels reordered.

    Turning is about the axis of grays, which stay what they are; what leaves [0, 1] is clipped.
    """
    # What is missing from white is turned, so that white stays exactly white.
    turned = 1 - (1 - views.images) @ hue_rotation(angle).T
    return views._replace(images=np.clip(turned[..., channels], 0, 1))


def hue_rotation(angle: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation of RGB about (1, 1, 1), which takes red toward green.

    It is Rodrigues' formula, for which every entry depends on the difference of its indices only.
    """
    third, cos, sin = 1 / 3, math.cos(angle), math.sin(angle) / math.sqrt(3)
    same, after, before = third + 2 * third * cos, third * (1 - cos) + sin, third * (1 - cos) - sin
    rows = [[same, before, after], [after, same, before], [before, after, same]]
    return np.array(rows, np.float32)
