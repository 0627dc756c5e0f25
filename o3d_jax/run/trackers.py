"""Where numbers and pictures of a run go besides its own files: TensorBoard, and services."""

import importlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from tensorboardX import SummaryWriter

from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError
from o3d_jax.files.images import to_bytes

PROJECT = "o3d_jax"
"""The name that a service files all runs under."""


@runtime_checkable
class Tracker(Protocol):
    """Takes what a run logs; steps never fall."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps numbers by name."""
        ...

    def histogram(self, step: int, name: str, values: Float[np.ndarray, " n"]) -> None:
        """Keeps how values are distributed."""
        ...

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Keeps a picture, in [0, 1]."""
        ...

    def finish(self) -> None:
        """Writes what is left."""
        ...


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, step: int) -> None:
        # What an earlier run logged of steps that are done again is not shown.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histogram(self, step: int, name: str, values: Float[np.ndarray, " n"]) -> None:
        self._writer.add_histogram(name, values, step)

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def finish(self) -> None:
        self._writer.close()


class Service:
    """A run of wandb or trackio, which share these calls."""

    def __init__(self, module: Any, run: Any) -> None:
        self._module = module
        self._run = run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def histogram(self, step: int, name: str, values: Float[np.ndarray, " n"]) -> None:
        self._run.log({name: self._module.Histogram(values)}, step=step)

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        self._run.log({name: self._module.Image(to_bytes(image))}, step=step)

    def finish(self) -> None:
        self._run.finish()


def open_wandb(module: Any, folder: Path, config: Config) -> Service:
    """Returns a run of Weights & Biases; with WANDB_MODE=offline it stays in the run's folder.

    Raises:
        InputError: it refuses, as without a login.
    """
    try:
        run = module.init(
            project=PROJECT,
            name=config.name,
            id=_run_id(folder),
            resume="allow",
            dir=str(folder),
            config=to_dict(config),
        )
    except module.Error as error:
        raise InputError(
            f"wandb: {error}; log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error
    return Service(module, run)


def open_trackio(module: Any, folder: Path, config: Config) -> Service:
    """Returns a run of trackio, a database on this machine that knows a run by its name alone."""
    name = f"{config.name}-{_run_id(folder)[:6]}"
    run = module.init(project=PROJECT, name=name, resume="allow", config=to_dict(config))
    return Service(module, run)


OPENERS: dict[str, Callable[[Any, Path, Config], Service]] = {
    "wandb": open_wandb,
    "trackio": open_trackio,
}
"""How each of `train.trackers` is opened."""


def import_tracker(name: str) -> Any:
    """Returns the package of one of `train.trackers`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"train.trackers names {name}, which cannot be imported ({error}); pip install {name}"
        ) from error


def open_trackers(folder: Path, config: Config, step: int) -> list[Tracker]:
    """Returns TensorBoard and those of `train.trackers`, for a run that goes on after `step`.

    Raises:
        InputError: a service is not installed, or refuses.
    """
    services = [OPENERS[n](import_tracker(n), folder, config) for n in config.train.trackers]
    return [TensorBoard(folder, step), *services]


def _run_id(folder: Path) -> str:
    """Returns an id of this folder's run, the same when it goes on another day."""
    path = folder / "tracker.id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex)
    return path.read_text().strip()
