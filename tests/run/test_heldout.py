"""Figures of held-out objects, against loops by hand with the noise that each device draws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.parallel.layout import make_layout
from o3d_jax.parallel.shards import place
from o3d_jax.run.heldout import SIGMAS, heldout_figures_on_devices
from o3d_jax.splat import render
from o3d_jax.steps.draws import draw
from o3d_jax.steps.parts import split_parts
from support import handwritten
from support.toy_networks import random_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def batch(tiny):
    """One object a device."""
    return random_batch(tiny, 8)


def figures_of(toy, part, batch, devices):
    """On so many devices, of a part's networks; the key is 5."""
    config = replace(toy.config, train=replace(toy.config.train, part=part, smallest_shared=90))
    layout = make_layout(config.train, jax.devices()[:devices])
    params, frozen = split_parts(part, toy.params, toy.frozen)
    placed = (
        place(params, layout.shardings(params, stage=1)),  # As the average lies.
        place(frozen, layout.of_frozen(frozen)),
        place(batch, jax.tree.map(lambda _: layout.batch, batch)),
        place(jax.random.key(5), layout.whole),
    )
    average, frozen, objects, key = placed
    model = replace(toy, config=config, params=average, frozen=frozen)
    return heldout_figures_on_devices(model, objects, key, layout)


def draws_of(config, objects, devices):
    """Each device draws for its own objects."""
    keys = [jax.random.fold_in(jax.random.key(5), number) for number in range(devices)]
    draws = [draw(config, objects // devices, key) for key in keys]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *draws)


@pytest.fixture(scope="module")
def by_hand(toy, batch):
    """Losses without feedback at each level, and what is seen at the last, by random numbers."""

    @jax.jit
    def at_level(draws, sigma):
        seen = replace(
            draws.condition, sigma=jnp.full(8, 0.02), dropout=jnp.full(8, 0.999)
        )  # As in sampling.
        draws = replace(draws, sigma=jnp.full(8, sigma), condition=seen)
        x, pred = handwritten.denoiser(toy.networks, toy.params, toy.frozen, batch, draws)
        found = pred(handwritten.nothing(batch.images))
        latents = found / handwritten.SCALING_FACTOR
        images = toy.networks.vae.apply(toy.frozen.vae, latents, method="decode")
        return handwritten.diffusion_errors(x, found, draws.sigma), images

    def at_all(draws):
        levels = [at_level(draws, sigma) for sigma in (0.2, 0.7, 2.0, 6.0, 20.0, 60.0)]
        return np.stack([losses for losses, _ in levels], axis=1), levels[-1][1]

    return at_all


def decibels(images, truth):
    """Of each object and view."""
    errors = (np.clip(images, 0, 1) - np.asarray(truth)) ** 2
    return -10 * np.log10(np.mean(errors, axis=(2, 3, 4), dtype=np.float64))


def test_figures_of_joint_training_on_eight_devices_are_those_by_hand(toy, batch, by_hand):
    found = figures_of(toy, "joint", batch, 8)
    expected, _ = by_hand(draws_of(toy.config, 8, devices=8))
    assert found.diffusion.shape == (8, len(SIGMAS)) and found.vae is None
    np.testing.assert_allclose(found.diffusion, expected, rtol=1e-4)  # float32 sums.

    @jax.jit
    def renders(params):
        gaussians = toy.networks.lgm.apply(params, batch.images, batch.cameras, jnp.zeros(8))
        return render(gaussians, batch.cameras, (16, 16), jnp.ones(3)).rgb

    np.testing.assert_allclose(found.images, renders(toy.params.lgm), atol=1e-5)
    db = decibels(found.images, batch.images)
    np.testing.assert_allclose(found.lgm, db[:, 1:].mean(1), rtol=1e-5)
    assert np.abs(db[:, 0] - found.lgm).min() > 1e-3  # The input view would count otherwise.


def test_figures_of_the_denoiser_on_one_device_are_those_by_hand_of_other_noise(
    toy, batch, by_hand
):
    found = figures_of(toy, "unet", batch, 1)
    expected, images = by_hand(draws_of(toy.config, 8, devices=1))
    np.testing.assert_allclose(found.diffusion, expected, rtol=1e-4)  # float32 sums.
    np.testing.assert_allclose(found.images, images, atol=1e-5)
    assert found.lgm is None and found.vae is None
    other, _ = by_hand(draws_of(toy.config, 8, devices=8))
    assert np.abs(other / expected - 1).max() > 0.01


@pytest.mark.parametrize("devices", [1, 8])
def test_a_vaes_figure_is_the_mean_over_all_views_of_what_its_modes_decode_to(toy, batch, devices):
    found = figures_of(toy, "vae", batch, devices)
    vae, params = toy.networks.vae, toy.frozen.vae
    mean = vae.apply(params, batch.images, method="encode").mean
    images = vae.apply(params, mean, method="decode")
    np.testing.assert_allclose(found.images, images, atol=1e-5)  # float32 sums.
    np.testing.assert_allclose(found.vae, decibels(images, batch.images).mean(1), rtol=1e-5)
    assert found.diffusion is None and found.lgm is None
