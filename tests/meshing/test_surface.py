import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from o3d_jax.errors import InputError
from o3d_jax.meshing.field import DensityField, density_field
from o3d_jax.meshing.surface import extract_surface, is_closed, taubin, vertex_normals
from o3d_jax.types import Gaussians
from support.solids import ball, radius_at, several


def as_trimesh(surface):
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)


def test_the_surface_of_a_ball_is_a_sphere_of_the_radius_at_which_it_is_so_dense():
    field = density_field(ball(), 48)
    surface = extract_surface(field, 0.4, 10**6)
    found = np.linalg.norm(surface.vertices - [0.05, -0.1, 0.2], axis=-1)
    # Linear interpolation between points and smoothing: a tenth of a step.
    np.testing.assert_allclose(found, radius_at(0.4), atol=0.1 * field.spacing)
    mesh = as_trimesh(surface)
    assert mesh.is_watertight and mesh.euler_number == 2 and mesh.is_winding_consistent
    # Positive, so that triangles turn outward; a polyhedron inside of the sphere.
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius_at(0.4) ** 3, rel=0.02)


def test_normals_point_outward():
    surface = extract_surface(density_field(ball(), 32), 0.4, 10**6)
    outward = surface.vertices - [0.05, -0.1, 0.2]
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    # Triangles of a sixth of the radius.
    assert (vertex_normals(surface) * outward).sum(axis=-1).min() > 0.99


def test_decimation_keeps_the_shape_and_leaves_it_closed():
    field = density_field(several(), 48)
    whole, fewer = (extract_surface(field, 0.4, most) for most in (10**6, 900))
    assert 800 <= len(fewer.faces) <= 900 < len(whole.faces)
    one, other = as_trimesh(whole), as_trimesh(fewer)
    assert other.is_watertight and other.volume == pytest.approx(one.volume, rel=0.01)
    assert np.abs(one.bounds - other.bounds).max() < field.spacing


def shell(radius=0.5, thickness=0.05):
    """Density 1 between two spheres, and a crumb beside it."""
    size = 49
    points = np.moveaxis(np.indices((size, size, size)), 0, -1) - 24
    spacing = 1.4 / size
    r = np.linalg.norm(points, axis=-1) * spacing
    density = np.exp(-(((r - radius) / thickness) ** 2))
    crumb = np.linalg.norm(points - [21, 21, 21], axis=-1) * spacing
    density = np.maximum(density, np.exp(-((crumb / 0.06) ** 2))).astype(np.float32)
    return DensityField(density, np.zeros((*density.shape, 3), np.float32), np.zeros(3), spacing)


def test_hollows_are_filled_and_small_parts_left_out():
    surface = extract_surface(shell(), 0.5, 10**6)
    mesh = as_trimesh(surface)
    assert mesh.body_count == 1 and mesh.is_watertight
    outer = 0.5 + 0.05 * np.sqrt(np.log(2))
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * outer**3, rel=0.02)


def test_two_parts_of_a_size_both_stay():
    two = Gaussians(
        means=jnp.array([[-0.6, 0.0, 0.0], [0.6, 0.0, 0.0]]),
        scales=jnp.array([[0.1, 0.2, 0.1], [0.1, 0.1, 0.1]]),
        quats=jnp.tile(jnp.array([1.0, 0, 0, 0]), (2, 1)),
        opacities=jnp.array([0.9, 0.9]),
        colors=jnp.zeros((2, 3)),
    )
    assert as_trimesh(extract_surface(density_field(two, 48), 0.4, 10**6)).body_count == 2
    crumb = dataclasses.replace(two, scales=two.scales.at[1].set(0.03))  # 1.4 % of the volume.
    assert as_trimesh(extract_surface(density_field(crumb, 48), 0.4, 10**6)).body_count == 1


TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


@pytest.mark.parametrize(
    ("faces", "closed"),
    [
        (TETRAHEDRON, True),
        (np.concatenate([TETRAHEDRON, TETRAHEDRON + 4]), True),
        (TETRAHEDRON[:3], False),
        (np.concatenate([TETRAHEDRON[:3], TETRAHEDRON[3:, ::-1]]), False),  # Turns the other way.
        # Another one at the same edge, 0 to 1.
        (np.concatenate([TETRAHEDRON, np.array([0, 1, 4, 5])[TETRAHEDRON]]), False),
    ],
)
def test_a_surface_is_closed_if_each_edge_has_two_triangles_that_turn_alike(faces, closed):
    assert is_closed(faces) == closed
    vertices = np.random.default_rng(0).normal(size=(faces.max() + 1, 3))
    judged = trimesh.Trimesh(vertices, faces, process=False)
    assert (judged.is_watertight and judged.is_winding_consistent) == closed


def test_smoothing_takes_noise_away_and_keeps_the_size():
    sphere = trimesh.creation.icosphere(3, 0.7)
    noise = np.random.default_rng(0).normal(size=sphere.vertices.shape) * 0.02
    smooth = taubin(sphere.vertices + noise, sphere.faces)
    before, after = (np.linalg.norm(v, axis=-1).std() for v in (sphere.vertices + noise, smooth))
    assert after < 0.45 * before
    still = trimesh.Trimesh(taubin(np.array(sphere.vertices), sphere.faces), sphere.faces)
    # Twenty plain steps of 0.5 would take 7 % of it.
    assert still.volume == pytest.approx(sphere.volume, rel=0.01)


def test_a_threshold_that_nothing_reaches_is_refused():
    with pytest.raises(InputError, match="nowhere above 5; give a lower --threshold"):
        extract_surface(density_field(ball(), 24), 5.0, 1000)
