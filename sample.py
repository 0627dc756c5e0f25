"""Samples Ouroboros3D (Algorithm 2): each image to a 3D object of Gaussians.

    python sample.py [IMAGE ...] [--out out] [--checkpoint RUN/model] [--seed 0] [--levels 16]

Without arguments, the bundled model sees the bundled example. Several images, or folders of them,
share the model and its compiled programs; one that fails does not stop the others. Read top to
bottom: images, model, loop, files. `o3d sample` runs this file.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from tqdm import tqdm

from o3d_jax.cli import parse, use_compilation_cache
from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.files.atomic import whole_folder
from o3d_jax.files.images import check_is_file, find_images, save_png
from o3d_jax.geometry.orbits import orbit, relative_to_first
from o3d_jax.geometry.released import FRAME_CHOICES, as_drawn
from o3d_jax.geometry.upright import Up, upright
from o3d_jax.media.foreground import read_foreground, recenter_on_white
from o3d_jax.media.nothing import check_object
from o3d_jax.media.ply import read_ply, write_ply
from o3d_jax.media.sheets import grid
from o3d_jax.media.splat import write_splat
from o3d_jax.media.video import write_gif, write_mp4
from o3d_jax.meshing.extra import check_mesh_packages
from o3d_jax.nn.networks import Networks, Ouroboros, build_networks
from o3d_jax.steps.reconstruct import draw_object
from o3d_jax.steps.sample import Estimate, noise_levels, sample_prepare, sample_step
from o3d_jax.types import Cameras, Gaussians, Maps
from o3d_jax.weights.checkpoint import BUNDLED, Weights, load_model, named_parts
from o3d_jax.weights.completeness import check_complete
from o3d_jax.weights.fetched import find_checkpoint

ORBIT_FRAMES = 48
"""Frames of the turntable; at 20 per second it turns once in 2.4 s."""

PICTURES = ("input.png", "views.png", "renders.png", "loop.png", "orbit.gif", "orbit.mp4")
FILES = (*PICTURES, "gaussians.ply", "gaussians.splat", "mesh.glb", "manifest.json")
"""All that a result may hold."""

LOOP_TILE = 128
"""Pixels of a tile in loop.png, which has two for each level and shown view."""

draw_turntable = jax.jit(draw_object, static_argnums=(0, 3))
"""Compiled once for all images."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Each image to a 3D object of Gaussians."""

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")
    ] = (BUNDLED / "rings.png",)
    """PNG, JPEG or WebP of one object, transparent or plain around it; or a folder of such."""
    mask: Path | None = None
    """Picture that is white where the object is and black elsewhere, or cut out by its alpha."""
    out: Path = Path("out")
    """Results go to OUT/NAME, NAME being the image's."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Make what is there already once more."""
    checkpoint: Path = BUNDLED / "nano"
    """Folder with a model: RUN/model of a training run, or "released" after `o3d weights fetch`."""
    seed: int = 0
    """Seed of the noise that sampling starts from."""
    levels: int | None = None
    """Noise levels; by default those of the model's config."""
    border: float = 0.25
    """Share of the picture that stays white around the object (median of training: 0.25)."""
    elevation: float = 10.0
    """Degrees at which the image looks down on the object (release: always 0)."""
    orbit_size: int = 256
    """Pixels along a side of the turntable."""
    up: Up = "y-down"
    """Axes of gaussians.ply and .splat; y-down as viewers of Gaussians take them."""
    mesh: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write mesh.glb as well, as `o3d mesh` does."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model on its device, and what was asked of it."""

    arguments: Arguments
    config: Config
    networks: Networks
    weights: Weights
    seconds: float
    """That it took to read the model."""


class Outcome(NamedTuple):
    """What became of an image."""

    image: Path
    status: Literal["made", "there already", "failed"]
    result: Path | str
    """The folder, or why there is none."""


@dataclasses.dataclass(frozen=True)
class Level:
    """What loop.png shows of one noise level."""

    sigma: float
    views: Float[np.ndarray, "v h w 3"]
    guide: Float[np.ndarray, "v h w 3"]
    """Renders the estimate was guided by; black before there are any."""


def sample(arguments: Arguments) -> list[Outcome]:
    """Makes an object of each image, and says what became of it.

    Raises:
        InputError: arguments or a model that no image can be sampled with; of an image by itself,
            what is wrong with it. Of several, the others are made.
    """
    images = find_images(arguments.images)
    arguments = dataclasses.replace(arguments, checkpoint=find_checkpoint(arguments.checkpoint))
    _check(arguments, images)
    sampler = _read_model(arguments)
    if len(images) == 1:
        return [_make(sampler, images[0])]

    outcomes = []
    for number, image in enumerate(images, 1):
        print(f"[{number}/{len(images)}] {image}")
        try:
            outcomes.append(_make(sampler, image))
        except InputError as error:
            outcomes.append(Outcome(image, "failed", str(error)))
            print(f"failed: {error}")
    return outcomes


def _make(sampler: Sampler, path: Path) -> Outcome:
    """Writes OUT/NAME, whole or not at all, unless it is there."""
    arguments, config = sampler.arguments, sampler.config
    folder = arguments.out / path.stem
    seconds = {"model": sampler.seconds}
    with _stage("input", seconds):
        found = read_foreground(path, arguments.mask)
        image = recenter_on_white(found.rgba, config.model.image_size, arguments.border)
    if found.note is not None:
        print(f"{path}: {found.note}")
    settings = _settings(sampler, path)
    if not arguments.overwrite and _is_there(folder, settings):
        if arguments.mesh and not (folder / "mesh.glb").is_file():
            _write_mesh(folder)
        return Outcome(path, "there already", folder)

    with whole_folder(folder, FILES) as scratch:
        save_png(scratch / "input.png", image)
        with _stage("sampling", seconds):
            estimate, levels = _sample(sampler, image)
        with _stage("pictures", seconds):
            _write_pictures(scratch, config, estimate, levels)
            gaussians = jax.tree.map(lambda a: a[0], estimate.reconstruction.gaussians)
            standing = upright(
                as_drawn(gaussians, config.model.lgm.rotation_norm), arguments.elevation
            )
            write_ply(scratch / "gaussians.ply", standing, up=arguments.up)
            write_splat(scratch / "gaussians.splat", standing, up=arguments.up)
        with _stage("turntable", seconds):
            _write_turntable(scratch, gaussians, config, arguments)
        if arguments.mesh:
            with _stage("mesh", seconds):
                _write_mesh(scratch)
        _write_manifest(scratch, path, arguments, settings, seconds)
    return Outcome(path, "made", folder)


def _check(arguments: Arguments, images: list[Path]) -> None:
    """Refuses orders that cannot be carried out, before a model is read for nothing.

    Raises:
        InputError: an argument is out of its range, or two results would have one name.
    """
    if not 0 <= arguments.border <= 0.8:
        raise InputError(f"--border {arguments.border} is not in 0 .. 0.8; try 0.25")
    if not 16 <= arguments.orbit_size <= 4096:
        raise InputError(f"--orbit-size {arguments.orbit_size} is not in 16 .. 4096 pixels")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed {arguments.seed} is not in 0 .. 2^32 - 1")
    if not -90 < arguments.elevation < 90:
        raise InputError(f"--elevation {arguments.elevation} is not in -90 .. 90 degrees")
    if arguments.levels is not None and arguments.levels > 1000:
        raise InputError(f"--levels {arguments.levels} is above 1000; 16 to 50 are enough")

    # Results are named by their image, and one may not replace another.
    first_of: dict[str, Path] = {}
    for image in images:
        if image.stem in ("", ".", ".."):
            raise InputError(f"{image} has no name that results could go under; rename it")
        if (other := first_of.setdefault(image.stem, image)) is not image:
            raise InputError(
                f"{other} and {image} would both become {arguments.out / image.stem}; rename one, "
                "or give them one by one, each with its own --out"
            )

    if arguments.mesh:
        check_mesh_packages()
    if arguments.mask is not None and len(images) > 1:
        raise InputError(f"--mask {arguments.mask} is of one image; give that image alone")
    if len(images) == 1:  # Of several, one that is missing must not stop the others.
        for file in (images[0], *filter(None, [arguments.mask])):
            check_is_file(file)


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)
    print(f"{name}: {seconds[name]:.1f} s")


def _read_model(arguments: Arguments) -> Sampler:
    seconds: dict[str, float] = {}
    with _stage("model", seconds):
        model = load_model(arguments.checkpoint)
        check_complete(arguments.checkpoint, named_parts(model.weights))
        config = _with_arguments(model.config, arguments)
        networks, weights = build_networks(config.model), jax.device_put(model.weights)
    return Sampler(arguments, config, networks, weights, seconds["model"])


def _with_arguments(config: Config, arguments: Arguments) -> Config:
    if arguments.levels is None:
        return config
    try:
        chosen = dataclasses.replace(config.sample, levels=arguments.levels)
    except ValueError as error:
        raise InputError(f"--levels {arguments.levels}: {error}") from error
    return dataclasses.replace(config, sample=chosen)


def _settings(sampler: Sampler, image: Path) -> dict[str, Any]:
    """All that a result depends on, as JSON has it."""
    arguments, mask = sampler.arguments, sampler.arguments.mask
    settings = {
        "image_sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
        "mask_sha256": mask and hashlib.sha256(mask.read_bytes()).hexdigest(),
        "checkpoint_checksum": (arguments.checkpoint / "checksum").read_text(),
        "seed": arguments.seed,
        "border": arguments.border,
        "elevation": arguments.elevation,
        "orbit_size": arguments.orbit_size,
        "up": arguments.up,
        "config": to_dict(sampler.config),
    }
    return json.loads(json.dumps(settings))


def _is_there(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a result of these settings is there.

    Raises:
        InputError: one of other settings is.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        there = json.loads(manifest.read_text())
        others = [name for name, value in settings.items() if there.get(name) != value]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{manifest} is damaged; remove {folder}, or give --overwrite") from error
    if others:
        raise InputError(
            f"{folder} was made with another {', another '.join(others)}; give --overwrite to "
            "replace it, or another --out"
        )
    return True


def _view_azimuths(config: Config) -> Float[np.ndarray, " v"]:
    """Degrees from the input to each generated view: those of training."""
    frames = config.data.frames_per_orbit
    chosen = FRAME_CHOICES[config.data.orbit_frames](0, config.model.num_views, frames)
    return chosen * (360 / frames)


def _cameras(config: Config, elevation: float, azimuths: Float[np.ndarray, " v"]) -> Cameras:
    """Cameras around the object at the input's elevation, the input's first."""
    cameras = orbit(elevation, azimuths, config.camera.radius, config.camera.fov)
    return jax.tree.map(lambda a: a[None], relative_to_first(cameras))


def _sample(sampler: Sampler, image: Float[np.ndarray, "h w 3"]) -> tuple[Estimate, list[Level]]:
    """Algorithm 2, a compiled step a level, so that one sees it move."""
    arguments, config, weights = sampler.arguments, sampler.config, sampler.weights
    model = Ouroboros(
        networks=sampler.networks, config=config, params=weights.params, frozen=weights.frozen
    )
    cameras = _cameras(config, arguments.elevation, _view_azimuths(config))
    key = jax.random.key(arguments.seed)
    condition, state = sample_prepare(model, jnp.asarray(image)[None], key)
    sigmas = noise_levels(config.sample)
    levels = []
    for i in tqdm(range(config.sample.levels), desc="noise levels", unit="level"):
        maps: Maps = state.maps
        state, estimate = sample_step(model, condition, cameras, state, sigmas[i], sigmas[i + 1])
        when = f"at noise level {i + 1} of {config.sample.levels} (sigma {sigmas[i]:.3g})"
        check_object(estimate.reconstruction.gaussians, when, named_parts(weights))
        views, guide = np.asarray(estimate.views[0]), np.asarray(maps.rgb[0])
        levels.append(Level(sigma=float(sigmas[i]), views=views, guide=guide))
    return estimate, levels


def _write_pictures(folder: Path, config: Config, estimate: Estimate, levels: list[Level]) -> None:
    views = np.asarray(estimate.views[0])
    renders = np.asarray(estimate.reconstruction.rendering.rgb[0])
    azimuths = [f"{azimuth:g} deg" for azimuth in _view_azimuths(config)]
    save_png(folder / "views.png", grid([list(views)], column_labels=azimuths))
    save_png(folder / "renders.png", grid([list(renders)], column_labels=azimuths))
    shown = range(0, len(views), max(1, len(views) // 4))
    rows = [[*level.views[shown], *level.guide[shown]] for level in levels]
    names = [f"sigma {level.sigma:.3g}" for level in levels]
    columns = [f"{what} {azimuths[i]}" for what in ("view", "guide") for i in shown]
    save_png(folder / "loop.png", grid(rows, names, columns, LOOP_TILE, LOOP_TILE))


def _write_turntable(
    folder: Path, gaussians: Gaussians, config: Config, arguments: Arguments
) -> None:
    azimuths = np.arange(ORBIT_FRAMES) * (360 / ORBIT_FRAMES)
    cameras = _cameras(config, arguments.elevation, azimuths)
    cameras = jax.tree.map(lambda a: a[0], cameras)
    size = (arguments.orbit_size, arguments.orbit_size)
    frames = np.asarray(draw_turntable(config.model.lgm, gaussians, cameras, size).rgb)
    write_gif(folder / "orbit.gif", frames)
    if not write_mp4(folder / "orbit.mp4", frames):
        print("no orbit.mp4: there is no ffmpeg with a codec; orbit.gif shows the same")


def _write_mesh(folder: Path) -> None:
    """Makes it of the file of Gaussians, so that it is the same if it is made later."""
    from o3d_jax.meshing.colored import mesh_of_gaussians  # numba takes long to import.
    from o3d_jax.meshing.glb import write_glb

    try:
        write_glb(folder / "mesh.glb", mesh_of_gaussians(read_ply(folder / "gaussians.ply")))
    except InputError as error:  # The rest is good without it.
        print(f"no mesh.glb: {error}")


def _write_manifest(
    folder: Path,
    image: Path,
    arguments: Arguments,
    settings: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    """How to make this result again."""
    packages = {p: version(p) for p in ("jax", "jaxlib", "flax", "diffrax", "numpy", "pillow")}
    manifest = {
        "image": str(image),
        "checkpoint": str(arguments.checkpoint),
        **settings,
        "versions": {"python": platform.python_version()} | packages,
        "device": str(jax.devices()[0].device_kind),
        "seconds": seconds,
        "files": sorted(path.name for path in folder.iterdir()),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _summary(outcomes: list[Outcome]) -> str:
    """The files of a single result; of several images a table, and how many came to what."""
    (_, status, result), *others = outcomes
    if not others and status == "made":
        return f"{result}: " + ", ".join(sorted(path.name for path in Path(result).iterdir()))
    if not others:
        return f"{result} is {status}; --overwrite makes it once more"

    width = max(len(str(outcome.image)) for outcome in outcomes)
    rows = [f"{str(o.image):{width}}  {o.status:13}  {o.result}" for o in outcomes]
    counts = collections.Counter(outcome.status for outcome in outcomes)
    total = ", ".join(f"{number} {status}" for status, number in counts.items())
    return "\n".join(["", *rows, f"{len(outcomes)} images: {total}"])


@exit_on_input_error()
def main(arguments: list[str], program: str = "python sample.py") -> None:
    """Reads the command line; `program` is what its `--help` calls it."""
    order = parse(Arguments, arguments, prog=program, description=__doc__)
    use_compilation_cache()
    outcomes = sample(order)
    print(_summary(outcomes))
    if any(outcome.status == "failed" for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
