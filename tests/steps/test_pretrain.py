"""Training of single networks from scratch."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from o3d_jax.steps.pretrain import (
    KL_WEIGHT,
    PretrainState,
    lgm_loss,
    pretrain_step,
    scale_latents,
    unet_loss,
    vae_loss,
)

from o3d_jax.nn.networks import build_networks
from o3d_jax.steps import train
from o3d_jax.steps.reconstruct import reconstruct
from o3d_jax.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def real(tiny):
    """The tiny VAE, because `scale_latents` knows its layers, with no weight at zero."""
    from support.toy_networks import filled

    vae = build_networks(tiny.model).vae
    shapes = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))
    return vae, filled(shapes)


def test_scaled_latents_have_the_deviation_that_svd_assumes_and_decode_to_the_same(real, batch):
    vae, params = real
    images = batch.images[:2]

    @jax.jit
    def run(params):
        moments = vae.apply(params, images, method="encode")
        return moments, vae.apply(params, moments.mean, method="decode")

    before, images_before = run(params)
    scaled = scale_latents(vae, params, images)
    after, images_after = run(scaled)
    std = np.asarray(after.mean).std(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(std * 0.18215, 1, rtol=1e-5)  # float32 sums.
    # The posterior is scaled with its mean: log variances shift by the log of the gain squared.
    gain = std / np.asarray(before.mean).std(axis=(0, 1, 2, 3))
    shift = np.asarray(after.logvar - before.logvar)
    np.testing.assert_allclose(shift, np.broadcast_to(2 * np.log(gain), shift.shape), atol=1e-4)
    # float32 rounding through a dozen layers.
    np.testing.assert_allclose(images_after, images_before, atol=1e-4)


def test_loss_is_error_through_sampled_latents_plus_kl(toy, batch):
    vae, params = toy.networks.vae, jax.tree.map(jnp.copy, toy.frozen.vae)
    params["params"]["down"]["bias"] += jnp.array([0.0] * 4 + [1.0] * 4)  # Wider posteriors.
    few = Batch(images=batch.images[:, :2], cameras=batch.cameras)
    images = few.images
    keys = jax.random.split(jax.random.key(4), 200)
    losses, errors = jax.jit(jax.vmap(lambda key: vae_loss(vae, params, None, few, key)))(keys)
    moments = vae.apply(params, images.reshape(-1, 16, 16, 3), method="encode")
    mean, logvar = (np.asarray(m, np.float64) for m in (moments.mean, moments.logvar))
    std = np.exp(logvar / 2)
    decode = jax.jit(lambda latents: vae.apply(params, latents, method="decode"))
    expected = []
    for seed in range(200):
        latents = mean + std * np.random.default_rng(seed).normal(size=mean.shape)
        decoded = decode(jnp.asarray(latents.reshape(3, 2, *mean.shape[1:]), jnp.float32))
        expected.append(np.mean((np.asarray(decoded) - np.asarray(images)) ** 2))
    # Means of 200 draws of either: four standard deviations of their difference.
    assert abs(np.mean(errors) - np.mean(expected)) < 4 * np.std(expected) * np.sqrt(2 / 200)
    # KL(N(mu, s^2) || N(0, 1)) = -log s + (s^2 + mu^2 - 1) / 2, a value each.
    kl = np.mean(-np.log(std) + (std**2 + mean**2 - 1) / 2)
    # The sum is rounded to 3e-8, a few in a thousand of KL times 1e-5; 200 of them.
    np.testing.assert_allclose(np.mean(losses - errors) / KL_WEIGHT, kl, rtol=0.01)


def test_lgms_loss_is_the_error_of_renders_of_the_object_made_from_true_views(toy, batch):
    def loss(params, batch):
        return lgm_loss(toy.networks, params, None, batch, jax.random.key(0))

    value, error = jax.jit(loss)(toy.params.lgm, batch)
    made = jax.jit(functools.partial(reconstruct, toy.networks))(
        toy.params.lgm, batch.images, batch.cameras, jnp.zeros(len(batch.images))
    )
    expected = np.mean((np.asarray(made.rendering.rgb) - np.asarray(batch.images)) ** 2)
    np.testing.assert_allclose([value, error], expected, rtol=1e-5)  # float32 sums.
    assert expected > 1e-3


def test_the_denoisers_loss_is_algorithm_1s_without_feedback_and_reconstruction(tiny, toy, batch):
    alone = replace(toy.params, lgm=None)
    loss = jax.jit(functools.partial(unet_loss, toy.networks, tiny))
    value, error = loss(alone, toy.frozen, batch, jax.random.key(7))
    draws = train.draw(tiny, len(batch.images), jax.random.key(7))
    both = jax.jit(functools.partial(train.train_loss, toy.networks, tiny), static_argnums=4)
    _, terms = both(toy.params, toy.frozen, batch, draws, False)
    np.testing.assert_allclose([value, error], terms.diffusion, rtol=1e-5)  # float32 sums.
    assert loss(alone, toy.frozen, batch, jax.random.key(8))[0] != value


def test_step_descends_draws_anew_and_compiles_once(toy, batch):
    optimizer = optax.sgd(0.1)
    loss = functools.partial(vae_loss, toy.networks.vae)

    def fresh():
        params = jax.tree.map(jnp.copy, toy.frozen.vae)
        copies = jax.tree.map(jnp.copy, params)
        zero = jnp.zeros((), jnp.int32)
        return PretrainState(step=zero, params=params, ema=copies, opt_state=optimizer.init(params))

    def step(state, seed=0):
        key = jax.random.key(seed)
        return pretrain_step(state, None, batch, key, loss=loss, optimizer=optimizer)

    state, error = step(fresh())
    step_key = jax.random.fold_in(jax.random.key(0), 0)
    gradient = jax.jit(jax.grad(lambda params: loss(params, None, batch, step_key)[0]))(
        toy.frozen.vae
    )

    def check(old, new, ema, gradient):
        np.testing.assert_allclose(new, old - 0.1 * gradient, atol=1e-6)  # float32 rounding.
        np.testing.assert_allclose(ema, 0.995 * old + 0.005 * new, atol=1e-6)

    jax.tree.map(check, toy.frozen.vae, state.params, state.ema, gradient)
    compiled = pretrain_step._cache_size()
    same, same_error = step(fresh())
    assert same_error == error
    later = replace(fresh(), step=jnp.ones((), jnp.int32))
    assert step(later)[1] != error  # Another step, other noise.
    assert int(same.step) == 1
    assert pretrain_step._cache_size() == compiled
