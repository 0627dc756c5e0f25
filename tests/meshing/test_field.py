import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.meshing import silhouettes
from o3d_jax.meshing.field import MARGIN, density_field
from o3d_jax.meshing.silhouettes import (
    FOV,
    Cast,
    Seen,
    agreement,
    best_threshold,
    cast_field,
    draw_gaussians,
    surround,
)
from support.solids import OPACITY, SIGMA, ball, radius_at, several


def rotation(w, x, y, z):
    """Of a unit quaternion, by Rodrigues' formula."""
    angle, axis = 2 * np.arctan2(np.linalg.norm([x, y, z]), w), np.array([x, y, z])
    a, b, c = axis / np.linalg.norm(axis)
    cross = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_the_field_is_the_sum_over_gaussians_at_each_point_of_the_grid():
    scene = several()
    field = density_field(scene, 37)
    assert max(field.density.shape) in (37, 38) and len(set(field.density.shape)) > 1
    points = field.origin + field.spacing * np.moveaxis(np.indices(field.density.shape), 0, -1)
    density, colors = 0, 0
    for i in range(len(scene.means)):
        turn = rotation(*(scene.quats[i] / np.linalg.norm(scene.quats[i])))
        local = (points - np.asarray(scene.means[i])) @ turn / np.asarray(scene.scales[i])
        d = (local**2).sum(axis=-1)
        weight = np.where(d < 9, float(scene.opacities[i]) * np.exp(-d / 2), 0)
        density += weight
        colors += weight[..., None] * np.asarray(scene.colors[i])
    # Float32 sums of float32 Gaussians; a point at 3 deviations may fall on either side.
    near = np.isclose(field.density, density, rtol=1e-4, atol=1e-6)
    assert near.mean() > 0.999
    np.testing.assert_allclose(field.weighted_colors[near], colors[near], rtol=2e-4, atol=1e-5)


def test_the_grid_has_an_empty_border_and_its_longest_side_has_the_steps_asked_for():
    long = dataclasses.replace(ball(), scales=jnp.array([[0.1, 0.3, 0.05]]))
    field = density_field(long, 40)
    assert field.spacing == pytest.approx(6 * 0.3 / (40 - 2 * MARGIN), rel=1e-6)
    for axis in range(3):
        assert not np.moveaxis(field.density, axis, 0)[[0, -1]].any()
    assert field.density.max() > 0.85


def test_a_gaussian_thinner_than_the_grid_is_not_lost_between_its_points():
    flat = dataclasses.replace(ball(), scales=jnp.array([[0.3, 1e-6, 0.3]]))
    for middle in np.linspace(0, 0.05, 5):  # Wherever the points fall.
        moved = dataclasses.replace(flat, means=jnp.array([[0.0, middle, 0.0]]))
        assert density_field(moved, 24).density.max() > 0.5 * OPACITY


def test_faint_stray_gaussians_do_not_make_the_grid_larger():
    stray = several(n=3)
    far = dataclasses.replace(
        stray,
        means=stray.means.at[1].set(jnp.array([50.0, 0, 0])),
        opacities=stray.opacities.at[1].set(0.02),
    )
    assert density_field(far, 32).spacing < 0.2
    with pytest.raises(InputError, match=r"no Gaussian of opacity 0.05 or more; sample it once"):
        density_field(dataclasses.replace(far, opacities=jnp.full(3, 0.01)), 32)


def test_colors_are_means_weighted_by_density():
    two = several(n=2)
    two = dataclasses.replace(
        two,
        means=jnp.array([[-0.2, 0.0, 0.0], [0.2, 0.0, 0.0]]),
        scales=jnp.full((2, 3), 0.15),
        opacities=jnp.array([0.8, 0.4]),
        colors=jnp.array([[1.0, 0.2, 0.0], [0.0, 0.8, 1.0]]),
    )
    field = density_field(two, 64)
    red, middle, blue = field.color_at(np.array([[-0.55, 0, 0], [0, 0, 0], [0.55, 0, 0]]))
    np.testing.assert_allclose(red, two.colors[0], atol=0.01)
    np.testing.assert_allclose(blue, two.colors[1], atol=0.01)
    # Twice as opaque, so two thirds; linear between points of the grid.
    np.testing.assert_allclose(middle, (2 * two.colors[0] + two.colors[1]) / 3, atol=0.01)


def test_rays_find_the_peak_and_the_surface_of_a_ball():
    middle, threshold = np.array([0.05, -0.1, 0.2]), 0.3
    field = density_field(ball(), 64)
    around = surround(field, views=3)
    cast = cast_field(field, around, 33, threshold)
    focal = 0.5 * 33 / np.tan(np.deg2rad(FOV) / 2)
    for pose, peak, depth in zip(around.poses, cast.peak, cast.depth, strict=True):
        offset = (np.arange(33) + 0.5 - 16.5) / focal
        x, y = np.meshgrid(offset, offset)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ pose[:3, :3].T
        to_middle = middle - pose[:3, 3]
        along = rays @ to_middle / (rays**2).sum(-1)  # Depth, where a ray is nearest.
        nearest = np.linalg.norm(along[..., None] * rays - to_middle, axis=-1)
        expected = OPACITY * np.exp(-0.5 * (nearest / SIGMA) ** 2)
        # Beyond 3 deviations nothing is stored; linear interpolation over 0.16 deviations.
        shown = nearest < 2.8 * SIGMA
        np.testing.assert_allclose(peak[shown], expected[shown], atol=0.012)
        radius = radius_at(threshold)
        hit = nearest < 0.9 * radius
        half = np.sqrt(radius**2 - nearest[hit] ** 2) / np.linalg.norm(rays[hit], axis=-1)
        np.testing.assert_allclose(depth[hit], along[hit] - half, atol=0.2 * field.spacing)
        assert not depth[nearest > 1.05 * radius].any()


def test_the_threshold_of_a_single_gaussian_is_where_it_hides_half():
    """Its alpha along a ray is its greatest density there, so their contours at 0.5 are one."""
    scene = ball()
    # Steps of 5 %, and half a pixel of a contour 25 pixels wide, where the density falls by 4 %.
    assert best_threshold(scene, density_field(scene, 64)) == pytest.approx(0.5, rel=0.1)


def test_where_silhouettes_allow_many_thresholds_the_middle_one_is_taken(monkeypatch):
    """A hard wall is as wide at any density; looks are stood in for, so that it is known."""
    opaque, peak = np.zeros((2, 3, 8, 8), np.float32)
    opaque[:, 2:6, 2:6], peak[:, 2:6, 2:6] = 1, 1.2
    peak[:, 0, 0] = 0.1  # A haze, which thresholds below show.
    monkeypatch.setattr(silhouettes, "draw_gaussians", lambda *_: Seen(opaque[..., None], opaque))
    monkeypatch.setattr(silhouettes, "cast_field", lambda *_: Cast(peak, peak))
    scene = ball()
    found = best_threshold(scene, density_field(scene, 16))
    # Steps of 5 %, at either end.
    assert found == pytest.approx((0.1 * 1.2) ** 0.5, rel=0.05)


def test_an_object_that_hides_nothing_has_no_silhouette():
    faint = dataclasses.replace(ball(), opacities=jnp.array([0.3]))
    with pytest.raises(InputError, match="nowhere more than half opaque.*--threshold 0.1"):
        best_threshold(faint, density_field(faint, 16))


def test_what_is_drawn_does_not_depend_on_the_scale_of_the_scene():
    """`render` draws nothing nearer than 0.2, which would be all of a small scene."""
    scene = several()
    field = density_field(scene, 24)
    one = draw_gaussians(scene, surround(field), 128)
    small = dataclasses.replace(scene, means=scene.means * 0.01, scales=scene.scales * 0.01)
    other = draw_gaussians(small, surround(density_field(small, 24)), 128)
    assert one.alpha.max() > 0.8
    np.testing.assert_allclose(other.alpha, one.alpha, atol=1e-4)
    np.testing.assert_allclose(other.rgb, one.rgb, atol=1e-4)


def test_agreement_is_intersection_over_union():
    a, b = np.zeros((2, 5, 7), bool)
    assert agreement(a, b) == 1
    a[1:3, 1:5], b[2:4, 1:5] = True, True
    assert agreement(a, b) == pytest.approx(4 / 12)
