"""Guidance around Eq. 1; Eq. 1 itself is in `test_paper.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.steps.denoise import denoise, denoise_guided, guidance_scale
from o3d_jax.types import Condition, Maps

B, V, H, W, C = 2, 3, 4, 5, 4


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 6)
    shape = (B, V, 8, 10, 3)
    return {
        "x": jax.random.normal(keys[0], (B, V, H, W, C)),
        "sigma": jnp.array([0.7, 3.0]),
        "condition": Condition(
            clip=jax.random.normal(keys[1], (B, 1, C)),
            latents=jax.random.normal(keys[2], (B, H, W, C)),
            added_ids=jax.random.normal(keys[3], (B, 3)),
        ),
        "maps": Maps(
            rgb=jax.random.uniform(keys[4], shape), ccm=jax.random.uniform(keys[5], shape)
        ),
    }


def network(x, c_noise, condition, maps):
    """Reads everything, and is not linear in the condition."""
    small = maps.rgb[:, :, ::2, ::2, :1] + 2 * maps.ccm[:, :, ::2, ::2, 1:2]
    seen = condition.latents[:, None] + condition.clip[:, :, None, None]
    ids = condition.added_ids.sum(axis=-1)[:, None, None, None, None]
    return jnp.tanh(x + seen**2 + small + ids + c_noise[:, None, None, None, None])


def test_guidance_is_a_line_through_both_estimates(inputs):
    condition = inputs["condition"]
    nothing = Condition(
        clip=0 * condition.clip, latents=0 * condition.latents, added_ids=condition.added_ids
    )
    given = denoise(network, **inputs)
    without = denoise(network, **(inputs | {"condition": nothing}))
    assert jnp.abs(given - without).min(axis=(0, 2, 3, 4)).max() > 0  # Something to guide.
    guidance = jnp.array([1.0, 0.0, 2.5])
    guided = denoise_guided(network, **inputs, guidance=guidance)
    # float32 rounding of numbers near 1, also below.
    np.testing.assert_allclose(guided[:, 0], given[:, 0], atol=1e-6)
    np.testing.assert_allclose(guided[:, 1], without[:, 1], atol=1e-6)
    expected = 2.5 * given[:, 2] - 1.5 * without[:, 2]
    np.testing.assert_allclose(guided[:, 2], expected, atol=3e-6)


def test_both_halves_see_the_same_noise_feedback_and_ids(inputs):
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return network(*arguments)

    denoise_guided(spy, **inputs, guidance=jnp.ones(V))
    ((x, c_noise, condition, maps),) = calls  # One call for both halves.
    for array in (x, c_noise, condition.added_ids, maps.rgb, maps.ccm):
        np.testing.assert_array_equal(array[:B], array[B:])
    np.testing.assert_array_equal(maps.ccm[B:], inputs["maps"].ccm)
    assert not np.any(condition.clip[:B])
    assert not np.any(condition.latents[:B])
    np.testing.assert_array_equal(condition.clip[B:], inputs["condition"].clip)
    np.testing.assert_array_equal(condition.latents[B:], inputs["condition"].latents)


def test_guidance_rises_linearly_from_the_input_view():
    np.testing.assert_allclose(guidance_scale(5, 1.0, 3.0), [1, 1.5, 2, 2.5, 3])
