"""The library in 20 lines, from an image to Gaussians: `python examples/image_to_3d.py [IMAGE]`.

Writes object.ply, for any viewer of Gaussians, and object.gif, a turntable.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.geometry.orbits import orbit, relative_to_first
from o3d_jax.geometry.upright import upright
from o3d_jax.media.foreground import read_foreground, recenter_on_white
from o3d_jax.media.ply import write_ply
from o3d_jax.media.video import write_gif
from o3d_jax.nn.networks import Ouroboros, build_networks
from o3d_jax.splat import render
from o3d_jax.steps.sample import generate
from o3d_jax.types import Cameras
from o3d_jax.weights.checkpoint import BUNDLED, load_model

stored = load_model(BUNDLED / "nano")
config, networks = stored.config, build_networks(stored.config.model)
params, frozen = stored.weights.params, stored.weights.frozen
model = Ouroboros(networks=networks, config=config, params=params, frozen=frozen)

found = read_foreground(sys.argv[1] if len(sys.argv) > 1 else BUNDLED / "examples" / "rings.png")
image = recenter_on_white(found.rgba, config.model.image_size, border=0.25)


def circle(count: int) -> Cameras:
    """Cameras around the object, 10 degrees above it; the first is the image's."""
    azimuths = np.arange(count) * (360 / count)
    return relative_to_first(orbit(10.0, azimuths, config.camera.radius, config.camera.fov))


# Algorithm 2 is made for several objects at once; here it is one.
views = jax.tree.map(lambda a: a[None], circle(config.model.num_views))
estimate = generate(model, jnp.asarray(image)[None], views, jax.random.key(0))
gaussians = jax.tree.map(lambda a: a[0], estimate.reconstruction.gaussians)

write_ply("object.ply", upright(gaussians, 10.0))
turn = jax.jit(render, static_argnums=2)(gaussians, circle(48), (256, 256), jnp.ones(3))
write_gif("object.gif", np.asarray(turn.rgb))
