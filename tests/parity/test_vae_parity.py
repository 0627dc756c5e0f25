"""The autoencoder is diffusers', for configurations drawn at random."""

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import VaeConfig
from o3d_jax.nn.vae import Vae
from support.originals import GROUPS, evaluate, load, svd_vae
from support.quick import jit, normal
from support.synthetic import synthetic_variables

pytestmark = pytest.mark.parity


def draw(seed: int, scales: int, layers: int):
    """Both networks with the same weights."""
    rng = np.random.default_rng(seed)
    widths = tuple(GROUPS * int(n) for n in rng.choice([1, 2, 3], scales))
    latents = int(rng.integers(2, 6))
    config = VaeConfig(widths, layers, latents, norm_num_groups=GROUPS)
    ours = Vae(config)
    size = 2**scales
    variables = synthetic_variables(ours, jnp.zeros((1, 2, size, size, 3)), seed=seed)
    return ours, variables, load(svd_vae(config), variables)


def encode(vae, images):
    posterior = vae.encode(2 * images.movedim(-1, 1) - 1).latent_dist
    return posterior.parameters.movedim(1, -1)


@pytest.mark.parametrize(("seed", "scales", "layers"), [(0, 2, 2), (1, 3, 1)])
def test_encoder_is_diffusers(seed, scales, layers):
    ours, variables, original = draw(seed, scales, layers)
    images = (1 + normal(seed, 3, 21, 14, 3)) / 2  # Odd sizes: each halving rounds down.
    expected = evaluate(original, encode, images)
    moments = jit(lambda v, x: ours.apply(v, x, method="encode"))(variables, images)
    expected.check(jnp.concatenate([moments.mean, moments.logvar], axis=-1))


# SVD has two layers. With one, diffusers' decoder has attention that it never calls, and with three
# or more, residual blocks.
@pytest.mark.parametrize(("seed", "scales", "layers"), [(2, 2, 1), (3, 2, 2), (4, 3, 2), (5, 1, 3)])
def test_decoder_is_diffusers_with_the_frames_of_each_video_apart(seed, scales, layers):
    ours, variables, original = draw(seed, scales, layers)
    b, v, h, w = 2, 3, 5, 3
    latents = normal(seed, b, v, h, w, ours.config.latent_channels)

    def decode(vae, z):
        frames = vae.decode(z.flatten(0, 1).movedim(-1, 1), num_frames=v).sample
        return (frames.movedim(1, -1).unflatten(0, (b, v)) + 1) / 2

    decoded = jit(lambda p, x: ours.apply(p, x, method="decode"))(variables, latents)
    evaluate(original, decode, latents).check(decoded)
