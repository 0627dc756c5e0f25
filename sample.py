"""Samples Ouroboros3D (Algorithm 2): each image to a 3D object of Gaussians.

    python sample.py [IMAGE ...] [--out out] [--checkpoint RUN/model] [--seed 0] [--levels 16]
    python sample.py --resume OUT/NAME      goes on with a run that had --keep-levels
    python sample.py --branch OUT/NAME --level 5 [--seed 1] [--guidance 3] [--feedback ccm]

Without arguments, the bundled model sees the bundled example. Several images, or folders of them,
share the model and its compiled programs; one that fails does not stop the others. A branch is a
second ending of a result with kept levels, from one of these on; `--branch --help` says more. Read
top to bottom: images, model, loop, files. `o3d sample` runs this file.
"""

import collections
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from o3d_jax.cli import parse, use_compilation_cache
from o3d_jax.config import to_dict
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.files.atomic import whole_folder
from o3d_jax.files.images import check_is_file, find_images, save_png
from o3d_jax.geometry.upright import Up
from o3d_jax.media.foreground import read_foreground, recenter_on_white
from o3d_jax.meshing.extra import check_mesh_packages
from o3d_jax.nn.networks import Ouroboros
from o3d_jax.sampling.branch import BranchArguments, branch
from o3d_jax.sampling.curves import draw_loop
from o3d_jax.sampling.loop import (
    Feedback,
    Level,
    Recipe,
    check_choices,
    default_feedback,
    read_sampler,
    run_levels,
    with_choices,
)
from o3d_jax.sampling.result import (
    SAMPLED_FILES,
    Presentation,
    is_there,
    list_files_anew,
    read_manifest,
    write_manifest,
    write_mesh,
    write_result,
)
from o3d_jax.sampling.stages import Stages, seconds_since_start, seconds_table
from o3d_jax.sampling.unfinished import (
    begin_keeping,
    clear,
    command_words,
    finish,
    sample_kept,
    words_to_resume,
)
from o3d_jax.weights.checkpoint import BUNDLED
from o3d_jax.weights.fetched import find_checkpoint


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Each image to a 3D object of Gaussians."""

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")
    ] = (BUNDLED / "examples" / "rings.png",)
    """PNG, JPEG or WebP of one object, transparent or plain around it; or a folder of such."""
    mask: Path | None = None
    """Picture that is white where the object is and black elsewhere, or cut out by its alpha."""
    out: Path = Path("out")
    """Results go to OUT/NAME, NAME being the image's."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace results that are there already."""
    checkpoint: Path = BUNDLED / "nano"
    """Folder with a model: RUN/model of a training run, or "released" after `o3d weights fetch`."""
    seed: int = 0
    """Seed of the noise that sampling starts from."""
    levels: int | None = None
    """Noise levels; by default those of the model's config."""
    guidance: float | None = None
    """Guidance of the last view; by default that of the model's config. The first view has 1."""
    feedback: Feedback | None = None
    """Maps of the object that the next estimate sees; by default those the model was built for."""
    reconstruct_every: int | None = None
    """Make an object of the views at every n-th level only, and at the last; by default as the
    model's config says."""
    offload: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep the networks in the host's memory, and bring each to the device for as long as it runs:
    slower, for devices that cannot hold all of them."""
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
    keep_levels: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep what each noise level found: to go on after a break, to look at, to branch off from."""
    profile: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say at the end where the seconds went; manifest.json has them in any case."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Goes on with a run that broke off."""

    resume: Path
    """OUT/NAME, begun with --keep-levels."""


@dataclasses.dataclass(frozen=True)
class Order:
    """A model, and what was asked of it."""

    arguments: Arguments
    model: Ouroboros
    recipe: Recipe
    seconds: dict[str, float]
    """How long it took to start and to read the model."""


class Outcome(NamedTuple):
    """What became of an image."""

    image: Path
    status: Literal["made", "there already", "failed"]
    result: Path | str
    """The folder, or why there is none."""


def sample(arguments: Arguments) -> list[Outcome]:
    """Makes an object of each image, and says what became of it.

    Raises:
        InputError: an argument or the model is unusable, or the only image is. With several images
            a bad one is reported, and the others are still made.
    """
    images = find_images(arguments.images)
    arguments = dataclasses.replace(arguments, checkpoint=find_checkpoint(arguments.checkpoint))
    _check(arguments, images)
    order = _read_model(arguments)
    if len(images) == 1:
        return [_make(order, images[0])]

    outcomes = []
    for number, image in enumerate(images, 1):
        print(f"[{number}/{len(images)}] {image}")
        try:
            outcomes.append(_make(order, image))
        except InputError as error:
            outcomes.append(Outcome(image, "failed", str(error)))
            print(f"failed: {error}")
    return outcomes


def _make(order: Order, path: Path) -> Outcome:
    """Writes OUT/NAME, whole or not at all, unless it is there."""
    arguments, config = order.arguments, order.model.config
    folder = arguments.out / path.stem
    stages = Stages(order.seconds)
    with stages.timed("input"):
        found = read_foreground(path, arguments.mask)
        image = recenter_on_white(found.rgba, config.model.image_size, arguments.border)
    if found.note is not None:
        print(f"{path}: {found.note}")
    settings = _settings(order, path)
    if not arguments.overwrite and is_there(folder, settings):
        if arguments.mesh and not (folder / "mesh.glb").is_file():
            write_mesh(folder)
            list_files_anew(folder)
        if arguments.keep_levels and not (folder / "levels").is_dir():
            raise InputError(f"{folder} is there, without its levels; give --overwrite")
        return Outcome(path, "there already", folder)

    shown = Presentation(arguments.elevation, arguments.orbit_size, arguments.up)
    with whole_folder(folder, SAMPLED_FILES) as scratch:
        save_png(scratch / "input.png", image)
        with stages.timed("sampling"):
            levels = _sample(order, path, image, settings, stages)
        write_result(scratch, config, levels, shown, stages)
        if arguments.mesh:
            with stages.timed("mesh"):
                write_mesh(scratch)
        if arguments.keep_levels:
            with stages.timed("kept"):
                draw_loop(scratch, {path.stem: levels})
                finish(folder, scratch)
        origin = {"image": str(path), "checkpoint": str(arguments.checkpoint)}
        write_manifest(scratch, origin, settings, stages.so_far())
    if arguments.keep_levels:
        clear(folder)
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


def _read_model(arguments: Arguments) -> Order:
    stages = Stages({"start": seconds_since_start()})
    with stages.timed("model"):
        model = read_sampler(arguments.checkpoint, arguments.offload)
    config = model.config
    check_choices(config, arguments.guidance, arguments.feedback)
    recipe = Recipe(
        sample=with_choices(
            config.sample, arguments.levels, arguments.guidance, arguments.reconstruct_every
        ),
        seed=arguments.seed,
        elevation=arguments.elevation,
        feedback=arguments.feedback or default_feedback(config),
    )
    return Order(arguments, model, recipe, stages.seconds)


def _settings(order: Order, image: Path) -> dict[str, Any]:
    """All that a result depends on, as JSON has it."""
    arguments, recipe, mask = order.arguments, order.recipe, order.arguments.mask
    settings = {
        "image_sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
        "mask_sha256": mask and hashlib.sha256(mask.read_bytes()).hexdigest(),
        "checkpoint_checksum": (arguments.checkpoint / "checksum").read_text(),
        "seed": recipe.seed,
        "border": arguments.border,
        "elevation": recipe.elevation,
        "feedback": recipe.feedback,
        "orbit_size": arguments.orbit_size,
        "up": arguments.up,
        "config": to_dict(dataclasses.replace(order.model.config, sample=recipe.sample)),
    }
    return json.loads(json.dumps(settings))


def _sample(
    order: Order,
    path: Path,
    image: Float[np.ndarray, "h w 3"],
    settings: dict[str, Any],
    stages: Stages,
) -> list[Level]:
    """Runs Algorithm 2 with a compiled call for each noise level, so that a bar can move.

    With --keep-levels each level goes to disk as well, and what is there already is not done again.
    """
    arguments, recipe = order.arguments, order.recipe
    if arguments.keep_levels:
        alone = dataclasses.replace(arguments, images=(path,))
        folder = arguments.out / path.stem
        kept = begin_keeping(folder, settings, command_words(alone), arguments.overwrite)
        return sample_kept(order.model, recipe, image, kept, stages)

    found = run_levels(order.model, recipe, image)
    return [each.level for each in stages.watched(found, recipe.sample.levels)]


def _summary(outcomes: list[Outcome]) -> str:
    """The files of a single result; of several images a table, and how many came to what."""
    (_, status, result), *others = outcomes
    if not others and status == "made":
        files = ", ".join(sorted(path.name for path in Path(result).iterdir()))
        return f"{result}: {files}\nto turn it around in a browser: o3d view {result}"
    if not others:
        return f"{result} is {status}; --overwrite makes it once more"

    width = max(len(str(outcome.image)) for outcome in outcomes)
    rows = [f"{str(o.image):{width}}  {o.status:13}  {o.result}" for o in outcomes]
    counts = collections.Counter(outcome.status for outcome in outcomes)
    total = ", ".join(f"{number} {status}" for status, number in counts.items())
    return "\n".join(["", *rows, f"{len(outcomes)} images: {total}"])


def _profiles(outcomes: list[Outcome]) -> str:
    """Where the seconds of each new result went."""
    made = [Path(outcome.result) for outcome in outcomes if outcome.status == "made"]
    return "\n".join(f"\n{path}\n{seconds_table(read_manifest(path)['seconds'])}" for path in made)


@exit_on_input_error()
def main(arguments: list[str], program: str = "python sample.py") -> None:
    """Reads the command line; `program` is what its `--help` calls it."""
    use_compilation_cache()
    words = [word.partition("=")[0] for word in arguments]
    if "--branch" in words:
        arguments = ["--help"] if {"--help", "-h"} & {*words} else arguments
        order = parse(BranchArguments, arguments, prog=program, description=branch.__doc__)
        folder, was_there = branch(order)
        outcomes = [Outcome(order.branch, "there already" if was_there else "made", folder)]
    else:
        if "--resume" in words:
            arguments = words_to_resume(parse(Resume, arguments, prog=program).resume)
        order = parse(Arguments, arguments, prog=program, description=__doc__)
        outcomes = sample(order)
    print(_summary(outcomes))
    if order.profile:
        print(_profiles(outcomes))
    if any(outcome.status == "failed" for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
