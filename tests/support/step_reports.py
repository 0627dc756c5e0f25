"""Reports of training steps, made by hand."""

import jax.numpy as jnp

from o3d_jax.steps.losses import LossTerms
from o3d_jax.steps.train import StepReport


def report(total=1.0, norm=2.0, sigma=(0.5, 2.0), finite=True):
    def scalar(x):
        return jnp.asarray(x, jnp.float32)

    terms = LossTerms(
        total=scalar(total),
        diffusion=scalar(0.25),
        rgb_noisy=scalar(0.5),
        rgb_clean=scalar(0.125),
        lpips_noisy=scalar(0),
        lpips_clean=scalar(0),
    )
    return StepReport(
        terms=terms,
        gradient_norm=scalar(norm),
        sigma=jnp.asarray(sigma, jnp.float32),
        is_finite=jnp.asarray(finite),
        is_last=jnp.asarray(False),
    )
