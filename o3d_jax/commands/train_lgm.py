"""Trains a small LGM alone: `python -m o3d_jax.commands.train_lgm configs/nano.py [--steps N]`.

On true views, for models with no LGM weights to load: the release too starts from an LGM that can
reconstruct. `--weights MODEL` goes on from one. Writes RUN/lgm, which train.py starts from, and
RUN/lgm.png, renders of held-out objects to look at.
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
from o3d_jax.nn.networks import Networks, build_networks
from o3d_jax.steps.pretrain import lgm_loss
from o3d_jax.steps.reconstruct import reconstruct
from o3d_jax.types import Batch, Frozen, Params
from o3d_jax.weights.checkpoint import Weights, save_model
from o3d_jax.weights.start import start_weights

STEPS = 4_500
LEARNING_RATE = 1e-3


def train_lgm(config: Config, steps: int) -> str:
    """Trains, writes, and says how good it is on held-out objects."""
    networks = build_networks(config.model)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    batches = (loaded.batch for loaded in training_batches(config))
    first = jax.tree.map(jnp.asarray, next(batches))
    c_noise = jnp.zeros(first.images.shape[0])
    if config.weights is not None:
        params = start_weights(config, networks).params.lgm
    else:
        params = networks.lgm.init(init_key, first.images, first.cameras, c_noise)
    loss = functools.partial(lgm_loss, networks)
    trained = fit(loss, params, None, batches, key, steps, LEARNING_RATE)
    folder = config.run_dir / config.name
    weights = Weights(params=Params(unet=None, lgm=trained), frozen=Frozen(vae=None))
    save_model(folder / "lgm", config, weights)
    return _report(networks, trained, heldout_batch(config, 16), folder)


def _report(networks: Networks, params: Any, heldout: Batch, folder: Path) -> str:
    batch = jax.tree.map(jnp.asarray, heldout)
    run = jax.jit(functools.partial(reconstruct, networks))
    clean = jnp.zeros(batch.images.shape[0])
    renders = run(params, batch.images, batch.cameras, clean).rendering.rgb
    mean = compare(batch.images, renders, "render", folder / "lgm.png")
    return f"held-out PSNR of renders {mean:.2f} dB; wrote {folder / 'lgm'}\n"


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    sys.stdout.write(train_lgm(*read_command(str(__doc__), STEPS)))


if __name__ == "__main__":
    main()
