"""Trains a small VAE: `python -m o3d_jax.tools.train_vae configs/nano.py [--steps 2000]`.

For models with no SVD weights to load. Writes RUN/vae, which train.py takes from there.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.errors import exit_on_input_error
from o3d_jax.io.checkpoint import Weights, save_model
from o3d_jax.io.images import save_png
from o3d_jax.io.sheets import grid
from o3d_jax.metrics import psnr
from o3d_jax.nn.networks import apply, build_networks
from o3d_jax.nn.vae import Vae
from o3d_jax.steps.train_vae import VaeState, scale_latents, vae_step
from o3d_jax.tools.cli import read_config, use_compilation_cache
from o3d_jax.types import Batch, Frozen, Params

STEPS = 2_000
LEARNING_RATE = 2e-3


def train_vae(config: Config, steps: int) -> None:
    """Trains, checks on held-out objects, and writes RUN/vae and a picture of reconstructions."""
    vae = build_networks(config.model, lpips=False).vae
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, min(100, steps // 10), steps, LEARNING_RATE / 50
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    init_key, key = jax.random.split(jax.random.key(config.seed))
    batches = iter(training_batches(config))
    first = jnp.asarray(next(batches).images)
    params = vae.init(init_key, first)
    state = VaeState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )
    progress = tqdm(range(steps))
    for step in progress:
        images = jnp.asarray(next(batches).images)
        state, error = vae_step(state, images, key, vae=vae, optimizer=optimizer)
        if step % 50 == 0:
            progress.set_postfix_str(f"PSNR {-10 * float(jnp.log10(error)):.2f} dB")
    heldout = heldout_batch(config, 16)
    trained = scale_latents(vae, state.ema, jnp.asarray(heldout.images))
    folder = config.run_dir / config.name
    weights = Weights(params=Params(unet=None, lgm=None), frozen=Frozen(vae=trained))
    save_model(folder / "vae", config, weights)
    tqdm.write(_report(vae, trained, heldout, folder))


def _report(vae: Vae, params, heldout: Batch, folder: Path) -> str:
    images = jnp.asarray(heldout.images)
    b, v = images.shape[:2]
    latents = apply(vae, params, images.reshape(b * v, *images.shape[2:]), method="encode").mean
    decoded = apply(vae, params, latents.reshape(b, v, *latents.shape[1:]), method="decode")
    rows = [list(np.asarray(a[i])) for i in range(4) for a in (images, decoded)]
    save_png(folder / "vae.png", grid(rows, ["truth", "decoded"] * 4))
    mean = float(psnr(jnp.clip(decoded, 0, 1), images).mean())
    std = float((latents * vae.config.scaling_factor).std())
    return f"held-out PSNR {mean:.2f} dB, scaled latents' std {std:.3f}; wrote {folder / 'vae'}"


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    arguments = sys.argv[1:]
    steps = STEPS
    if "--steps" in arguments:
        at = arguments.index("--steps")
        steps = int(arguments[at + 1])
        del arguments[at : at + 2]
    if not arguments:
        sys.exit(__doc__)
    config = read_config(Path(arguments[0]), arguments[1:])
    use_compilation_cache()
    train_vae(dataclasses.replace(config), steps)


if __name__ == "__main__":
    main()
