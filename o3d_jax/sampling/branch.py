"""A second ending of a result, from one of its noise levels on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import whole_folder
from o3d_jax.files.images import save_png
from o3d_jax.media.sheets import grid
from o3d_jax.nn.networks import Ouroboros
from o3d_jax.sampling.curves import draw_loop
from o3d_jax.sampling.kept import load_image_of, load_levels, load_state, save_level
from o3d_jax.sampling.loop import (
    Feedback,
    Level,
    Recipe,
    Start,
    check_choices,
    noised_anew,
    read_sampler,
    run_levels,
    view_azimuths,
    with_choices,
)
from o3d_jax.sampling.result import (
    COMPARISON_FILE,
    SAMPLED_FILES,
    Presentation,
    is_there,
    named,
    read_manifest,
    write_manifest,
    write_result,
)
from o3d_jax.sampling.stages import Stages, seconds_since_start
from o3d_jax.weights.checkpoint import config_from_dict

OF_THIS_RESULT = ("image", "checkpoint", "versions", "device", "seconds", "files")
"""What a manifest has besides settings."""


@dataclasses.dataclass(frozen=True)
class BranchArguments:
    """A second ending of a result, from one of its noise levels on, beside it."""

    branch: Path
    """OUT/NAME, made with --keep-levels."""
    level: int
    """Number of the first noise level that is done again, from 0."""
    seed: int | None = None
    """Seed of fresh noise at that level; by default, or if it is the same, the noise stays."""
    guidance: float | None = None
    """Guidance of the last view; by default as it was."""
    feedback: Feedback | None = None
    """Maps of the object that the next estimate sees; by default as it was."""
    overwrite: bool = False
    """Make what is there already once more."""
    offload: bool = False
    """Bring each network to the device for as long as it runs, as `sample --offload` does."""
    profile: bool = False
    """Say at the end where the seconds went."""


@dataclasses.dataclass(frozen=True)
class Original:
    """The result that is branched."""

    folder: Path
    manifest: dict[str, Any]
    levels: list[Level]
    config: Config
    recipe: Recipe


def branch(arguments: BranchArguments) -> tuple[Path, bool]:
    """Returns the folder of the second ending, and whether it was there already.

    It holds all that a result does, with the levels before as they were, and branch.png, which
    compares the two.

    Raises:
        InputError: the result kept no levels, its model is not there any more, there is no such
            level, or a choice is out of range.
    """
    original = _read_original(arguments)
    recipe = _recipe(original, arguments)
    folder = _folder(arguments)
    settings = _settings(original, recipe, arguments)
    if not arguments.overwrite and is_there(folder, settings):
        return folder, True

    stages = Stages({"start": seconds_since_start()})
    with stages.timed("model"):
        model = read_sampler(_checkpoint(original.manifest), arguments.offload)
    with whole_folder(folder, SAMPLED_FILES) as scratch:
        image = load_image_of(original.folder / "levels")
        save_png(scratch / "input.png", image)
        with stages.timed("sampling"):
            place = scratch / "levels"
            levels = _second_ending(model, recipe, original, arguments.level, place, stages)
        shown = Presentation(
            recipe.elevation, *(original.manifest[n] for n in ("orbit_size", "up"))
        )
        write_result(scratch, original.config, levels, shown, stages)
        with stages.timed("kept"):
            write_comparison(scratch, original.config, original.levels[-1], levels[-1])
            draw_loop(scratch, {original.folder.name: original.levels, "branch": levels})
        origin = {name: original.manifest[name] for name in ("image", "checkpoint")}
        write_manifest(scratch, origin, settings, stages.so_far())
    return folder, False


def write_comparison(folder: Path, config: Config, first: Level, second: Level) -> None:
    """Writes branch.png: views and renders of a result, and below them those of the branch."""
    images = [first.views, second.views, first.renders, second.renders]
    names = ["views", "views, branch", "renders", "renders, branch"]
    azimuths = [f"{azimuth:g} deg" for azimuth in view_azimuths(config)]
    save_png(folder / COMPARISON_FILE, grid([list(row / 255) for row in images], names, azimuths))


def _read_original(arguments: BranchArguments) -> Original:
    folder = named(arguments.branch)
    manifest = read_manifest(folder)
    levels = load_levels(folder / "levels")
    try:
        config = config_from_dict(manifest["config"])
        recipe = Recipe(config.sample, *(manifest[n] for n in ("seed", "elevation", "feedback")))
        _ = [manifest[name] for name in ("image", "checkpoint", "orbit_size", "up")]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} is of an older version, or damaged; make it once more with --overwrite"
        ) from error
    if len(levels) < config.sample.levels:
        raise InputError(
            f"{folder} was made without keeping its levels; make it once more with --keep-levels "
            "--overwrite"
        )
    if not 0 <= arguments.level < len(levels):
        raise InputError(f"--level {arguments.level} is not in 0 .. {len(levels) - 1}")
    return Original(folder, manifest, levels, config, recipe)


def _recipe(original: Original, arguments: BranchArguments) -> Recipe:
    """The original's recipe, with what was chosen."""
    check_choices(original.config, arguments.guidance, arguments.feedback)
    if arguments.seed is not None and not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed {arguments.seed} is not in 0 .. 2^32 - 1")
    return dataclasses.replace(
        original.recipe,
        sample=with_choices(original.recipe.sample, guidance=arguments.guidance),
        seed=original.recipe.seed if arguments.seed is None else arguments.seed,
        feedback=arguments.feedback or original.recipe.feedback,
    )


def _folder(arguments: BranchArguments) -> Path:
    """Beside the original, by a name that says what is another."""
    chosen = [f"level{arguments.level}"]
    for name in ("seed", "guidance"):
        if (value := getattr(arguments, name)) is not None:
            chosen.append(f"{name}{value:g}")
    if arguments.feedback is not None:
        chosen.append(arguments.feedback)
    folder = named(arguments.branch)
    return folder.with_name("-".join([folder.name, *chosen]))


def _settings(original: Original, recipe: Recipe, arguments: BranchArguments) -> dict[str, Any]:
    """All that the branch depends on, as JSON has it."""
    kept = {n: v for n, v in original.manifest.items() if n not in OF_THIS_RESULT}
    config = dataclasses.replace(original.config, sample=recipe.sample)
    was = {
        "seed": original.recipe.seed,
        "feedback": original.recipe.feedback,
        "max_guidance": original.recipe.sample.max_guidance,
    }
    new = {
        "seed": recipe.seed,
        "feedback": recipe.feedback,
        "config": to_dict(config),
        "branch": {"of": original.folder.name, "level": arguments.level, "was": was},
    }
    return json.loads(json.dumps(kept | new))


def _checkpoint(manifest: dict[str, Any]) -> Path:
    """The model that the original was made with.

    Raises:
        InputError: there is another one now, or none.
    """
    folder = Path(manifest["checkpoint"])
    checksum = folder / "checksum"
    if not checksum.is_file() or checksum.read_text() != manifest["checkpoint_checksum"]:
        raise InputError(f"the model at {folder} is not the one it was made with; put that back")
    return folder


def _second_ending(
    model: Ouroboros,
    recipe: Recipe,
    original: Original,
    first: int,
    folder: Path,
    stages: Stages,
) -> list[Level]:
    """All levels of the branch, kept in `folder`: those before `first` are the original's."""
    shutil.copytree(original.folder / "levels", folder)
    for number in range(first, len(original.levels)):
        (folder / f"{number:02}.npz").unlink()

    image: Float[np.ndarray, "h w 3"] = load_image_of(folder)
    levels = original.levels[:first]
    start = None
    if first > 0:
        state = load_state(folder, first - 1)
        if recipe.seed != original.recipe.seed:
            sigma = original.levels[first].sigma
            state = noised_anew(levels[-1], state, sigma, recipe.seed)
        start = Start(first, state, levels[-1])
    found = run_levels(model, recipe, image, start)
    found = stages.watched(found, recipe.sample.levels, first)
    for number, each in enumerate(found, first):
        save_level(folder, number, each)
        levels = [*levels, each.level]
    return levels
