"""A full-size sample, whole: `python benchmarks/full_sample.py FOLDER [--levels 2]`.

Writes a checkpoint of the released configuration to FOLDER/model, in bfloat16, with weights made
from their names (tests/support/synthetic.py); runs sample.py on it, from an image to files; checks
all that it kept; and does its first noise level once more with the networks applied by hand. Prints
seconds by stage, and the peak memory of each process. A level is about 50 TFLOP: a quarter of an
hour on two cores. What is there already is not made again.

The checkpoint takes 5.9 GB of disk. `--dtype` is what networks compute in: CPUs are slow in
bfloat16. `--config tiny` tries all of it in a minute.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from o3d_jax.cli import read_config  # noqa: E402
from o3d_jax.media.ply import read_ply  # noqa: E402
from o3d_jax.sampling.kept import load_image_of, load_levels, load_state  # noqa: E402
from o3d_jax.sampling.loop import (  # noqa: E402
    Level,
    orbit_cameras,
    read_sampler,
    view_azimuths,
)
from o3d_jax.steps.reconstruct import draw_object  # noqa: E402
from o3d_jax.steps.sample import sample_prepare  # noqa: E402
from o3d_jax.types import Condition, Frozen, Params  # noqa: E402
from o3d_jax.weights.checkpoint import BUNDLED, Weights  # noqa: E402
from o3d_jax.weights.pytorch.names import from_torch, torch_name, torch_shape  # noqa: E402
from o3d_jax.weights.pytorch.rules import network_shapes  # noqa: E402
from o3d_jax.weights.streaming import Leaf, save_streamed  # noqa: E402
from support.synthetic import synthetic_tensor  # noqa: E402

IMAGE = BUNDLED / "examples" / "rings.png"
LESS_MEMORY = {"XLA_FLAGS": "--xla_cpu_enable_concurrency_optimized_scheduler=false"}
"""By default XLA:CPU turns all bfloat16 kernels to float32 early, so that more can go on at once:
of the U-Net 6.6 GiB of temporaries, and 1.7 so."""
SEED, GUIDANCE = 3, (1.0, 3.0)


def make_checkpoint(folder: Path, config: Any) -> None:
    """Writes weights that are a function of their names, a few in memory at a time."""

    def leaf(keys, array):
        path = tuple(key.key for key in keys)
        name = torch_name(path)

        def read() -> np.ndarray:
            made = synthetic_tensor(name, torch_shape(path, array.shape))
            return from_torch(name, made).astype(ml_dtypes.bfloat16)

        return Leaf(array.shape, np.dtype(ml_dtypes.bfloat16), read)

    shapes = network_shapes(config.model)
    trees = {
        name: {"params": jax.tree_util.tree_map_with_path(leaf, getattr(shapes, name))}
        for name in ("unet", "lgm", "vae", "clip")
    }
    # The image tower lies where this config looks for it.
    tower = {"clip": trees["clip"]}
    trained, fixed = (tower, {}) if config.train.train_image_encoder else ({}, tower)
    weights = Weights(
        params=Params(unet=trees["unet"], lgm=trees["lgm"], **trained),
        frozen=Frozen(vae=trees["vae"], **fixed),
    )
    save_streamed(folder, config, weights, lambda: "made from names\n")


def sample(folder: Path, levels: int) -> None:
    """Runs sample.py in a process of its own, and says what it took."""
    command = [sys.executable, str(ROOT / "sample.py"), str(IMAGE), "--levels", str(levels)]
    command += ["--checkpoint", str(folder / "model"), "--out", str(folder / "out")]
    command += ["--seed", str(SEED), "--elevation", "0", "--border", "0.2", "--keep-levels"]
    command += ["--offload"]  # Each network a program of its own, which takes less memory.
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | LESS_MEMORY)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"sample.py ended with status {status}")
    say(f"sample.py, {levels} levels", time.monotonic() - start, usage.ru_maxrss)


def say(what: str, seconds: float, kilobytes: int | None = None) -> None:
    """Prints a row of a table."""
    memory = "" if kilobytes is None else f"{kilobytes / 2**20:.1f} GiB"
    sys.stdout.write(f"| {what} | {seconds:.0f} s | {memory} |\n")
    sys.stdout.flush()


def check_files(result: Path, config: Any) -> list[Level]:
    """Checks shapes, types and values of all that a run kept, and that its pictures are there."""
    model, levels = config.model, load_levels(result / "levels")
    views, size, latents = model.num_views, model.image_size, model.latent_size
    for level in levels:
        assert level.latents.shape == (views, latents, latents, model.vae.channels)
        assert level.latents.dtype == np.float32 and np.isfinite(level.latents).all()
        for images in (level.views, level.guide, level.renders):
            assert images.shape == (views, size, size, 3) and images.dtype == np.uint8
        assert level.alpha.shape == (views, size, size) and np.ptp(level.alpha) > 0
        for array in jax.tree.leaves(level.gaussians):
            assert array.dtype == jnp.float32 and np.isfinite(array).all()
    count = read_ply(result / "gaussians.ply", up="y-down").means.shape[-2]
    names = ("views.png", "renders.png", "loop.png", "orbit.gif", "gaussians.splat")
    missing = [name for name in names if not (result / name).stat().st_size]
    assert not missing and count > 0
    seconds = json.loads((result / "manifest.json").read_text())["seconds"]
    sys.stdout.write(f"all finite; gaussians.ply has {count:,}; seconds by stage: {seconds}\n")
    return levels


def by_hand(folder: Path) -> None:
    """Does the first level with networks applied by hand, and compares it with the one kept."""
    model, result = read_sampler(folder / "model"), folder / "out" / IMAGE.stem
    level, state = load_levels(result / "levels")[0], load_state(result / "levels", 0)
    image = jnp.asarray(load_image_of(result / "levels"))[None]
    cameras = orbit_cameras(model.config, 0.0, view_azimuths(model.config))
    cameras = jax.tree.map(lambda a: a[None], cameras)
    networks, sigma = model.networks, level.sigma
    condition, start = timed("CLIP, VAE's encoder", sample_prepare, model, image, key())

    # Guidance: without embedding and latents in the first row, with both in the second.
    norm = np.sqrt(sigma**2 + 1)
    both = Condition(
        clip=jnp.concatenate([0 * condition.clip, condition.clip]),
        latents=jnp.concatenate([0 * condition.latents, condition.latents]),
        added_ids=jnp.concatenate([condition.added_ids] * 2),
    )
    inputs = (start.x / norm, jnp.array([0.25 * np.log(sigma)]), cameras, start.maps)
    x, c_noise, views, maps = jax.tree.map(lambda a: jnp.concatenate([a, a]), inputs)
    raw = timed(
        "U-Net", jax.jit(networks.unet.apply), model.params.unet, x, c_noise, both, views, maps
    )
    without, given = start.x / norm**2 - sigma / norm * raw
    scale = np.linspace(*GUIDANCE, len(without))[:, None, None, None]
    x0 = (without + scale * (given - without))[None]
    differ("clean latents", level.latents, x0[0])
    sigma_next = load_levels(result / "levels")[1].sigma
    differ("next latents", state.x, start.x + (sigma_next - sigma) / sigma * (start.x - x0))

    # From here on of what was kept, so that a difference shows where it arises.
    x0 = jnp.asarray(level.latents)[None] / networks.vae.config.scaling_factor

    def decode(variables, x0):
        return networks.vae.apply(variables, x0, method="decode")

    decoded = timed("VAE's decoder", jax.jit(decode), model.frozen.vae, x0)
    differ("views", level.views / 255, jnp.clip(decoded[0], 0, 1))
    lgm = timed("LGM", jax.jit(networks.lgm.apply), model.params.lgm, decoded, cameras, c_noise[:1])
    for name in ("means", "scales", "opacities", "colors"):
        differ(name, getattr(level.gaussians, name), getattr(lgm, name)[0])
    size = decoded.shape[2:4]
    draw = jax.jit(draw_object, static_argnums=(0, 3))
    drawn = timed("rasterizer", draw, networks.lgm.config, lgm, cameras, size)
    differ("renders", level.renders / 255, jnp.clip(drawn.rgb[0], 0, 1))


def key() -> jax.Array:
    return jax.random.key(SEED)


def timed(what: str, function: Any, *inputs: Any) -> Any:
    """Calls a compiled function, and says how long it took to compile and to run."""
    start = time.monotonic()
    found = jax.block_until_ready(function(*inputs))
    say(f"by hand: {what}", time.monotonic() - start, peak())
    return found


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def differ(what: str, kept: Any, made: Any) -> None:
    """Says by how much two arrays differ, of the deviation of one of them."""
    kept, made = np.asarray(kept, np.float64), np.asarray(made, np.float64)
    spread = kept.std()
    error = np.abs(kept - made)
    sys.stdout.write(
        f"{what}: differ by {np.sqrt(np.mean(error**2)) / spread:.1e} of their deviation of "
        f"{spread:.3g}, at most by {error.max():.2e}\n"
    )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", default="released")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--levels", type=int, default=2)
    parser.add_argument("--part", choices=("by-hand",), help="for the script's own processes")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if arguments.part:
        return by_hand(folder)

    config = read_config(Path(arguments.config), ["--model.dtype", arguments.dtype])
    folder.mkdir(exist_ok=True)
    if not (folder / "model").is_dir():
        start = time.monotonic()
        make_checkpoint(folder / "model", config)
        say("checkpoint", time.monotonic() - start, peak())
    if not (folder / "out" / IMAGE.stem).is_dir():
        sample(folder, arguments.levels)
    check_files(folder / "out" / IMAGE.stem, config)
    command = [sys.executable, __file__, str(folder), "--part", "by-hand"]
    return sys.exit(subprocess.run(command, check=False, env=os.environ | LESS_MEMORY).returncode)


if __name__ == "__main__":
    main()
