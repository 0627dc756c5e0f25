"""The noise levels of a run on disk: to look at, to go on from after a break, to branch off from.

A folder has `image.npz`, the input as the networks see it, and a file for each level, `00.npz`
on. Each is written whole or not at all, so that what is there can be relied on.
"""

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.sampling.loop import Found, Level
from o3d_jax.steps.sample import LoopState
from o3d_jax.types import Gaussians, Maps

KEPT_FILES = ("levels/image.npz", "levels/[0-9]*.npz")
"""Patterns of the files of kept levels, in a result's folder."""


def save_image(folder: Path, image: Float[np.ndarray, "h w 3"]) -> None:
    """Writes the input that the levels in `folder` belong to."""
    _write(folder / "image.npz", {"image": image})


def load_image_of(folder: Path) -> Float[np.ndarray, "h w 3"]:
    """Returns the input that the levels in `folder` belong to.

    Raises:
        InputError: it is not there, or damaged.
    """
    return _read(folder / "image.npz")["image"]


def save_level(folder: Path, number: int, found: Found) -> None:
    """Writes what a level found and what the next one starts from, all bits of it."""
    level, state = found
    arrays = {f"gaussians.{name}": array for name, array in vars(level.gaussians).items()}
    arrays |= {name: array for name, array in vars(level).items() if name != "gaussians"}
    arrays |= {"state.x": state.x, "state.rgb": state.maps.rgb, "state.ccm": state.maps.ccm}
    _write(_path(folder, number), arrays | {"state.guidance": state.guidance})


def load_levels(folder: Path) -> list[Level]:
    """Returns the levels in `folder` from the first on, as far as there are any in a row.

    Raises:
        InputError: one of them is damaged.
    """
    levels = []
    while (path := _path(folder, len(levels))).is_file():
        arrays = _read(path)
        try:
            levels.append(_level_of(arrays))
        except (KeyError, TypeError) as error:
            raise _damaged(path) from error
    return levels


def load_state(folder: Path, number: int) -> LoopState:
    """Returns what the level after `number` starts from.

    Raises:
        InputError: the level is not there, or damaged.
    """
    path = _path(folder, number)
    arrays = _read(path)
    try:
        x, rgb, ccm, guidance = (
            jnp.asarray(arrays[f"state.{name}"]) for name in ("x", "rgb", "ccm", "guidance")
        )
    except KeyError as error:
        raise _damaged(path) from error
    return LoopState(x=x, maps=Maps(rgb=rgb, ccm=ccm), guidance=guidance)


def _level_of(arrays: dict[str, np.ndarray]) -> Level:
    """Returns the level that a file's arrays are, by the names that `save_level` gave them."""
    names = [field.name for field in dataclasses.fields(Gaussians)]
    fields = {name: jnp.asarray(arrays[f"gaussians.{name}"]) for name in names}
    images = {name: arrays[name] for name in ("views", "guide", "renders", "alpha")}
    return Level(
        sigma=float(arrays["sigma"]),
        latents=arrays["latents"],
        gaussians=Gaussians(**fields),
        reconstructed=bool(arrays.get("reconstructed", True)),  # Older files do not say.
        **images,
    )


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:02}.npz"


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with written_whole(path) as temporary:
        np.savez_compressed(
            temporary, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()}
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; sample anew with --keep-levels") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged; sample anew with --keep-levels --overwrite")
