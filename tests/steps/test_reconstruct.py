"""Latents to images, to an object, to maps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.geometry.orbits import orbit
from o3d_jax.steps.reconstruct import decode_views, encode_views, feedback_maps, reconstruct
from o3d_jax.types import Gaussians, Rendering

SCALE = 0.18215  # SVD's.


def test_latents_are_the_scaled_mode_of_each_view(toy, batch):
    latents = encode_views(toy, batch.images)
    vae = toy.networks.vae
    for i, j in [(0, 1), (2, 3)]:
        one = vae.apply(toy.frozen.vae, batch.images[i, j : j + 1], method="encode").mean[0]
        np.testing.assert_allclose(latents[i, j], SCALE * one, atol=1e-6)  # float32 rounding.


def test_decoding_undoes_the_scale(toy):
    latents = jax.random.normal(jax.random.key(0), (2, 4, 3, 5, 4))
    expected = toy.networks.vae.apply(toy.frozen.vae, latents, method="decode")
    found = decode_views(toy, SCALE * latents)
    np.testing.assert_allclose(found, expected, atol=2e-6)  # float32 rounding.


def test_decoding_has_no_gradient(toy):
    latents = jax.random.normal(jax.random.key(0), (1, 4, 3, 5, 4))

    def total(latents, vae):
        return decode_views(replace(toy, frozen=replace(toy.frozen, vae=vae)), latents).sum()

    gradient = jax.grad(total, argnums=(0, 1))(latents, toy.frozen.vae)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_an_object_is_drawn_on_white_from_every_camera(toy, batch):
    class Ghost(type(toy.networks.lgm)):
        """Half of the views' mean color, seen through."""

        def __call__(self, images, cameras, c_noise):
            b = images.shape[0]
            color = images.mean(axis=(1, 2, 3))[:, None]
            return Gaussians(
                means=jnp.zeros((b, 1, 3)),
                scales=jnp.full((b, 1, 3), 50.0),  # Fills every view.
                quats=jnp.broadcast_to(jnp.array([1.0, 0, 0, 0]), (b, 1, 4)),
                opacities=jnp.full((b, 1), 0.5) + 0 * c_noise[:, None],
                colors=color,
            )

    networks = type(toy.networks)(**(vars(toy.networks) | {"lgm": Ghost(toy.networks.lgm.config)}))
    ghostly = replace(toy, networks=networks, params=replace(toy.params, lgm={}))
    found = reconstruct(ghostly, batch.images, batch.cameras, jnp.zeros(3)).rendering
    assert found.rgb.shape == batch.images.shape
    expected = 0.5 * batch.images.mean(axis=(1, 2, 3)) + 0.5
    expected = jnp.broadcast_to(expected[:, None, None, None], found.rgb.shape)
    # At 50 units the Gaussian falls off by (1 / 50)^2 / 2 across the view.
    np.testing.assert_allclose(found.rgb, expected, atol=1e-3)
    np.testing.assert_allclose(found.alpha, 0.5, atol=1e-3)


def rendering(alpha, depth):
    """One pixel, in front of a camera at (0, 0, 2) that looks to -z."""
    cameras = orbit(0.0, np.array([0.0]), 2.0, 90.0)
    cameras = jax.tree.map(lambda a: a[None], cameras)
    pixel = (1, 1, 1, 1, 1)
    drawn = Rendering(
        rgb=jnp.array([-0.1, 0.3, 1.2]).reshape(1, 1, 1, 1, 3),
        alpha=jnp.full(pixel, alpha),
        depth=jnp.full(pixel, depth),
    )
    return drawn, cameras


def test_maps_show_clipped_color_and_the_mean_surface(toy):
    maps = feedback_maps(toy, *rendering(alpha=0.8, depth=0.8 * 1.25))
    np.testing.assert_allclose(maps.rgb.ravel(), [0, 0.3, 1])
    # The surface is at z = 2 - 1.25 = 0.75, so at 0.875 of [-1, 1].
    np.testing.assert_allclose(maps.ccm.ravel(), [0.5, 0.5, 0.875], atol=1e-6)
    thin = feedback_maps(toy, *rendering(alpha=0.4, depth=0.4 * 1.25))
    np.testing.assert_array_equal(thin.ccm.ravel(), [0.5, 0.5, 0.5])
