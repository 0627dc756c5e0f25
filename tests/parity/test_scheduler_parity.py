"""Noise levels, preconditioning and the Euler step are those of SVD's scheduler in diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler

from o3d_jax import edm
from o3d_jax.steps.denoise import denoise
from o3d_jax.steps.sample import ode_step
from o3d_jax.types import Condition, Maps
from support.originals import tensor
from support.quick import normal

pytestmark = pytest.mark.parity


def svd_scheduler(levels: int, low: float, high: float) -> EulerDiscreteScheduler:
    """With SVD's settings, but for its bounds."""
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        sigma_min=low,
        sigma_max=high,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(levels)
    return scheduler


@pytest.mark.parametrize("seed", range(6))
def test_a_run_of_the_sampler_is_that_of_the_scheduler(seed):
    rng = np.random.default_rng(seed)
    levels = int(rng.integers(2, 12))
    low, high = float(rng.uniform(0.001, 0.1)), float(rng.uniform(2, 900))
    if seed == 0:
        levels, low, high = 25, 0.002, 700.0  # SVD's own.
    scheduler = svd_scheduler(levels, low, high)
    sigmas = edm.sigma_schedule(levels, low, high)
    # Seventh powers of float32 numbers, here and there.
    np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=2e-6)
    np.testing.assert_allclose(
        edm.scalings(sigmas[:-1]).c_noise, scheduler.timesteps.numpy(), rtol=0, atol=1e-6
    )
    assert abs(edm.initial_deviation(high) / float(scheduler.init_noise_sigma) - 1) < 2e-6
    x = high * normal(seed, 2, 3, 4, 5, 2)
    torch_x = tensor(x)
    for i, t in enumerate(scheduler.timesteps):
        raw = normal(100 * seed + i, *x.shape)
        scaled = scheduler.scale_model_input(torch_x, t)
        step = scheduler.step(tensor(raw), t, torch_x)
        x, x0, network_input = euler_level(x, raw, sigmas[i], sigmas[i + 1])
        # A few roundings a level, of values as large as the noise is.
        for ours, theirs in (
            (network_input, scaled),
            (x0, step.pred_original_sample),
            (x, step.prev_sample),
        ):
            largest = float(theirs.abs().max())
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=3e-6 * largest)
        torch_x = step.prev_sample


def euler_level(x, raw, sigma, sigma_next):
    """One level of ours where the network says `raw`; also what it was given."""
    seen = []

    def network(scaled, c_noise, condition, maps):
        seen.append(scaled)
        return raw

    condition = Condition(
        clip=jnp.zeros((2, 1, 1)), latents=jnp.zeros((2, 4, 5, 2)), added_ids=jnp.zeros((2, 3))
    )
    maps = Maps.nothing(2, 3, 1, 1)
    x0 = denoise(network, x, jnp.full(2, sigma), condition, maps)
    stepped = ode_step(no_denoiser, x, x0, sigma, sigma_next, "euler")
    return stepped, x0, seen[0]


def no_denoiser(x, sigmas):
    raise AssertionError("an Euler step needs no second estimate")
