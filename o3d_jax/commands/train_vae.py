"""Trains a small VAE: `python -m o3d_jax.commands.train_vae configs/nano.py [--steps N]`.

For models with no SVD weights to load. Writes RUN/vae, which train.py takes from there, and
RUN/vae.png, reconstructions of held-out objects to look at.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from o3d_jax.commands.pretraining import compare, fit, read_command
from o3d_jax.config import Config
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.errors import exit_on_input_error
from o3d_jax.nn.networks import apply, build_networks
from o3d_jax.nn.vae import Vae
from o3d_jax.steps.pretrain import scale_latents, vae_loss
from o3d_jax.types import Batch, Frozen, Params
from o3d_jax.weights.checkpoint import Weights, save_model

STEPS = 4_000
LEARNING_RATE = 2e-3


def train_vae(config: Config, steps: int) -> str:
    """Trains, writes, and says how good it is on held-out objects."""
    vae = build_networks(config.model).vae
    init_key, key = jax.random.split(jax.random.key(config.seed))
    batches = (loaded.batch for loaded in training_batches(config))
    params = vae.init(init_key, jnp.asarray(next(batches).images))
    trained = fit(
        functools.partial(vae_loss, vae), params, None, batches, key, steps, LEARNING_RATE
    )
    sample = [next(batches).images for _ in range(-(-64 // config.train.batch_size))]
    scaled = scale_latents(vae, trained, jnp.concatenate(sample))
    folder = config.run_dir / config.name
    weights = Weights(params=Params(unet=None, lgm=None), frozen=Frozen(vae=scaled))
    save_model(folder / "vae", config, weights)
    return _report(vae, scaled, heldout_batch(config, 16), folder)


def _report(vae: Vae, params: Any, heldout: Batch, folder: Path) -> str:
    images = jnp.asarray(heldout.images)
    b, v = images.shape[:2]
    latents = apply(vae, params, images.reshape(b * v, *images.shape[2:]), method="encode").mean
    decoded = apply(vae, params, latents.reshape(b, v, *latents.shape[1:]), method="decode")
    mean = compare(images, decoded, "decoded", folder / "vae.png")
    std = float((latents * vae.config.scaling_factor).std())
    return f"held-out PSNR {mean:.2f} dB, scaled latents' std {std:.3f}; wrote {folder / 'vae'}\n"


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    sys.stdout.write(train_vae(*read_command(str(__doc__), STEPS)))


if __name__ == "__main__":
    main()
