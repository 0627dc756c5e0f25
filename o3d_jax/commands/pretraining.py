"""What the tools that train a single network share: command line, loop and picture."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from o3d_jax.cli import read_config, use_compilation_cache
from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.files.images import save_png
from o3d_jax.media.sheets import grid
from o3d_jax.metrics import psnr
from o3d_jax.steps.pretrain import Loss, PretrainState, pretrain_step
from o3d_jax.types import Batch, Frozen


def read_command(usage: str, steps: int) -> tuple[Config, int]:
    """The config and the number of steps of `CONFIG [--steps N] [--FIELD VALUE ...]`.

    Raises:
        InputError: as `read_config`, or N is no positive number.
    """
    arguments = sys.argv[1:]
    if "--steps" in arguments:
        at = arguments.index("--steps")
        text = (*arguments, "nothing")[at + 1]
        if not text.isdigit() or int(text) < 1:
            raise InputError(f"--steps {text}: give a positive number of steps")
        steps = int(text)
        del arguments[at : at + 2]
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(usage)
        sys.exit()
    if not arguments or arguments[0].startswith("-"):
        raise InputError("no config file; give one first, as configs/nano.py")
    config = read_config(Path(arguments[0]), arguments[1:])
    use_compilation_cache()
    return config, steps


def fit(
    loss: Loss,
    params: Any,
    frozen: Frozen | None,
    batches: Iterator[Batch],
    key: Key[Array, ""],
    steps: int,
    learning_rate: float,
) -> Any:
    """Parameters averaged over training: AdamW, a cosine schedule after a short warm-up."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(100, steps // 10), steps, learning_rate / 50
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    state = PretrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )
    progress = tqdm(range(steps))
    for step in progress:
        batch = jax.tree.map(jnp.asarray, next(batches))
        state, error = pretrain_step(state, frozen, batch, key, loss=loss, optimizer=optimizer)
        if step % 50 == 0 or step + 1 == steps:
            progress.set_postfix_str(f"error {float(error):.5f}")
    return state.ema


def compare(
    truth: Float[Array, "b v h w 3"], found: Float[Array, "b v h w 3"], label: str, path: Path
) -> float:
    """Mean PSNR in dB; draws the first four objects at `path`, truth above what was found."""
    found = jnp.clip(found, 0, 1)
    few = range(min(4, len(truth)))
    rows = [list(np.asarray(images[i])) for i in few for images in (truth, found)]
    save_png(path, grid(rows, ["truth", label] * len(few)))
    return float(psnr(found, truth).mean())
