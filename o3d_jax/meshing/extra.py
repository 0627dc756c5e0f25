"""Packages of the extra [mesh], which only meshes need."""

import importlib
from typing import Any

from o3d_jax.errors import InputError

PACKAGES = {
    "skimage.measure": "scikit-image",
    "fast_simplification": "fast-simplification",
    "xatlas": "xatlas",
}
"""What each module comes with."""


def needed(module: str) -> Any:
    """Returns a module, imported when it is needed.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"meshes need {PACKAGES[module]}: pip install 'o3d_jax[mesh]'") from error


def check_mesh_packages(with_texture: bool = False) -> None:
    """Raises an InputError if one of them is missing, before anything is computed."""
    for module in PACKAGES:
        if with_texture or module != "xatlas":
            needed(module)
