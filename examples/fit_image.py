"""Fits 2,000 Gaussians to one picture: `python examples/fit_image.py`, half a minute on two cores.

The rasterizer needs no network and nothing to compile. The picture and the fits after 0, 20, 100
and 1,000 steps go to fit.png.
"""

from dataclasses import replace
from importlib.resources import files

import jax
import jax.numpy as jnp
import optax
from tqdm import trange

from o3d_jax.files.images import load_image, save_png
from o3d_jax.splat import render
from o3d_jax.types import Cameras, Gaussians

rgba = load_image(files("o3d_jax") / "assets" / "robot.png")[16:236, 18:238]
target = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]  # On white.

# The lens is in widths and heights of the picture. Axes: x right, y down, z ahead.
lens = jnp.array([[[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]])
camera = Cameras(camera_to_world=jnp.eye(4)[None], intrinsics=lens)

# Scales are fitted as logarithms and opacities as logits, so that both stay in range.
means = jax.random.uniform(jax.random.key(0), (2000, 3), minval=-0.5, maxval=0.5).at[:, 2].set(1)
raw = Gaussians(
    means=means,
    scales=jnp.log(0.015 * jnp.ones((2000, 3))),
    quats=jnp.ones((2000, 4)),
    opacities=jnp.zeros(2000),
    colors=0.5 * jnp.ones((2000, 3)),
)
adam = optax.adam(optax.cosine_decay_schedule(0.015, 1000))
state, shown = adam.init(raw), [target]


@jax.jit
def picture(raw):
    """What the camera sees of the Gaussians, on white."""
    scene = replace(raw, scales=jnp.exp(raw.scales), opacities=jax.nn.sigmoid(raw.opacities))
    return render(scene, camera, (220, 220), background=jnp.ones(3)).rgb[0]


@jax.jit
def step(raw, state):
    """One step of Adam on the mean absolute error."""
    gradient = jax.grad(lambda raw: jnp.abs(picture(raw) - target).mean())(raw)
    updates, state = adam.update(gradient, state)
    return optax.apply_updates(raw, updates), state


for i in trange(1000):
    shown += [picture(raw)] if i in (0, 20, 100) else []
    raw, state = step(raw, state)
save_png("fit.png", jnp.concatenate([*shown, picture(raw)], axis=1))
