"""What the rasterizer does with degenerate, spoilt, missing and mismatched input."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from o3d_jax.splat import RenderOptions, check_finite, render
from o3d_jax.splat.project import project_gaussians, view_of
from o3d_jax.types import Gaussians
from support.splats import (
    BACKGROUND,
    FRAME,
    SIZE,
    TEN_ROUNDS,
    assert_same,
    balls,
    cases,
    draw_balls,
    front_camera,
    orbit,
    pull_back,
    scene,
    show_balls,
    slow_twin,
)


def test_degenerate_gaussians_have_finite_values_and_gradients():
    gaussians = scene(1)
    zero = jnp.zeros(())
    gaussians = Gaussians(
        means=gaussians.means.at[0].set(orbit((), 3).camera_to_world[0, :3, 3]),  # At the camera.
        scales=gaussians.scales.at[1:3].set(zero).at[3, 0].set(zero),
        quats=gaussians.quats.at[4:6].set(zero),
        opacities=gaussians.opacities.at[5:9].set(zero).at[9].set(1),
        colors=gaussians.colors,
    )
    cameras, weights = cases((), 3)[1:]
    ours = pull_back(render, gaussians, cameras, BACKGROUND, weights)
    for leaf in jax.tree.leaves(ours):
        assert np.isfinite(leaf).all()
    assert_same(ours, slow_twin(gaussians, cameras, weights))


def spoilt(gaussians: Gaussians) -> Gaussians:
    """The Gaussians 3, 10, 21, 34 and 55 with numbers that are none."""
    return Gaussians(
        means=gaussians.means.at[3, 1].set(jnp.nan).at[55, 2].set(jnp.inf),
        scales=gaussians.scales.at[10, 0].set(jnp.inf),
        quats=gaussians.quats.at[21, 3].set(jnp.nan),
        opacities=gaussians.opacities,
        colors=gaussians.colors.at[34, 2].set(-jnp.inf),
    )


def test_what_is_not_finite_is_not_drawn_and_poisons_nothing():
    gaussians, cameras, weights = cases((), 3)
    bad = np.array([3, 10, 21, 34, 55])
    hidden = dataclasses.replace(gaussians, opacities=gaussians.opacities.at[bad].set(0))
    (image, (gradient, *others)), (expected, (without, *rest)) = (
        pull_back(render, g, cameras, BACKGROUND, weights) for g in (spoilt(gaussians), hidden)
    )
    for a, b in zip(jax.tree.leaves(image), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        jax.tree.leaves((gradient, others)), jax.tree.leaves((without, rest)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert not any(np.any(np.asarray(leaf)[bad]) for leaf in jax.tree.leaves(gradient))


def test_a_camera_that_is_not_finite_shows_the_background_and_poisons_nothing():
    gaussians, cameras, weights = cases((), 3)
    intrinsics = cameras.intrinsics.at[1, 0, 0].set(jnp.nan)
    spoilt = dataclasses.replace(cameras, intrinsics=intrinsics)
    image, (gradient, by_camera, _) = pull_back(render, gaussians, spoilt, BACKGROUND, weights)
    np.testing.assert_array_equal(image.rgb[1], np.broadcast_to(BACKGROUND, (*SIZE, 3)))
    seen = jax.tree.map(lambda x: x.at[1].set(0), weights)
    expected, (without, by_sound, _) = pull_back(render, gaussians, cameras, BACKGROUND, seen)
    for view in (0, 2):
        np.testing.assert_array_equal(image.rgb[view], expected.rgb[view])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(by_camera), jax.tree.leaves(by_sound), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_float32_cannot_square_has_no_gradient_rather_than_nan():
    gaussians = scene(5)
    huge = dataclasses.replace(gaussians, quats=gaussians.quats.at[4].multiply(1e20))

    def total(gaussians):  # Quaternions as they are: the rotation overflows.
        camera = front_camera(SIZE)
        view = view_of(camera.camera_to_world[0], camera.intrinsics[0], SIZE)
        splats, _ = project_gaussians(gaussians, view, SIZE, "exact", False)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(splats))

    gradient = jax.jit(jax.grad(total))(huge)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and not np.any(np.asarray(leaf)[4])
        assert np.any(np.asarray(leaf)[3])


def test_a_ball_of_a_million_pixels_covers_the_image_evenly():
    wide = balls([0.5], [2.0])
    wide = dataclasses.replace(wide, scales=wide.scales.at[0].set(1e5))
    np.testing.assert_allclose(draw_balls(wide).alpha, 0.5, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "place"), [("means", 3), ("scales", 10), ("quats", 21), ("colors", 34)]
)
def test_checked_mode_names_what_is_not_finite(field, place):
    gaussians = scene(5)
    gaussians = dataclasses.replace(gaussians, **{field: getattr(spoilt(gaussians), field)})

    def draw(gaussians, cameras):
        check_finite(gaussians, cameras, BACKGROUND)
        return render(gaussians, cameras, FRAME, BACKGROUND)

    error, shape = jax.eval_shape(checkify.checkify(draw), gaussians, front_camera(FRAME))
    assert shape.rgb.shape == (1, *FRAME, 3)
    check = jax.jit(checkify.checkify(lambda g: check_finite(g, front_camera(FRAME), BACKGROUND)))
    with pytest.raises(ValueError, match=rf"gaussians.{field} at \[{place}\] is not finite"):
        check(gaussians)[0].throw()
    assert check(scene(5))[0].get() is None


def test_checked_mode_names_a_camera_too():
    cameras = orbit((2,), 3)
    cameras = dataclasses.replace(
        cameras, intrinsics=cameras.intrinsics.at[1, 2, 0, 0].set(jnp.nan)
    )
    with pytest.raises(ValueError, match=r"cameras.intrinsics at \[1 2\] is not finite"):
        check_finite(scene(5, (2,)), cameras, BACKGROUND)


def test_half_precision_is_drawn_in_float32():
    gaussians = balls([0.8, 0.5], [2.0, 2.5])
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), gaussians)
    ours = draw_balls(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    np.testing.assert_array_equal(ours.rgb, draw_balls(rounded).rgb)


def test_new_values_do_not_compile_again():
    draw = jax.jit(chex.assert_max_traces(show_balls, n=1))
    for opacities, depths in (
        ([0.3, 0.5, 0.2], [1.0, 2.0, 0.7]),
        ([0.2, 0.1, 0.9], [3.0, 0.5, 0.1]),
    ):
        draw(balls(opacities, depths))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (0, 5)}, "an image of 0 x 5 px"),
        (
            {"size": (22, 34), "options": RenderOptions(tiling=TEN_ROUNDS)},
            "a tiling for 21 x 34 px cannot draw",
        ),
        ({"cameras": orbit((2,), 1)}, r"batch axes \(\) cannot be seen by cameras with \(2,\)"),
    ],
)
def test_what_does_not_go_together_is_an_error(changes, message):
    arguments = {"size": SIZE, "cameras": orbit((), 1), **changes}
    with pytest.raises(ValueError, match=message):
        render(scene(5), background=BACKGROUND, **arguments)


@pytest.mark.parametrize(("batch", "views"), [((), 0), ((0,), 2), ((2, 0), 1)])
def test_nothing_to_draw_is_drawn(batch, views):
    draw = functools.partial(render, size=SIZE, background=BACKGROUND)
    assert draw(scene(5, batch), orbit(batch, views)).depth.shape == (*batch, views, *SIZE, 1)


def test_no_gaussians_show_the_background():
    gaussians, cameras, weights = cases((), 3)
    empty = jax.tree.map(lambda x: x[:0], gaussians)
    rendering, (gradient, _, background) = pull_back(render, empty, cameras, BACKGROUND, weights)
    np.testing.assert_array_equal(rendering.rgb, np.broadcast_to(BACKGROUND, (3, *SIZE, 3)))
    np.testing.assert_array_equal(rendering.alpha, 0)
    assert gradient.means.shape == (0, 3)
    # 1e-3: a sum of 2142 float32 numbers near 1.
    np.testing.assert_allclose(background, weights.rgb.sum((0, 1, 2)), atol=1e-3)
