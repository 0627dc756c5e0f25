"""A picture of a rendered orbit: its cameras as frustums, and the object's box over each frame."""

import colorsys
import itertools

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from o3d_jax.data.orbits.checks import box_corners, project
from o3d_jax.data.orbits.folder import RenderedOrbit
from o3d_jax.files.images import on_white, to_bytes
from o3d_jax.geometry.orbits import pinhole
from o3d_jax.media.sheets import grid

FRAME_SIZE = 256
"""Width of a frame and of a plan of the cameras, pixels."""

FRAMES_A_ROW = 4
"""How many frames a row has."""

FRUSTUM = 0.25
"""Depth of a drawn frustum, in units of the camera's distance."""

LABEL_SIZE = 12
"""Height of labels, pixels."""

BOX_COLOR = (220, 30, 60)

EDGES = [(a, b) for a, b in itertools.combinations(range(8), 2) if (a ^ b).bit_count() == 1]
"""The edges of a box whose corners are numbered by bits, as `box_corners` does."""

PLANS = {"from above: x right, z down": (0, 2, 1), "from the right: z left, y up": (2, 1, -1)}
"""The axes of the world that a plan draws to the right and down, and the sign of both."""

Line = Float[np.ndarray, "2 3"]


def picture_of_orbit(orbit: RenderedOrbit) -> Float[np.ndarray, "H W 3"]:
    """Returns two plans of the cameras, then all frames, as one picture in [0, 1]."""
    corners = box_corners(orbit)
    plans = [_plan(orbit, corners, title) for title in PLANS]
    frames = [_frame(orbit, corners, i) for i in range(len(orbit.rgba))]
    rows = [frames[i : i + FRAMES_A_ROW] for i in range(0, len(frames), FRAMES_A_ROW)]
    return grid([plans, *rows], least_tile=FRAME_SIZE, most_tile=FRAME_SIZE)


def _frame(
    orbit: RenderedOrbit, corners: Float[np.ndarray, "8 3"], i: int
) -> Float[np.ndarray, "h w 3"]:
    """Returns a frame on white with its number, and the box as its camera sees it."""
    h, w = orbit.rgba.shape[1:3]
    image = Image.fromarray(to_bytes(on_white(orbit.rgba[i])))
    image = image.resize((FRAME_SIZE, max(1, round(FRAME_SIZE * h / w))), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    if _in_front(orbit.camera_to_world[i], corners):
        pixels = project(corners, orbit.camera_to_world[i], orbit.fov, FRAME_SIZE)
        for a, b in EDGES:
            draw.line([*pixels[a], *pixels[b]], BOX_COLOR)
    draw.text((4, 4), str(i), _color(i, len(orbit.rgba)), ImageFont.load_default(LABEL_SIZE))
    return np.asarray(image, np.float32) / 255


def _in_front(pose: Float[np.ndarray, "4 4"], corners: Float[np.ndarray, "8 3"]) -> bool:
    """Returns whether all corners are in front: lines that pass behind a camera have no image."""
    return bool(np.all((corners - pose[:3, 3]) @ pose[:3, 2] > 0))


def _plan(
    orbit: RenderedOrbit, corners: Float[np.ndarray, "8 3"], title: str
) -> Float[np.ndarray, "h w 3"]:
    """Returns all cameras and the box, projected along one axis of the world."""
    across, down, sign = PLANS[title]
    reach = 1.3 * max(np.abs(orbit.camera_to_world[:, :3, 3]).max(), np.abs(corners).max())
    image = Image.new("RGB", (FRAME_SIZE, FRAME_SIZE), "white")
    draw = ImageDraw.Draw(image)

    def line(ends: Line, color: tuple[int, int, int]) -> None:
        places = FRAME_SIZE * (0.5 + 0.5 * sign * ends[:, [across, down]] / reach)
        draw.line([*places[0], *places[1]], color)

    for a, b in EDGES:
        line(corners[[a, b]], BOX_COLOR)
    for i, pose in enumerate(orbit.camera_to_world):
        for ends in frustum(pose, orbit.fov):
            line(ends, _color(i, len(orbit.camera_to_world)))
    font = ImageFont.load_default(LABEL_SIZE)
    draw.text((4, 4), title, "black", font)
    return np.asarray(image, np.float32) / 255


def frustum(pose: Float[np.ndarray, "4 4"], fov: float) -> list[Line]:
    """Returns a camera's view as edges in the world: four from its center, four far ones."""
    center = pose[:3, 3]
    pixels = np.array([[0.0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])
    depth = FRUSTUM * float(np.linalg.norm(center))
    far = center + depth * (pixels @ np.linalg.inv(pinhole(fov)).T) @ pose[:3, :3].T
    sides = [np.stack([center, corner]) for corner in far]
    return [*sides, *(np.stack([far[k], far[k - 1]]) for k in range(4))]


def _color(i: int, count: int) -> tuple[int, int, int]:
    """Returns colors from red over green to blue, dark enough for a white background."""
    red, green, blue = colorsys.hsv_to_rgb(0.75 * i / count, 1, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
