"""Distances between surfaces that are known by hand, and meshes in worlds of any orbit."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh

from o3d_jax.data.meshes.orbits import OrbitPlan
from o3d_jax.errors import InputError
from o3d_jax.evaluation.data import SeenObject
from o3d_jax.evaluation.scores import NO_SHAPE
from o3d_jax.evaluation.shapes import (
    TrueShape,
    TrueShapes,
    draw_alpha,
    points_on,
    shape_of_gaussians,
    shape_score,
    surface_score,
)
from o3d_jax.geometry.orbits import orbit_poses
from support.solids import ball, radius_at

FOV = 40.0


def sphere(radius):
    return np.asarray(trimesh.creation.icosphere(4, radius).triangles)


def test_points_lie_evenly_on_the_triangles():
    wide = np.array([[[0, 0, 0], [4, 0, 0], [0, 4, 0]], [[0, 0, 1], [1, 0, 1], [0, 1, 1]]], float)
    points = points_on(wide, 5000)
    # 8 to 0.5; by even steps, so exact but for one.
    assert abs((points[:, 2] > 0.5).sum() - 5000 / 17) <= 1
    below = points[points[:, 2] < 0.5]
    assert (below[:, :2] >= 0).all() and (below[:, 0] + below[:, 1] < 4 + 1e-9).all()
    # The middle of a triangle; means of 4700 points, of deviation 0.94.
    np.testing.assert_allclose(below.mean(axis=0)[:2], 4 / 3, atol=3 * 0.94 / 4700**0.5)
    assert (below[:, 0] < 1).mean() == pytest.approx(7 / 16, abs=0.03)


@pytest.mark.parametrize(("radius", "fscore"), [(0.509, 1.0), (0.54, 0.0)])
def test_spheres_around_each_other_are_the_difference_of_their_radii_apart(radius, fscore):
    diagonal = 1.0
    found = surface_score(points_on(sphere(radius)), points_on(sphere(0.5)), diagonal)
    # The same draws on both, so that points face each other; triangles are a bit inside.
    assert found.chamfer == pytest.approx(100 * (radius - 0.5), rel=0.005)
    assert found.fscore == fscore


def test_chamfer_and_f_score_count_both_directions():
    """Half a sphere is all right, and half of what is there is missing."""
    whole = points_on(sphere(0.5))
    half = whole[whole[:, 1] > 0]

    def of(found, truth, diagonal=1.0):
        return surface_score(found, truth, diagonal).values()[1:]

    assert of(half, whole)[1] == pytest.approx(
        2 * 1 * 0.51 / 1.51, abs=0.01
    )  # 1 % more is near enough.
    assert of(whole, half) == pytest.approx(of(half, whole))
    assert of(whole, whole) == [0.0, 1.0]
    assert of(2 * half, 2 * whole, 2.0) == pytest.approx(
        of(half, whole)
    )  # In units of the diagonal.


def letter(turn):
    """An object with no symmetry: two boxes, turned about the vertical by some degrees."""
    boxes = [trimesh.creation.box((0.5, 0.2, 0.1)), trimesh.creation.box((0.1, 0.4, 0.3))]
    boxes[1].apply_translation((0.2, 0.2, 0.15))
    mesh = trimesh.util.concatenate(boxes)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(np.deg2rad(turn), [0, 1, 0]))
    return mesh


@pytest.fixture(scope="module")
def seen():
    """Silhouettes of the letter from above, from 70 degrees on, and its shape."""
    truth = letter(0)
    poses = orbit_poses(20.0, np.array([70.0, 160.0, 250.0]), 1.5)
    alpha = draw_alpha(np.array(truth.vertices), np.array(truth.faces), poses, FOV, 40)
    shape = TrueShape(points_on(np.asarray(truth.triangles)), float(np.ptp(truth.bounds, 0).sum()))
    return shape, SeenObject(poses, FOV, alpha)


def in_method(mesh):
    """The world of the method for an input at 70 degrees, 20 above: turned back, then tilted."""
    turned = mesh.copy()
    for degrees, axis in ((-70, [0, 1, 0]), (20, [1, 0, 0])):
        turned.apply_transform(trimesh.transformations.rotation_matrix(np.deg2rad(degrees), axis))
    return np.array(turned.vertices), np.array(turned.faces)


def test_the_true_mesh_in_the_world_of_the_method_is_perfect(seen):
    found = shape_score(*in_method(letter(0)), *seen)
    assert found.silhouette > 0.999 and found.fscore == 1
    assert found.chamfer < 0.3  # Between points of two draws.
    turned = shape_score(*in_method(letter(90)), *seen)
    assert turned.silhouette < 0.7 and turned.fscore < 0.4 and turned.chamfer > 5


def test_gaussians_are_measured_by_their_mesh_and_nothing_to_see_is_the_worst(seen):
    shape, looked = seen
    round_one = points_on(sphere(radius_at(0.5)) + [0.05, -0.1, 0.2])
    poses = orbit_poses(0.0, np.array([0.0, 90.0]), 1.5)  # Whose world is the method's.
    truth = TrueShape(round_one, float(2 * radius_at(0.5) * 3**0.5))
    found = shape_of_gaussians(ball(), truth, SeenObject(poses, FOV, looked.alpha[:2]))
    # The threshold is within 10 % of 0.5, and so the radius within 4 %, 1.1 % of the diagonal.
    assert found.chamfer < 1.5 and found.fscore > 0.4
    faint = dataclasses.replace(ball(), opacities=ball().opacities * 0)
    assert shape_of_gaussians(faint, truth, looked) == NO_SHAPE


def test_true_shapes_are_as_large_as_they_were_rendered(tmp_path):
    (tmp_path / "models" / "a").mkdir(parents=True)
    letter(0).apply_scale(700).export(tmp_path / "models" / "a" / "b.glb")
    rendered = tmp_path / "rendered"
    rendered.mkdir()
    with pytest.raises(InputError, match="does not say how models were rendered"):
        TrueShapes(tmp_path / "models", rendered)
    settings = dataclasses.asdict(OrbitPlan(fit="cube", radius=3.0)) | {"renderer": "software 2"}
    (rendered / "render_settings.json").write_text(json.dumps(settings))
    shapes = TrueShapes(tmp_path / "models", rendered)
    found = shapes.of("a__b")
    sides = np.ptp(letter(0).bounds, axis=0)
    expected = sides * (2 / sides.max())  # The longest side is 2.
    np.testing.assert_allclose(np.ptp(found.points, axis=0), expected, rtol=0.01)
    assert found.diagonal == pytest.approx(np.linalg.norm(expected))
    before = shapes.digest_of(["a__b"])
    with pytest.raises(InputError, match="--true-meshes lacks 1 of 2 objects: c; give the folder"):
        shapes.digest_of(["a__b", "c"])
    letter(5).export(tmp_path / "models" / "a" / "b.glb")
    assert TrueShapes(tmp_path / "models", rendered).digest_of(["a__b"]) != before
