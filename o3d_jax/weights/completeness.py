"""Whether a checkpoint has every network that sampling needs, before anything large is read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.weights.checkpoint import whole_config

NEEDED = {
    "unet": ("unet",),
    "lgm": ("lgm",),
    "vae": ("frozen_vae",),
    "image tower": ("clip", "frozen_clip"),
}
"""What sampling needs, and the names in a checkpoint one of which must have it."""


def complete_config(folder: Path) -> Config:
    """Returns the config of a model that can sample; its arrays are not read.

    Raises:
        InputError: no checkpoint there, a damaged one, or one that lacks a network.
    """
    folder = folder.absolute()
    config = whole_config(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata(folder / "weights").item_metadata
    check_complete(folder, dict(metadata.tree))
    return config


def check_complete(folder: Path, there: Iterable[str]) -> None:
    """Raises an InputError unless the networks of these names are all that sampling needs."""
    names = set(there)
    missing = [what for what, ours in NEEDED.items() if not names & set(ours)]
    if missing:
        from_svd = {"vae", "image tower"} & set(missing)
        or_convert = ", or convert again with --svd SVD_DIR" if from_svd else ""
        raise InputError(
            f"{folder} holds no {', no '.join(missing)}; give RUN/model of a whole training run"
            f"{or_convert}"
        )
