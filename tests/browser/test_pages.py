"""The viewer and its page in a browser: the object, as our rasterizer draws it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import Config
from o3d_jax.splat import render
from o3d_jax.types import Gaussians
from o3d_jax.viewing.page import write_page
from o3d_jax.viewing.shown import ShownLevel, ShownResult, upright_cameras
from o3d_jax.viewing.viewer import start_viewer

pytestmark = pytest.mark.browser
ELEVATION = 20.0


@pytest.fixture(scope="module")
def shown():
    """A flag: a pole, and at its top a cloth to the right, red in front and blue behind."""
    pole = np.stack([np.full(40, -0.2), np.linspace(-0.5, 0.5, 40), np.zeros(40)], -1)
    u, v = np.meshgrid(np.linspace(-0.15, 0.4, 25), np.linspace(0.15, 0.5, 17))
    cloth = np.stack([u, v, np.zeros_like(u)], -1).reshape(-1, 3)
    front, back = cloth + [0, 0, 0.06], cloth - [0, 0, 0.06]
    means = np.concatenate([front, pole, back])  # Unsorted, as seen from any side.
    colors = np.repeat(
        [[0.7, 0, 0], [0, 0.3, 0], [0, 0, 0.7]], [len(front), len(pole), len(back)], axis=0
    )
    order = np.random.default_rng(0).permutation(len(means))
    n = len(means)
    gaussians = Gaussians(
        means=jnp.asarray(means[order], jnp.float32),
        scales=jnp.full((n, 3), 0.02),
        quats=jnp.tile(jnp.array([1.0, 0, 0, 0]), (n, 1)),
        opacities=jnp.full((n,), 0.9),
        colors=jnp.asarray(colors[order], jnp.float32),
    )
    config = Config(name="flag")
    views = np.full((config.model.num_views, 16, 16, 3), 255, np.uint8)
    empty = jax.tree.map(lambda a: a[:1], gaussians)
    looks = [ShownLevel("noise", empty, views, views), ShownLevel("flag", gaussians, views, views)]
    return ShownResult("flag", looks, upright_cameras(config, ELEVATION), mesh=None)


def drawn(shown, height, width):
    """By our rasterizer, from the input's camera."""
    camera = jax.tree.map(lambda a: a[:1], shown.cameras)
    stretched = camera.intrinsics.at[:, 0, 0].multiply(height / width)
    camera = dataclasses.replace(camera, intrinsics=stretched)
    return render(shown.looks[-1].gaussians, camera, (height, width), jnp.ones(3))


def agreement(ours, theirs):
    """Intersection over union of what is darker than half way to white."""
    one, other = (image.min(axis=-1) < 0.5 for image in (ours, theirs))
    return (one & other).sum() / (one | other).sum()


def test_the_page_opens_from_disk_and_shows_what_we_render(shown, tab, seen, tmp_path):
    path = tmp_path / "flag.html"
    write_page(path, shown, with_levels=False, with_cameras=False)
    assert path.stat().st_size < 1e6
    page = tab(path.as_uri())
    theirs, ours = seen(page), np.asarray(drawn(shown, 600, 800).rgb[0])
    assert page.title() == "flag"
    # Upside down 0.3; of two renderers 0.98: they draw faint edges in other ways.
    assert agreement(ours, theirs) > 0.95 > 0.5 > agreement(ours[::-1], theirs)
    # The cloth's red side hides the blue one, although half of its Gaussians come later.
    where = (ours[..., 0] > 0.5) & (ours[..., 2] < 0.2)
    red, _, blue = theirs[where].mean(axis=0)
    assert where.sum() > 5000 and red > 0.6 and blue < 0.2


def test_the_viewer_has_levels_under_a_slider_and_parts_to_hide(shown, tab, seen):
    server = start_viewer(shown, "127.0.0.1", 0)
    try:
        page = tab(f"http://127.0.0.1:{server.get_port()}")
        page.get_by_text(f"flag: {len(shown.looks[-1].gaussians.opacities):,} Gaussians").wait_for()
        with_cameras = seen(page)
        page.get_by_label("cameras, with the views").uncheck()
        alone = seen(page)
        # Eight frames of cameras around the object are gone, and nothing else.
        assert ((with_cameras.min(axis=-1) < 0.9) & (alone.min(axis=-1) > 0.99)).sum() > 500
        assert alone.min() < 0.3
        page.get_by_role("slider").press("ArrowLeft")
        page.get_by_text("noise: 1 Gaussians").wait_for()
    finally:
        server.stop()
