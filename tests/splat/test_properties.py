"""Random and pathological scenes: the rasterizer against its slow twin, in float64.

In float64 no threshold (1/255, 1e-4) is within rounding by accident, so all pixels must agree.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3d_jax.splat import RenderOptions, Tiling, render
from o3d_jax.splat.reference import render_reference
from o3d_jax.types import Gaussians
from support.splats import front_camera

SIZE = (11, 18)
KINDS = (
    *("ordinary", "behind", "near plane", "faint", "clear", "solid", "point", "needle", "disc"),
    *(
        "huge",
        "beyond",
        "no rotation",
        "large quaternion",
        "same place",
        "not a number",
        "infinite",
    ),
)
N = len(KINDS)
# Small rounds, so that scenes take several.
TILING = Tiling(height=11, width=18, tile=8, capacity=16, group=2, chunk=3, block=7)


def scene_of(kinds: list[str], seed: int) -> tuple[Gaussians, np.ndarray]:
    """Gaussians before `front_camera`, and which are not finite."""
    rng = np.random.default_rng(seed)
    n = len(kinds)
    means, scales = rng.uniform(-0.4, 0.4, (n, 3)), np.exp(rng.uniform(-4.5, -1.5, (n, 3)))
    quats, opacities, colors = rng.normal(size=(n, 4)), rng.uniform(0.01, 1, n), rng.random((n, 3))
    bad = np.zeros(n, bool)
    for i, kind in enumerate(kinds):
        match kind:
            case "behind":
                means[i, 2] -= 4
            case "near plane":
                means[i, 2] = -1.8
            case "faint":
                opacities[i] = 1 / 255
            case "clear":
                opacities[i] = 0
            case "solid":
                opacities[i] = 1
            case "point":
                scales[i] = 0
            case "needle":
                scales[i, :2] = 0
            case "disc":
                scales[i, 1] = 0
            case "huge":
                scales[i] *= 1e3
            case "beyond":
                scales[i] = 1e300
            case "no rotation":
                quats[i] = 0
            case "large quaternion":
                quats[i] *= 1e200
            case "same place":
                means[i] = means[0]
            case "not a number":
                bad[i] = True
                (means, scales, quats, colors)[rng.integers(4)][i, rng.integers(3)] = np.nan
            case "infinite":
                bad[i] = True
                (means, scales, quats, colors)[rng.integers(4)][i, rng.integers(3)] = np.inf
    fields = dict(means=means, scales=scales, quats=quats, opacities=opacities, colors=colors)
    return Gaussians(**{k: jnp.asarray(v, jnp.float64) for k, v in fields.items()}), bad


@functools.partial(jax.jit, static_argnums=0)
def image_and_gradients(draw, gaussians):
    camera = front_camera(SIZE, np.float64)
    background = jnp.array([0.9, 0.1, 0.6], jnp.float64)
    weights = np.random.default_rng(1).normal(size=(1, *SIZE, 5))

    def loss(gaussians, camera, background):
        rendering = draw(gaussians, camera, SIZE, background)
        stacked = jnp.concatenate([rendering.rgb, rendering.alpha, rendering.depth], axis=-1)
        return jnp.sum(weights * stacked), rendering

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(gaussians, camera, background)


ours = functools.partial(render, options=RenderOptions(tiling=TILING))


@pytest.fixture(scope="module", autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def assert_twins(gaussians: Gaussians, bad: np.ndarray) -> None:
    mask = jnp.asarray(bad)
    sound = jax.tree.map(
        lambda x: jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), 0, x), gaussians
    )
    gradients, image = image_and_gradients(ours, gaussians)
    expected_gradients, expected = image_and_gradients(render_reference, sound)
    for a, b in zip(jax.tree.leaves(image), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True)
    for a, b in pairs:
        # 1e-9 of the largest: sums over pixels, and covariances whose entries cancel.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1, np.abs(b).max()))
    for leaf in jax.tree.leaves(gradients[0]):
        assert not np.any(np.asarray(leaf)[bad])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(KINDS), min_size=N, max_size=N), st.integers(0, 2**31))
def test_any_scene_is_drawn_as_by_the_slow_twin(kinds, seed):
    assert_twins(*scene_of(kinds, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_of_one_kind_is_drawn_as_by_the_slow_twin(kind):
    assert_twins(*scene_of([kind] * N, 7))


def test_thousands_in_one_tile_are_drawn_as_by_the_slow_twin():
    gaussians, bad = scene_of(["ordinary"] * 3000, 5)
    crowded = Gaussians(
        means=gaussians.means * jnp.array([[0.05, 0.05, 1.0]]),
        scales=gaussians.scales * 0.1,
        quats=gaussians.quats,
        opacities=gaussians.opacities * 0.02,
        colors=gaussians.colors,
    )
    assert_twins(crowded, bad)
