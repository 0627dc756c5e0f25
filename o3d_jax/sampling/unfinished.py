"""A run that keeps its levels while it samples, in OUT/NAME.unfinished, and may break off."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.nn.networks import Ouroboros
from o3d_jax.sampling.kept import load_levels, load_state, save_image, save_level
from o3d_jax.sampling.loop import Level, Recipe, Start, run_levels
from o3d_jax.sampling.result import named, other_settings
from o3d_jax.sampling.stages import Stages


def unfinished_folder(folder: Path) -> Path:
    """Returns where the run of a result keeps its levels until it is whole."""
    return folder.with_name(f"{folder.name}.unfinished")


def begin_keeping(
    folder: Path, settings: dict[str, Any], words: list[str], overwrite: bool
) -> Path:
    """Returns the folder for the levels of a result, with those that are there already.

    `words` are the command line that goes on with the run, `settings` what its levels depend on.

    Raises:
        InputError: a run of other settings broke off there, and is not to be overwritten.
    """
    place = unfinished_folder(folder)
    order = place / "run.json"
    if order.is_file():
        others = other_settings(_read_order(order)["settings"], settings)
        if others and not overwrite:
            raise InputError(
                f"{place} was begun with another {', another '.join(others)}; give all of it as "
                f"it was and --resume {folder} goes on, or --overwrite begins anew"
            )
        if others:
            shutil.rmtree(place)
    (place / "levels").mkdir(parents=True, exist_ok=True)
    with written_whole(order) as temporary:
        temporary.write_text(json.dumps({"words": words, "settings": settings}, indent=1))
    return place / "levels"


def sample_kept(
    model: Ouroboros,
    recipe: Recipe,
    image: Float[np.ndarray, "h w 3"],
    folder: Path,
    stages: Stages,
) -> list[Level]:
    """Returns the levels of a run that keeps them in `folder`, and goes on behind those there.

    All of them, whether a run broke off or not, are the same bit for bit.
    """
    save_image(folder, image)
    levels = load_levels(folder)
    start = None
    if levels:
        start = Start(len(levels), load_state(folder, len(levels) - 1), levels[-1])
    found = run_levels(model, recipe, image, start)
    found = stages.watched(found, recipe.sample.levels, len(levels))
    for number, each in enumerate(found, len(levels)):
        save_level(folder, number, each)
        levels.append(each.level)
    return levels


def finish(folder: Path, scratch: Path) -> None:
    """Copies the levels of a run into what becomes its result."""
    levels = unfinished_folder(folder) / "levels"
    whole = [path for path in levels.iterdir() if not path.name.startswith(".")]
    (scratch / "levels").mkdir()
    for path in whole:
        shutil.copyfile(path, scratch / "levels" / path.name)


def clear(folder: Path) -> None:
    """Removes what the run of a whole result kept while it sampled."""
    shutil.rmtree(unfinished_folder(folder), ignore_errors=True)


def words_to_resume(folder: Path) -> list[str]:
    """Returns the command line that goes on with the run that broke off at OUT/NAME.

    `folder` is that of the result, or the unfinished one itself.

    Raises:
        InputError: no run broke off there.
    """
    name = named(folder).name.removesuffix(".unfinished")
    order = named(folder).parent / f"{name}.unfinished" / "run.json"
    if order.is_file():
        return _read_order(order)["words"]
    begun = sorted(path.name.removesuffix(".unfinished") for path in folder.glob("*.unfinished"))
    hint = f"give {folder / begun[0]}" if begun else "only runs with --keep-levels can go on"
    raise InputError(f"no run broke off at {folder}; {hint}")


def command_words(order: Any) -> list[str]:
    """Returns the command line, as strings, that gives a dataclass of options these values."""
    words: list[str] = []
    for field in dataclasses.fields(order):
        value = getattr(order, field.name)
        name = "--" + field.name.replace("_", "-")
        if isinstance(value, tuple):  # The positional ones.
            words = [*(_word(item) for item in value), *words]
        elif value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, _word(value)]
    return words


def _word(value: Any) -> str:
    return str(value.absolute() if isinstance(value, Path) else value)


def _read_order(path: Path) -> dict[str, Any]:
    try:
        order = json.loads(path.read_text())
        are_words = all(isinstance(word, str) for word in order["words"])
        if are_words and isinstance(order["settings"], dict):
            return order
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged; remove {path.parent}")
