"""Trains a small denoiser: `python -m o3d_jax.commands.train_unet configs/nano.py [--steps N]`.

For models with no SVD weights to load, after the VAE; `--weights MODEL` goes on from one. Without
feedback: that is learned when train.py trains all together, starting from RUN/unet, which this
writes. RUN/unet.png shows what it sees in pure noise, given held-out inputs: the mean of what they
may be.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from o3d_jax.commands.pretraining import compare, fit, read_command
from o3d_jax.config import Config
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.errors import exit_on_input_error
from o3d_jax.nn.networks import Networks, build_networks
from o3d_jax.steps.pretrain import unet_loss
from o3d_jax.steps.reconstruct import decode_views
from o3d_jax.steps.train import draw, noised
from o3d_jax.types import Batch, Frozen, Maps, Params
from o3d_jax.weights.checkpoint import Weights, save_model
from o3d_jax.weights.start import start_weights

STEPS = 2_500
LEARNING_RATE = 1e-3


def train_unet(config: Config, steps: int) -> str:
    """Trains, writes, and says how good it is on held-out objects."""
    networks = build_networks(config.model)
    start = start_weights(config, networks)
    params = dataclasses.replace(start.params, lgm=None)
    batches = (loaded.batch for loaded in training_batches(config))
    loss = functools.partial(unet_loss, networks, config)
    key = jax.random.key(config.seed)
    trained = fit(loss, params, start.frozen, batches, key, steps, LEARNING_RATE)
    folder = config.run_dir / config.name
    save_model(folder / "unet", config, Weights(params=trained, frozen=Frozen(vae=None)))
    return _report(networks, config, trained, start.frozen, folder)


def _report(
    networks: Networks, config: Config, params: Params, frozen: Frozen, folder: Path
) -> str:
    heldout = jax.tree.map(jnp.asarray, heldout_batch(config, 16))
    views = jax.jit(functools.partial(_first_estimate, networks, config))(params, frozen, heldout)
    mean = compare(heldout.images, views, "estimate", folder / "unet.png")
    return f"held-out PSNR of the first estimate {mean:.2f} dB; wrote {folder / 'unet'}\n"


def _first_estimate(
    networks: Networks, config: Config, params: Params, frozen: Frozen, batch: Batch
) -> jax.Array:
    """Views seen in noise of the highest level of sampling."""
    count = batch.images.shape[0]
    draws = draw(config, count, jax.random.key(0))
    draws = dataclasses.replace(
        draws,
        sigma=jnp.full((count,), config.sample.sigma_max),
        condition=dataclasses.replace(
            draws.condition,
            sigma=jnp.full((count,), config.sample.condition_noise),
            dropout=jnp.ones((count,)),
        ),
    )
    _, estimate = noised(networks, config, params, frozen, batch, draws)
    return decode_views(networks, frozen.vae, estimate(Maps.nothing(*batch.images.shape[:4])))


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    sys.stdout.write(train_unet(*read_command(str(__doc__), STEPS)))


if __name__ == "__main__":
    main()
