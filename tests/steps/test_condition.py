"""What the denoiser is told of the input image, and what is hidden from it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import DiffusionConfig
from o3d_jax.steps.condition import drop_condition, encode_condition
from o3d_jax.types import Condition, Frozen


def dropped(uniform, probability):
    """Which of embedding and latents are zero, per object."""
    b = len(uniform)
    condition = Condition(
        clip=jnp.full((b, 1, 2), 3.0),
        latents=jnp.full((b, 2, 3, 4), 5.0),
        added_ids=jnp.ones((b, 3)),
    )
    kept = drop_condition(condition, jnp.asarray(uniform, jnp.float32), probability)
    np.testing.assert_array_equal(kept.added_ids, condition.added_ids)
    clip, latents = np.asarray(kept.clip)[:, 0], np.asarray(kept.latents).reshape(b, -1)
    assert set(np.unique(clip)) <= {0, 3}
    assert set(np.unique(latents)) <= {0, 5}
    return list(zip((clip == 0).all(1).tolist(), (latents == 0).all(1).tolist(), strict=True))


def test_condition_is_dropped_by_thirds_of_three_times_the_probability():
    uniform = [0.0, 0.12, 0.13, 0.24, 0.26, 0.37, 0.38, 0.99]
    expected = [(True, False)] * 2 + [(True, True)] * 2 + [(False, True)] * 2 + [(False, False)] * 2
    assert dropped(uniform, 0.125) == expected


def test_each_kind_of_dropping_happens_in_a_tenth_of_cases():
    cases = dropped((np.arange(1000) + 0.5) / 1000, 0.1)
    for kind in [(True, False), (True, True), (False, True)]:
        assert cases.count(kind) == 100


def test_nothing_is_dropped_at_probability_zero():
    assert dropped([0.0, 0.5], 0.0) == [(False, False)] * 2


def with_defaults(toy):
    return replace(toy, config=replace(toy.config, diffusion=DiffusionConfig()))


@pytest.fixture
def noisy(batch):
    image = batch.images[:, 0]
    noise = jax.random.normal(jax.random.key(3), image.shape)
    return image, noise, jnp.array([0.0, 0.3, 2.0])


def test_latents_see_noise_on_the_scale_of_the_vae_and_the_embedding_does_not(toy, noisy):
    image, noise, std = noisy
    found = encode_condition(with_defaults(toy), image, noise, std)
    vae_input = (2 * image - 1) + std[:, None, None, None] * noise
    expected = toy.networks.vae.apply(toy.frozen.vae, (vae_input + 1) / 2, method="encode").mean
    # float32 rounding; not times the scaling factor, as in SVD.
    np.testing.assert_allclose(found.latents, expected, atol=2e-6)
    np.testing.assert_allclose(found.clip, toy.networks.clip.apply(toy.params.clip, image))
    np.testing.assert_array_equal(found.added_ids, [[6, 127, s] for s in std])


def test_frozen_image_tower_is_used_where_there_is_one(toy, noisy):
    moved = jax.tree.map(lambda w: w + 0.5, toy.params.clip)
    frozen = Frozen(vae=toy.frozen.vae, clip=moved)
    params = replace(toy.params, clip=None)
    found = encode_condition(replace(with_defaults(toy), params=params, frozen=frozen), *noisy)
    np.testing.assert_allclose(found.clip, toy.networks.clip.apply(moved, noisy[0]))
