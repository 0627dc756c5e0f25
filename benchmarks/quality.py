"""Quality on held-out synthetic objects: `python benchmarks/quality.py [--objects 64]`.

Writes results/quality.md (the table) and results/quality.png (the first objects, to look at).
Rows: the bundled model, the same with its feedback zeroed at sampling, and baselines that know
nothing of 3D. View 0 is the input itself and does not count, except in a column of its own.
"""

import argparse
import dataclasses
import math
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from o3d_jax.cli import use_compilation_cache
from o3d_jax.config import Config
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.files.images import save_png
from o3d_jax.media.sheets import grid
from o3d_jax.metrics import psnr, ssim
from o3d_jax.nn.networks import Networks, Ouroboros, build_networks
from o3d_jax.steps.sample import Estimate, generate
from o3d_jax.types import Batch
from o3d_jax.weights.checkpoint import BUNDLED, Model, load_model

RESULTS = Path(__file__).parent / "results"
CHUNK = 8
"""Objects sampled at once."""

MEAN_OBJECTS = 512
"""Training objects in the mean orbit."""

Images = Float[np.ndarray, "b v h w 3"]


@dataclasses.dataclass(frozen=True)
class Score:
    """Means over objects and views, of PSNR in dB and SSIM."""

    psnr: float
    ssim: float
    per_object: Float[np.ndarray, " b"]
    """PSNR, mean over views."""
    input_psnr: float
    """Of view 0."""


def score(images: Images, truth: Images) -> Score:
    """Over all views but the input; clipped to [0, 1] first, as a viewer would see them."""
    images = np.clip(images, 0, 1)
    db = np.asarray(psnr(jnp.asarray(images), jnp.asarray(truth)))
    structure = np.asarray(ssim(jnp.asarray(images), jnp.asarray(truth)))
    return Score(
        psnr=float(db[:, 1:].mean()),
        ssim=float(structure[:, 1:].mean()),
        per_object=db[:, 1:].mean(axis=1),
        input_psnr=float(db[:, 0].mean()),
    )


def sample_all(
    model: Model, networks: Networks, config: Config, batch: Batch
) -> tuple[Images, Images]:
    """Generated views and renders, several objects at a time."""
    views, renders = [], []
    params, frozen = model.weights.params, model.weights.frozen
    bound = Ouroboros(networks=networks, config=config, params=params, frozen=frozen)
    for start in tqdm(range(0, batch.images.shape[0], CHUNK), desc="objects"):
        part = jax.tree.map(lambda a: jnp.asarray(a[start : start + CHUNK]), batch)  # noqa: B023
        key = jax.random.key(start)
        found: Estimate = generate(bound, part.images[:, 0], part.cameras, key)
        views.append(np.asarray(found.views))
        renders.append(np.asarray(found.reconstruction.rendering.rgb))
    return np.concatenate(views), np.concatenate(renders)


def mean_orbit(config: Config) -> Float[np.ndarray, "v h w 3"]:
    """The mean of training orbits, view by view."""
    batches = (loaded.batch for loaded in training_batches(config))
    count = math.ceil(MEAN_OBJECTS / config.train.batch_size)
    return np.mean([np.asarray(next(batches).images).mean(0) for _ in range(count)], axis=0)


def interval(values: Float[np.ndarray, " b"]) -> float:
    """Half of the 95 % interval of the mean over objects, by normal theory."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def table(rows: list[tuple[str, Score, Score | None]]) -> str:
    """Markdown: generated views beside renders of the Gaussians, and the gap between the two."""
    lines = [
        "| | views PSNR | SSIM | renders PSNR | SSIM | abs. Delta PSNR | input view |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, view, render in rows:
        cells = f"{view.psnr:.2f} ± {interval(view.per_object):.2f} | {view.ssim:.4f}"
        if render is None:
            lines.append(f"| {name} | {cells} | the same | the same | 0 | |")
            continue
        gap = abs(view.psnr - render.psnr)
        cells += f" | {render.psnr:.2f} ± {interval(render.per_object):.2f} | {render.ssim:.4f}"
        lines.append(f"| {name} | {cells} | {gap:.2f} | {render.input_psnr:.2f} |")
    return "\n".join(lines)


@exit_on_input_error()
def main() -> None:
    """Samples, scores, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED / "nano")
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.md")
    arguments = parser.parse_args()
    if arguments.objects < 2:
        raise InputError(f"--objects {arguments.objects}: an interval needs at least 2")
    use_compilation_cache()
    model = load_model(arguments.checkpoint)
    networks = build_networks(model.config.model)
    batch = heldout_batch(model.config, arguments.objects)
    truth = np.asarray(batch.images)
    started = time.perf_counter()
    without = dataclasses.replace(
        model.config, sample=dataclasses.replace(model.config.sample, feedback=False)
    )
    views, renders = sample_all(model, networks, model.config, batch)
    bare_views, bare_renders = sample_all(model, networks, without, batch)
    copied = np.broadcast_to(truth[:, :1], truth.shape)
    mean = np.broadcast_to(mean_orbit(model.config)[None], truth.shape)
    rows = [
        (model.config.name, score(views, truth), score(renders, truth)),
        ("feedback zeroed at sampling", score(bare_views, truth), score(bare_renders, truth)),
        ("white image", score(np.ones_like(truth), truth), None),
        ("input view copied", score(copied, truth), None),
        (f"mean of {MEAN_OBJECTS} training orbits", score(mean, truth), None),
    ]
    made = (
        f"{arguments.objects} held-out synthetic objects, {truth.shape[1] - 1} novel views each, "
        f"{truth.shape[2]} px, {model.config.sample.levels} levels; jax {jax.__version__}, "
        f"{platform.machine()}, {time.perf_counter() - started:.0f} s. "
        "± is half of a 95 % interval over objects. Means over the views other than the input; "
        "the last column is the render of the input's view against the input."
    )
    text = f"# Quality\n\nMade by `python benchmarks/quality.py`: {made}\n\n{table(rows)}\n"
    arguments.out.write_text(text)
    few = range(min(10, len(truth)))
    shown = [[truth[i, 0], *images[i]] for i in few for images in (views, renders, truth)]
    labels = ["views", "renders", "truth"] * len(few)
    columns = ["input", *(f"view {k}" for k in range(truth.shape[1]))]
    save_png(arguments.out.with_suffix(".png"), grid(shown, labels, columns))
    tqdm.write(text)


if __name__ == "__main__":
    main()
