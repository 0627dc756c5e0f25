"""One forward pass of full-size networks, float32: `python benchmarks/full_size.py [NAME ...]`.

NAME is svd_unet (SVD's U-Net, 8 views of 64 x 64 latents), mv_model (with rays and feedback) or lgm
(four views of 256 x 256). Weights are made from their names (tests/support/synthetic.py), so any
two machines compute the same. Each runs in a process of its own, which prints its parameters,
seconds to compile and to run, and its peak memory.
"""

import multiprocessing
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("", "tests")]

from o3d_jax.config import LgmConfig, UnetConfig  # noqa: E402
from o3d_jax.geometry.orbits import orbit  # noqa: E402
from o3d_jax.nn.lgm import Lgm  # noqa: E402
from o3d_jax.nn.unet import MultiViewUnet, SpatioTemporalUnet  # noqa: E402
from o3d_jax.types import Condition, Maps  # noqa: E402
from support.synthetic import synthetic_variables  # noqa: E402

VIEWS, LATENTS, PIXELS = 8, 64, 512


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def cameras(views: int):
    found = orbit(0.0, np.arange(views) * 360 / views, 1.5, 49.1)
    return jax.tree.map(lambda a: a[None], found)


def svd_unet():
    ids = jnp.array([[6.0, 127.0, 0.02]])
    x = normal(0, 1, VIEWS, LATENTS, LATENTS, 8)
    return SpatioTemporalUnet(UnetConfig()), (x, jnp.array([0.7]), normal(1, 1, 1, 1024), ids)


def mv_model():
    condition = Condition(
        clip=normal(1, 1, 1, 1024),
        latents=normal(2, 1, LATENTS, LATENTS, 4),
        added_ids=jnp.array([[6.0, 127.0, 0.02]]),
    )
    maps = Maps(
        rgb=jax.nn.sigmoid(normal(3, 1, VIEWS, PIXELS, PIXELS, 3)),
        ccm=jax.nn.sigmoid(normal(4, 1, VIEWS, PIXELS, PIXELS, 3)),
    )
    x = normal(0, 1, VIEWS, LATENTS, LATENTS, 4)
    return MultiViewUnet(UnetConfig()), (x, jnp.array([0.7]), condition, cameras(VIEWS), maps)


def lgm():
    images = jax.nn.sigmoid(normal(0, 1, 4, 256, 256, 3))
    return Lgm(LgmConfig()), (images, cameras(4), jnp.array([0.7]))


NETWORKS = {"svd_unet": svd_unet, "mv_model": mv_model, "lgm": lgm}


def run(name: str) -> None:
    network, inputs = NETWORKS[name]()
    variables = synthetic_variables(network, *inputs)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    start = time.perf_counter()
    compiled = jax.jit(network.apply).lower(variables, *inputs).compile()
    compiling = time.perf_counter() - start
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(variables, *inputs))
    running = time.perf_counter() - start
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(out)])
    assert np.isfinite(values).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {name} | {count:,} | {compiling:.0f} s | {running:.0f} s | {peak:.1f} GiB | "
        f"{np.sqrt(np.mean(values**2)):.4f} |",
        flush=True,
    )


def main() -> None:
    names = sys.argv[1:] or list(NETWORKS)
    unknown = sorted(set(names) - set(NETWORKS))
    if unknown:
        sys.exit(f"no network {unknown[0]}; there are {', '.join(NETWORKS)}")
    print("| network | parameters | compile | run | peak memory | rms of output |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in names:
        process = multiprocessing.get_context("spawn").Process(target=run, args=(name,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name} ended with status {process.exitcode}")


if __name__ == "__main__":
    main()
