"""Each fault of a rendered orbit has its line, and a sound orbit has none."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from o3d_jax.config import CameraConfig
from o3d_jax.data.orbits.checks import Expected, box_corners, inspect_orbit, project
from o3d_jax.data.orbits.folder import RenderedOrbit, read_orbit, write_orbit
from o3d_jax.data.toys.assembly import assemble
from o3d_jax.data.toys.parts import Coat, box
from o3d_jax.data.toys.seeded import orbit_azimuths, orbit_elevation, render_orbit
from o3d_jax.data.toys.shapes import Eye
from o3d_jax.data.toys.shapes import Image as Drawn
from o3d_jax.data.toys.tracing import draw_toy
from o3d_jax.geometry.orbits import orbit_poses, pinhole

SEED, FRAMES, SIZE = 102, 6, 48
EXPECTED = Expected(FRAMES, radius=1.5, fov=49.1)


@pytest.fixture(scope="module")
def toy():
    """A real object, with maps."""
    made = render_orbit(SEED, SIZE, frames=FRAMES, camera=CameraConfig())
    azimuths, elevation = orbit_azimuths(SEED, FRAMES), orbit_elevation(SEED, (-5.0, 30.0))
    poses = orbit_poses(elevation, azimuths, 1.5)
    return RenderedOrbit("toy", made.rgba, poses, 49.1, made.depth[..., 0], made.position)


@pytest.fixture(scope="module")
def sound(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks") / "toy"
    write_orbit(folder, toy)
    return folder


def problems_of(folder, expected=EXPECTED):
    return inspect_orbit(folder, "toy", expected).problems


def test_a_sound_orbit_has_no_problem_and_comes_back(sound, toy):
    found = inspect_orbit(sound, "toy", EXPECTED)
    assert found.problems == ()
    np.testing.assert_array_equal(found.orbit.position, toy.position)


def without_maps(folder):
    (folder / "maps.npz").unlink()


def changed_frame(change):
    """Changes the pixels of frame 2."""

    def fault(folder):
        path = folder / "render_0002.png"
        pixels = np.array(Image.open(path))
        Image.fromarray(change(pixels)).save(path)

    return fault


def changed_poses(change):
    """Changes the matrices of meta.json, which have Blender's axes."""

    def fault(folder):
        meta = json.loads((folder / "meta.json").read_text())
        poses = np.array([place["transform_matrix"] for place in meta["locations"]])
        for place, pose in zip(meta["locations"], change(poses), strict=True):
            place["transform_matrix"] = pose.tolist()
        (folder / "meta.json").write_text(json.dumps(meta))

    return fault


def fewer(folder):
    meta = json.loads((folder / "meta.json").read_text())
    meta["locations"].pop()
    (folder / "meta.json").write_text(json.dumps(meta))


def one(index, *place, factor):
    def change(poses):
        poses[(index, *place)] *= factor
        return poses

    return change


def turned(poses):
    """Camera 1 looks 30 degrees aside."""
    angle = np.deg2rad(30)
    c, s = np.cos(angle), np.sin(angle)
    poses[1, :3, :3] = poses[1, :3, :3] @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return poses


def cut_short(folder):
    path = folder / "render_0002.png"
    path.write_bytes(path.read_bytes()[:-100])


def with_alpha(value):
    def change(pixels):
        pixels[..., 3] = value
        return pixels

    return change


FAULTS = {
    "15 of 16": (fewer, ["5 frames, not 6"]),
    "missing": (lambda f: (f / "render_0002.png").unlink(), ["render_0002.png is missing"]),
    "cut short": (cut_short, ["render_0002.png is damaged"]),
    "RGB": (changed_frame(lambda p: p[..., :3]), ["render_0002.png is RGB, not RGBA"]),
    "opaque": (changed_frame(with_alpha(255)), ["frame 2 is opaque everywhere"]),
    "empty": (changed_frame(with_alpha(0)), ["frame 2 shows nothing: 0 of 2304"]),
    "faint": (changed_frame(with_alpha(100)), ["frame 2 shows nothing: 0 of 2304"]),
    "size": (changed_frame(lambda p: p[:-1]), ["of several sizes: 48 x 47, 48 x 48 pixels"]),
    "NaN": (changed_poses(one(3, 0, 3, factor=np.nan)), ["pose of frame 3 has values that are"]),
    "mirrored": (changed_poses(one(3, slice(3), 0, factor=-1)), ["frame 3 is mirrored"]),
    "sheared": (changed_poses(one(3, slice(3), 0, factor=1.1)), ["frame 3 is not rigid"]),
    "two bad poses": (
        lambda f: [changed_poses(one(k, slice(3), 0, factor=-1))(f) for k in (1, 4)],
        ["frame 1 is mirrored", "frame 4 is mirrored"],
    ),
    "radius": (
        changed_poses(one(4, slice(3), 3, factor=1.1)),
        ["camera of frame 4 is 1.65 from the origin, not 1.5"],
    ),
    "aside": (changed_poses(turned), ["camera of frame 1 does not look at the origin"]),
    "two faults": (
        lambda f: [cut_short(f), changed_poses(one(4, slice(3), 3, factor=1.1))(f)],
        ["camera of frame 4 is 1.65", "render_0002.png is damaged"],
    ),
}


@pytest.mark.parametrize(("fault", "expected"), FAULTS.values(), ids=FAULTS)
def test_each_fault_has_its_line_and_no_other(sound, tmp_path, fault, expected):
    shutil.copytree(sound, tmp_path / "toy")
    without_maps(tmp_path / "toy")  # Of which there are lines of their own.
    fault(tmp_path / "toy")
    found = problems_of(tmp_path / "toy")
    assert len(found) == len(expected), found
    for line, words in zip(found, expected, strict=True):
        assert words in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("place", "edge"),
    [((9, 0), "left"), ((0, 9), "top"), ((9, -1), "right"), ((-1, 9), "bottom")],
)
def test_a_cropped_object_names_the_edge(sound, tmp_path, place, edge):
    shutil.copytree(sound, tmp_path / "toy")
    without_maps(tmp_path / "toy")

    def touch(pixels):
        pixels[(*place, 3)] = 200
        return pixels

    changed_frame(touch)(tmp_path / "toy")
    (found,) = problems_of(tmp_path / "toy")
    assert f"frame 2 is cropped: the object touches the {edge} edge" in found


def test_the_same_camera_twice_is_told(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "toy")
    without_maps(tmp_path / "toy")

    def repeat(poses):
        poses[5] = poses[1]
        return poses

    changed_poses(repeat)(tmp_path / "toy")
    assert problems_of(tmp_path / "toy") == ("frames 1 and 5 have the same camera",)


def test_another_radius_or_field_of_view_than_expected_is_told_if_one_is(sound):
    assert problems_of(sound, Expected(FRAMES)) == ()
    assert problems_of(sound, Expected(FRAMES, fov=39.6)) == (
        "field of view 49.1 degrees, not 39.6",
    )
    assert len(problems_of(sound, Expected(FRAMES, radius=1.7))) == FRAMES


@pytest.mark.parametrize(
    "wrong",
    [
        lambda toy: {"fov": 40.0},
        lambda toy: {"camera_to_world": np.roll(toy.camera_to_world, 2, axis=0)},
        lambda toy: {"rgba": toy.rgba[:, ::-1]},
        lambda toy: {"rgba": toy.rgba[:, :, ::-1]},
        lambda toy: {"position": toy.position[..., [0, 2, 1]]},
    ],
    ids=["field of view", "poses of other frames", "upside down", "left to right", "z up"],
)
def test_frames_cameras_and_maps_must_belong_together(toy, tmp_path, wrong):
    write_orbit(tmp_path / "toy", toy._replace(**wrong(toy)))
    found = problems_of(tmp_path / "toy", Expected(FRAMES))
    assert found
    assert all("of the surface in the position map is outside" in line for line in found)


def test_a_wrong_camera_is_not_told_again_for_its_map(sound, tmp_path):
    for fault in (turned, one(1, slice(3), 3, factor=np.nan)):
        shutil.copytree(sound, tmp_path / "toy", dirs_exist_ok=True)
        changed_poses(fault)(tmp_path / "toy")
        assert len(problems_of(tmp_path / "toy")) == 1


def test_maps_of_another_size_or_with_holes_are_told(sound, toy, tmp_path):
    position = toy.position.copy()
    position[toy.rgba[..., 3] > 200] = np.inf
    write_orbit(tmp_path / "a", toy._replace(position=position))
    assert problems_of(tmp_path / "a") == ("the position map has values that are not finite",)
    shutil.copytree(sound, tmp_path / "b")
    np.savez(tmp_path / "b" / "maps.npz", depth=np.zeros((6, 9, 9), np.float32))
    (found,) = problems_of(tmp_path / "b")
    assert "depth is float32 (6, 9, 9), not" in found


def test_the_corners_of_a_box_are_the_bounds_of_its_silhouette_at_512_px():
    """Within 1.5 px: edges are antialiased, and lie anywhere in a pixel."""
    made = assemble([box(Coat(first=(0.5, 0.5, 0.5)), (1.0, 0.7, 0.5), 0.0)], 0.58)
    half = np.abs(made.solid.parts["size"][0])
    poses = orbit_poses(12.0, np.array([17.0, 130.0, 275.0]), 1.5)
    for pose in poses:
        image = Drawn(
            np.zeros((512, 512, 4), np.uint8),
            np.zeros((512, 512, 1), np.float32),
            np.zeros((512, 512, 3), np.float32),
        )
        focal = float(pinhole(49.1)[0, 0])
        draw_toy(made.solid, Eye(pose[:3, 3].copy(), pose[:3, :3].copy(), focal, 0.58), image)
        corners = np.array(list(itertools.product(*zip(-half, half, strict=True))))
        pixels = project(corners, pose, 49.1, 512)
        rows, columns = (np.flatnonzero((image.rgba[..., 3] > 127).any(axis)) for axis in (1, 0))
        np.testing.assert_allclose(pixels.min(axis=0), [columns[0], rows[0]], atol=1.5)
        np.testing.assert_allclose(pixels.max(axis=0), [columns[-1] + 1, rows[-1] + 1], atol=1.5)


def test_the_box_is_around_what_the_silhouettes_show(toy):
    """A point that is seen at an edge only, and so may be anywhere, does not stretch it."""
    position, rgba = toy.position.copy(), toy.rgba.copy()
    low, high = (f(position[rgba[..., 3] > 127], axis=0) for f in (np.min, np.max))
    place = np.argwhere(rgba[0, ..., 3] == 0)[0]
    position[0, *place], rgba[0, *place, 3] = 7.0, 100
    corners = box_corners(toy._replace(position=position, rgba=rgba))
    np.testing.assert_allclose(corners[[0, 7]], [low, high])
    np.testing.assert_allclose(corners[4], [high[0], low[1], low[2]])


def test_without_a_map_the_box_is_the_scenes(sound):
    corners = box_corners(read_orbit(sound)._replace(position=None))
    np.testing.assert_array_equal(corners[[0, 1, 7]], [[-1, -1, -1], [-1, -1, 1], [1, 1, 1]])
