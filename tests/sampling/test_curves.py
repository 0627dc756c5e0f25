"""Figures of noise levels against hand values, and their plot."""

import jax.numpy as jnp
import numpy as np

from o3d_jax.sampling.curves import CURVES, draw_loop, figures_of
from o3d_jax.sampling.loop import Level
from o3d_jax.types import Gaussians


def level(sigma, views, renders, alpha, opacities):
    """Two views of 3 x 5 pixels, each image of one value."""

    def image(value):
        return np.full((2, 3, 5, 3), value, np.uint8)

    n = len(opacities)
    return Level(
        sigma=sigma,
        latents=np.zeros((2, 1, 1, 4), np.float32),
        views=image(views),
        guide=image(0),
        renders=image(renders),
        alpha=alpha,
        gaussians=Gaussians(
            means=jnp.zeros((n, 3)),
            scales=jnp.zeros((n, 3)),
            quats=jnp.zeros((n, 4)),
            opacities=jnp.asarray(opacities),
            colors=jnp.zeros((n, 3)),
        ),
    )


def two_levels():
    alpha = np.zeros((2, 3, 5), np.uint8)
    alpha[0, :, :2] = 255
    alpha[1, 0, 0] = 229  # 0.898: not quite opaque.
    return [
        level(80.0, 151, 100, alpha, [0.25, 0.5, 0.75]),
        level(0.002, 100, 100, np.where(alpha == 229, 255, alpha).astype(np.uint8), [0.1]),
    ]


def test_figures_are_those_of_a_hand_calculation():
    first, last = figures_of(two_levels())
    np.testing.assert_allclose(first.psnr, -20 * np.log10(51 / 255))  # 13.98 dB.
    np.testing.assert_allclose([first.opaque, last.opaque], [6 / 30, 7 / 30])
    np.testing.assert_allclose([first.opacity, last.opacity], [0.5, 0.1], rtol=1e-6)
    np.testing.assert_allclose([first.movement, last.movement], [0, 0.2])
    assert np.isfinite(last.psnr) and last.psnr > 60  # Of equal images it would be infinite.


def test_the_plot_of_the_same_levels_has_the_same_bytes_and_another_for_others(tmp_path):
    levels = two_levels()
    for name, runs in (("a", levels), ("b", levels), ("c", levels[::-1])):
        (tmp_path / name).mkdir()
        draw_loop(tmp_path / name, {"rings": runs, "branch": levels[:1]})
    for file in CURVES:
        a, b, c = ((tmp_path / x / file).read_bytes() for x in "abc")
        assert a == b != c
    assert all(word in (tmp_path / "a" / CURVES[0]).read_text() for word in ("rings", "branch"))
