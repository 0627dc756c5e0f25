"""Where published weights lie that `o3d weights fetch` brought, and how their names find them."""

from pathlib import Path

from o3d_jax.errors import InputError
from o3d_jax.places import user_cache

FETCHABLE = ("released", "svd-lgm")
"""What `o3d weights fetch` takes."""


def fetched(name: str) -> Path:
    """The folder of such weights, with the checkpoint as `model` in it; it need not exist."""
    return user_cache() / "weights" / name


def find_checkpoint(path: Path) -> Path:
    """The path itself, or, where it is no more than the name of published weights, where they are.

    Raises:
        InputError: nothing is at the path, and the weights of this name have not been fetched.
    """
    if path.exists() or str(path) not in FETCHABLE:
        return path
    folder = fetched(str(path)) / "model"
    if not folder.is_dir():
        raise InputError(
            f"no folder {path} here, and the published weights of this name are not in {folder}; "
            f"fetch them by `o3d weights fetch {path}`"
        )
    return folder
