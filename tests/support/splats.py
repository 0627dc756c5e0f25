"""Scenes for the rasterizer's tests, and its slow twin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.splat import Tiling, render
from o3d_jax.splat.project import project_gaussians, view_of
from o3d_jax.splat.reference import render_reference
from o3d_jax.types import Cameras, Gaussians, Rendering

N, SIZE = 70, (21, 34)  # Neither side is a multiple of a tile.


ONE_ROUND = Tiling.choose(N, SIZE)


TEN_ROUNDS = Tiling(height=21, width=34, tile=4, capacity=32, group=7, chunk=5, block=32)


def scene(seed: int, batch: tuple[int, ...] = (), n: int = N, dtype=np.float32) -> Gaussians:
    """Splats from below a pixel to a third of the image, some nearly opaque, some invisible."""
    rng = np.random.default_rng(seed)
    shape = (*batch, n)
    opacities = rng.uniform(0, 1, shape)
    return Gaussians(
        means=jnp.asarray(rng.uniform(-0.7, 0.7, (*shape, 3)), dtype),
        scales=jnp.asarray(np.exp(rng.uniform(np.log(0.005), np.log(0.2), (*shape, 3))), dtype),
        quats=jnp.asarray(rng.normal(size=(*shape, 4)), dtype),
        opacities=jnp.asarray(np.where(opacities < 0.1, 0.003, opacities), dtype),
        colors=jnp.asarray(rng.uniform(0, 1, (*shape, 3)), dtype),
    )


def orbit(batch: tuple[int, ...], views: int, dtype=np.float32) -> Cameras:
    """Cameras at different places, looking near the origin; axes unequal, off center."""
    rng = np.random.default_rng(views)
    poses = np.zeros((*batch, views, 4, 4))
    for index in np.ndindex(*batch, views):
        eye = rng.normal(size=3)
        eye *= 1.7 / np.linalg.norm(eye)
        forward = -eye + rng.uniform(-0.1, 0.1, 3)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, rng.normal(size=3))
        right /= np.linalg.norm(right)
        poses[index] = np.eye(4)
        poses[index][:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        poses[index][:3, 3] = eye
    intrinsics = np.array([[1.1, 0, 0.47], [0, 1.7, 0.52], [0, 0, 1]])
    return Cameras(
        camera_to_world=jnp.asarray(poses, dtype),
        intrinsics=jnp.asarray(np.broadcast_to(intrinsics, (*batch, views, 3, 3)), dtype),
    )


def front_camera(size: tuple[int, int], dtype=np.float32) -> Cameras:
    """At z = -2, looking along +z, axes parallel to the world's, focal length 20 px."""
    pose = np.eye(4)
    pose[2, 3] = -2
    intrinsics = np.array([[20 / size[1], 0, 0.5], [0, 20 / size[0], 0.5], [0, 0, 1]])
    return Cameras(
        camera_to_world=jnp.asarray(pose[None], dtype),
        intrinsics=jnp.asarray(intrinsics[None], dtype),
    )


def random_like(rendering: Rendering, seed: int) -> Rendering:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), rendering)


BACKGROUND = jnp.array([0.2, 0.7, 0.4])


QUICK = {"xla_backend_optimization_level": "0"}  # Compiles in 60% of the time.


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("size",), compiler_options=QUICK)
def pull_back(renderer, gaussians, cameras, background, weights, size=SIZE):
    """The rendering, and the gradients of its product with `weights` in all arrays."""

    def draw(gaussians, cameras, background):
        return renderer(gaussians, cameras, size, background)

    rendering, pull = jax.vjp(draw, gaussians, cameras, background)
    return rendering, pull(weights)


def slow_twin(gaussians, cameras, weights):
    """`render_reference` for every view of every object alone, gradients added up."""
    batch = gaussians.means.shape[:-2]
    views = cameras.intrinsics.shape[-3]
    renderings, gradients = {}, None
    for index in np.ndindex(*batch, views):
        place = lambda x, index=index: x[index][None]  # noqa: E731
        one = (
            jax.tree.map(lambda x, index=index: x[index[:-1]], gaussians),
            jax.tree.map(place, cameras),
            BACKGROUND,
        )
        renderings[index], parts = pull_back(render_reference, *one, jax.tree.map(place, weights))
        if gradients is None:
            gradients = jax.tree.map(lambda x: np.zeros(x.shape), (gaussians, cameras, BACKGROUND))
        into = (index[:-1], index, ())
        for whole, part, key in zip(gradients, parts, into, strict=True):
            for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
                a[key] += np.asarray(b).reshape(a[key].shape)
    order = [renderings[index] for index in np.ndindex(*batch, views)]
    stacked = jax.tree.map(
        lambda *xs: np.concatenate(xs).reshape(*batch, views, *xs[0].shape[1:]), *order
    )
    return stacked, gradients


def assert_same(ours, expected, names=("rendering", "gradient")):
    """Values to 2e-5 (float32 sums of about 30 terms near 1), gradients to 2e-5 in relative L2."""
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5, err_msg=names[0])
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(ours[1]), jax.tree.leaves(expected[1]), strict=True
    )
    for (path, a), b in pairs:
        error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        assert error < 2e-5, f"{names[1]} {jax.tree_util.keystr(path)}: {error:.1e}"


def cases(batch, views):
    gaussians, cameras = scene(5, batch), orbit(batch, views)
    weights = random_like(
        jax.eval_shape(
            functools.partial(render, size=SIZE, background=BACKGROUND), gaussians, cameras
        ),
        3,
    )
    return gaussians, cameras, weights


@functools.partial(jax.jit, static_argnames=("culling",))
def project_views(gaussians, cameras, culling="exact"):
    """Splats and their boxes in each view."""

    def one_view(camera):
        view = view_of(camera.camera_to_world, camera.intrinsics, SIZE)
        return project_gaussians(gaussians, view, SIZE, culling, True)

    return jax.lax.map(one_view, cameras)


def balls(opacities, depths) -> Gaussians:
    """Balls on the optical axis of `front_camera`; red, green, blue, red. At most four."""
    fill = [0] * (4 - len(opacities))
    means = np.zeros((4, 3))
    means[:, 2] = np.array([*depths, *fill]) - 2
    return Gaussians(
        means=jnp.asarray(means, jnp.float32),
        scales=jnp.full((4, 3), BALL, jnp.float32),
        quats=jnp.tile(jnp.array([[0.6, 0, 0.8, 0]], jnp.float32), (4, 1)),
        opacities=jnp.array([*opacities, *fill], jnp.float32),
        colors=jnp.eye(3, dtype=jnp.float32)[jnp.arange(4) % 3],
    )


BALL = 0.08  # Scene units.


FRAME = (9, 15)  # Odd: the optical axis meets the middle of pixel (4, 7).


def show_balls(balls: Gaussians) -> Rendering:
    return render(balls, front_camera(FRAME), FRAME, jnp.full(3, 0.5))


draw_balls = jax.jit(show_balls)
