"""Objects of few Gaussians whose surfaces are known in closed form."""

import jax.numpy as jnp
import numpy as np

from o3d_jax.types import Gaussians

SIGMA, OPACITY = 0.2, 0.9


def ball(middle=(0.05, -0.1, 0.2), color=(0.8, 0.4, 0.1)):
    """One round Gaussian: its density is OPACITY exp(-r^2 / 2 SIGMA^2), as is its alpha."""
    return Gaussians(
        means=jnp.asarray([middle], jnp.float32),
        scales=jnp.full((1, 3), SIGMA),
        quats=jnp.array([[1.0, 0, 0, 0]]),
        opacities=jnp.array([OPACITY]),
        colors=jnp.asarray([color], jnp.float32),
    )


def radius_at(threshold):
    """Of the ball where its density is `threshold`."""
    return SIGMA * np.sqrt(2 * np.log(OPACITY / threshold))


def several(seed=0, n=7):
    """Gaussians of all shapes and directions."""
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=jnp.asarray(rng.uniform(-0.4, 0.4, (n, 3)), jnp.float32),
        scales=jnp.asarray(rng.uniform(0.08, 0.25, (n, 3)), jnp.float32),
        quats=jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        opacities=jnp.asarray(rng.uniform(0.4, 0.9, n), jnp.float32),
        colors=jnp.asarray(rng.uniform(size=(n, 3)), jnp.float32),
    )


def signpost():
    """White in the middle, red up, blue to the right and green to the front, all touching."""
    return Gaussians(
        means=jnp.array([[0, 0, 0], [0, 0.3, 0], [0.3, 0, 0], [0, 0, 0.3]]),
        scales=jnp.array([[0.12] * 3, [0.06, 0.12, 0.06], [0.12, 0.06, 0.06], [0.06, 0.06, 0.12]]),
        quats=jnp.tile(jnp.array([1.0, 0, 0, 0]), (4, 1)),
        opacities=jnp.full(4, 0.95),
        colors=jnp.array([[1.0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]),
    )
