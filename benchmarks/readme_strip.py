"""The picture on top of the README: `python benchmarks/readme_strip.py [IMAGE] [--weights MODEL]`.

Writes docs/images/strip.gif: an input, the eight views that the diffusion model generates, the same
views drawn from the Gaussians, and a turntable, which moves.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from o3d_jax.cli import use_compilation_cache
from o3d_jax.errors import exit_on_input_error
from o3d_jax.files.images import to_bytes
from o3d_jax.geometry.orbits import orbit, relative_to_first
from o3d_jax.media.foreground import read_foreground, recenter_on_white
from o3d_jax.media.video import write_gif
from o3d_jax.nn.networks import Ouroboros, build_networks
from o3d_jax.splat import render
from o3d_jax.steps.sample import Estimate, generate
from o3d_jax.types import Cameras
from o3d_jax.weights.checkpoint import BUNDLED, Model, load_model

STRIP = Path(__file__).parents[1] / "docs" / "images" / "strip.gif"
ELEVATION = 10.0
"""Degrees, as in sample.py."""

FRAMES, LARGE, SMALL, LABEL = 30, 176, 80, 16
"""Of the turntable; pixels of input and turntable, of a view, and of a line of text."""


def circle(model: Model, count: int) -> Cameras:
    """Cameras around the object; the first is the input's."""
    camera, azimuths = model.config.camera, np.arange(count) * (360 / count)
    return relative_to_first(orbit(ELEVATION, azimuths, camera.radius, camera.fov))


def sample(model: Model, image: Float[np.ndarray, "h w 3"]) -> Estimate:
    """What Algorithm 2 finds in one image."""
    config, weights = model.config, model.weights
    whole = Ouroboros(
        networks=build_networks(config.model),
        config=config,
        params=weights.params,
        frozen=weights.frozen,
    )
    cameras = jax.tree.map(lambda a: a[None], circle(model, config.model.num_views))
    return generate(whole, jnp.asarray(image)[None], cameras, jax.random.key(0))


def still(
    image: Float[np.ndarray, "h w 3"],
    views: Float[np.ndarray, "v h w 3"],
    renders: Float[np.ndarray, "v h w 3"],
) -> Image.Image:
    """All but the turntable, with labels, and room for it on the right."""
    width = 2 * LARGE + len(views) * SMALL
    canvas = Image.new("RGB", (width, LARGE + LABEL), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)

    def put(picture: Float[np.ndarray, "h w 3"], size: int, x: int, y: int) -> None:
        tile = Image.fromarray(to_bytes(picture)).resize((size, size), Image.Resampling.BICUBIC)
        canvas.paste(tile, (x, y))

    put(image, LARGE, 0, LABEL)
    middle = LARGE + len(views) * SMALL // 2
    for row, pictures in enumerate((views, renders)):
        top = LABEL + row * (LARGE // 2)
        for i, picture in enumerate(pictures):
            put(picture, SMALL, LARGE + i * SMALL, top + row * (LABEL // 2))
    texts = {
        (LARGE // 2, 2): "input",
        (middle, 2): "generated views",
        (middle, LABEL + LARGE // 2 - 5): "the same views, drawn from 3D Gaussians",
        (width - LARGE // 2, 2): "the object",
    }
    for place, text in texts.items():
        pen.text(place, text, "#666666", font, anchor="mt")
    return canvas


@exit_on_input_error()
def main() -> None:
    """Samples, draws, and writes the strip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path, nargs="?", default=BUNDLED / "examples" / "rings.png")
    parser.add_argument("--weights", type=Path, default=BUNDLED / "nano")
    arguments = parser.parse_args()
    use_compilation_cache()
    model = load_model(arguments.weights)
    found = read_foreground(arguments.image)
    image = recenter_on_white(found.rgba, model.config.model.image_size, border=0.25)
    found = jax.tree.map(lambda a: np.asarray(a[0]), sample(model, image))

    background = still(image, found.views, found.reconstruction.rendering.rgb)
    draw = jax.jit(render, static_argnums=2)
    gaussians, size = found.reconstruction.gaussians, (LARGE, LARGE)
    turn = np.asarray(draw(gaussians, circle(model, FRAMES), size, jnp.ones(3)).rgb)

    frames = np.repeat((np.asarray(background, np.float32) / 255)[None], FRAMES, axis=0)
    frames[:, LABEL:, -LARGE:] = turn
    write_gif(STRIP, frames, fps=15)


if __name__ == "__main__":
    main()
